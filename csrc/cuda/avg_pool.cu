// Launches the average pool and its gradient; the kernels are in avg_pool_kernel.cuh.
#include "avg_pool_kernel.cuh"
#include "launch.h"
#include "pool_maps.h"

namespace fastconv::cuda {
namespace {

AvgPoolArgs arguments(const AvgPool& p) {
  const PoolGeometry& g = p.g;
  const Dealt plain(plain_map(g, p.layout)), pooled(pooled_map(g, p.layout));
  const Dealt &from = p.backward ? pooled : plain, &to = p.backward ? plain : pooled;
  const int h = static_cast<int>(g.h), w = static_cast<int>(g.w), dense_h = static_cast<int>(g.dense_h), dense_w = static_cast<int>(g.dense_w);
  const int kh = static_cast<int>(g.kh), kw = static_cast<int>(g.kw), ph = static_cast<int>(g.ph), pw = static_cast<int>(g.pw);
  const int dh = static_cast<int>(g.dh), dw = static_cast<int>(g.dw);
  const int edge_h = p.count_include_pad ? ph : 0, edge_w = p.count_include_pad ? pw : 0;
  AvgPoolArgs a{p.in, p.out, from, to, DealtWalk(from, dh), DealtWalk(to, dh)};
  a.from_h = p.backward ? dense_h : h, a.from_w = p.backward ? dense_w : w;
  a.to_h = p.backward ? h : dense_h, a.to_w = p.backward ? w : dense_w;
  a.kh = kh, a.kw = kw, a.dh = dh, a.dw = dw;
  // What the forward pass leaves out on the left, the gradient reaches beyond.
  a.ph = p.backward ? (kh - 1) * dh - ph : ph, a.pw = p.backward ? (kw - 1) * dw - pw : pw;
  a.rows = {h, kh, ph, dh, edge_h}, a.columns = {w, kw, pw, dw, edge_w};
  a.divisor = static_cast<float>(p.divisor);
  a.fill = p.fill;
  return a;
}

template <class T, bool Backward>
void launch_pixels(const AvgPool& p, const PoolPlan& plan, Stream stream) {
  auto go = [&](auto kernel) { launch(kernel, Dim3(static_cast<unsigned>(ceil_div(plan.strips.total, plan.threads))), Dim3(plan.threads), 0, stream, arguments(p), Strips(plan.strips)); };
  switch (p.g.kh) {
    case 2: return go(avg_pool_pixels<T, 2, 4, Backward>);
    case 3: return go(avg_pool_pixels<T, 3, 4, Backward>);
    default: return go(avg_pool_pixels<T, 5, 2, Backward>);
  }
}

template <bool Backward>
void launch_either(const AvgPool& p, const PoolPlan& plan, Stream stream) {
  if (plan.form == PoolForm::pixels) return with_dtype(p.dtype, [&](auto tag) { launch_pixels<decltype(tag), Backward>(p, plan, stream); });
  with_any_dtype(p.dtype, [&](auto tag) {
    launch(avg_pool_elements<decltype(tag), Backward>, Dim3(static_cast<unsigned>(plan.rows.blocks)), Dim3(plan.threads), 0, stream, arguments(p), Rows(plan.rows));
  });
}

}  // namespace

void launch_avg_pool(const AvgPool& p, const PoolPlan& plan, Stream stream) {
  p.backward ? launch_either<true>(p, plan, stream) : launch_either<false>(p, plan, stream);
}

}  // namespace fastconv::cuda
