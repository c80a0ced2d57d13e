// Launches the max pool's gradient; the kernels are in max_pool_backward_kernel.cuh.
#include "launch.h"
#include "max_pool_backward_kernel.cuh"
#include "pool_maps.h"

namespace fastconv::cuda {

void launch_max_pool_backward(const MaxPoolBackward& p, const int64_t* indices, const PoolPlan& plan, Stream stream) {
  const PoolGeometry& g = p.g;
  const Dealt from(pooled_map(g, p.layout)), to(plain_map(g, p.layout));
  const MaxPoolBackwardArgs a{
      p.grad, p.argmax, indices, p.dx, from, DealtWalk(from, g.dh), to.batch, to.channel, to.row, to.pixel, static_cast<int>(g.h), static_cast<int>(g.w),
      static_cast<int>(g.dense_h), static_cast<int>(g.dense_w), static_cast<int>(g.kh), static_cast<int>(g.kw), static_cast<int>(g.ph), static_cast<int>(g.pw),
      static_cast<int>(g.dh), static_cast<int>(g.dw)};
  if (plan.form == PoolForm::windows) {
    with_any_dtype(p.dtype, [&](auto tag) {
      launch(max_pool_backward_elements<decltype(tag)>, Dim3(static_cast<unsigned>(plan.rows.blocks)), Dim3(plan.threads), 0, stream, a, Rows(plan.rows));
    });
    return;
  }
  with_dtype(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Dim3 grid(static_cast<unsigned>(ceil_div(plan.strips.total, plan.threads)));
    if (g.kh == 2) {
      launch(max_pool_backward_pixels<T, 2, 6>, grid, Dim3(plan.threads), plan.shared_bytes, stream, a, Strips(plan.strips));
    } else {
      launch(max_pool_backward_pixels<T, 3, 4>, grid, Dim3(plan.threads), plan.shared_bytes, stream, a, Strips(plan.strips));
    }
  });
}

}  // namespace fastconv::cuda
