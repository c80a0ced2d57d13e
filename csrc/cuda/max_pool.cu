// Launches the max pool's forward kernels; they are in max_pool_kernel.cuh.
#include "launch.h"
#include "max_pool_kernel.cuh"
#include "pool_maps.h"

namespace fastconv::cuda {
namespace {

MaxPoolArgs arguments(const MaxPool& p) {
  const PoolGeometry& g = p.g;
  const Dealt from(plain_map(g, p.layout)), to(pooled_map(g, p.layout));
  return {
      p.x, p.out, p.argmax, p.indices, from.batch, from.channel, from.row, from.pixel, to, DealtWalk(to, g.dh), static_cast<int>(g.h), static_cast<int>(g.w),
      static_cast<int>(g.dense_h), static_cast<int>(g.dense_w), static_cast<int>(g.kh), static_cast<int>(g.kw), static_cast<int>(g.ph), static_cast<int>(g.pw),
      static_cast<int>(g.dh), static_cast<int>(g.dw), p.fill};
}

template <class T, int K, int Q>
void launch_pixels(const MaxPool& p, const PoolPlan& plan, Stream stream) {
  const Dim3 grid(static_cast<unsigned>(ceil_div(plan.strips.total, plan.threads)));
  if (p.argmax) {
    launch(max_pool_pixels<T, K, Q, true>, grid, Dim3(plan.threads), 0, stream, arguments(p), Strips(plan.strips));
  } else {
    launch(max_pool_pixels<T, K, Q, false>, grid, Dim3(plan.threads), 0, stream, arguments(p), Strips(plan.strips));
  }
}

}  // namespace

void launch_max_pool(const MaxPool& p, const PoolPlan& plan, Stream stream) {
  if (plan.form == PoolForm::windows) {
    with_any_dtype(p.dtype, [&](auto tag) {
      launch(max_pool_windows<decltype(tag)>, Dim3(static_cast<unsigned>(plan.rows.blocks)), Dim3(plan.threads), 0, stream, arguments(p), Rows(plan.rows));
    });
    return;
  }
  with_dtype(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    switch (p.g.kh) {
      case 2: return launch_pixels<T, 2, 4>(p, plan, stream);
      case 3: return launch_pixels<T, 3, 4>(p, plan, stream);
      default: return launch_pixels<T, 5, 2>(p, plan, stream);
    }
  });
}

}  // namespace fastconv::cuda
