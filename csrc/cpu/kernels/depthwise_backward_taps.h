// The innermost loop of the depthwise backward: a run of positions that share their taps. One load of the gradient serves both
//   dx[i] += w[r][t] * g[r][i - t]   and   dw[r][t] += x[i] * g[r][i - t],
// with weights and weight gradients in registers.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

constexpr int kMaxRows = 3, kMaxCols = 7;

// Taps kept in registers at a time: each needs two (weight and its gradient).
constexpr int rows_at_once(int cols) {
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
  return cols <= 3 ? 3 : cols <= 6 ? 2 : 1;
#else
  return cols == 1 ? 3 : cols == 2 ? 2 : 1;
#endif
}

// Steps count floats.
struct TapRun {
  const float* x;
  float* dx;
  const float* g[kMaxRows];  // row r, tap 0
  int64_t x_step, dx_step, g_step;
  int64_t tap_shift;         // tap t reads t * tap_shift before tap 0
  const float* weight;       // (row, tap, lane)
  float* dw;
  int64_t row_step, tap_step;
  int64_t count;
};

enum Wanted { want_both, want_both_more, want_dx, want_dx_more, want_dw };  // ..._more: add to dx instead of setting it

template <int Rows, int Cols, Wanted W>
void run_taps(const TapRun& run) {
  constexpr bool DX = W != want_dw, DW = W == want_both || W == want_both_more || W == want_dw, More = W == want_both_more || W == want_dx_more;
  vf w[Rows][Cols], a[Rows][Cols];
#pragma GCC unroll 3
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
    for (int t = 0; t < Cols; ++t) {
      w[r][t] = DX ? load(run.weight + r * run.row_step + t * run.tap_step) : vf{};
      a[r][t] = DW ? load(run.dw + r * run.row_step + t * run.tap_step) : vf{};
    }
  const float* x = run.x;
  float* dx = run.dx;
  const int64_t shift = run.tap_shift, g_step = run.g_step;
  const float* g[Rows];
  for (int r = 0; r < Rows; ++r) g[r] = run.g[r];
  for (int64_t i = 0; i < run.count; ++i) {
    const vf xv = DW ? load(x) : vf{};
    vf d = More ? load(dx) : vf{};
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
      for (int t = 0; t < Cols; ++t) {
        const vf gv = load(g[r] - t * shift);
        if (DX) d = fma(w[r][t], gv, d);
        if (DW) a[r][t] = fma(xv, gv, a[r][t]);
      }
    if (DX) store(dx, d);
    x += run.x_step, dx += run.dx_step;
    for (int r = 0; r < Rows; ++r) g[r] += g_step;
  }
  if (DW)
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
      for (int t = 0; t < Cols; ++t) store(run.dw + r * run.row_step + t * run.tap_step, a[r][t]);
}

using TapKernel = void (*)(const TapRun&);

template <int Rows, int Cols, Wanted W>
constexpr TapKernel tap_kernel() {
  if constexpr (Rows <= rows_at_once(Cols))
    return &run_taps<Rows, Cols, W>;
  else
    return nullptr;
}
template <Wanted W>
struct TapKernels {
  TapKernel of[kMaxCols][kMaxRows] = {
      {tap_kernel<1, 1, W>(), tap_kernel<2, 1, W>(), tap_kernel<3, 1, W>()}, {tap_kernel<1, 2, W>(), tap_kernel<2, 2, W>(), tap_kernel<3, 2, W>()},
      {tap_kernel<1, 3, W>(), tap_kernel<2, 3, W>(), tap_kernel<3, 3, W>()}, {tap_kernel<1, 4, W>(), tap_kernel<2, 4, W>(), tap_kernel<3, 4, W>()},
      {tap_kernel<1, 5, W>(), tap_kernel<2, 5, W>(), tap_kernel<3, 5, W>()}, {tap_kernel<1, 6, W>(), tap_kernel<2, 6, W>(), tap_kernel<3, 6, W>()},
      {tap_kernel<1, 7, W>(), tap_kernel<2, 7, W>(), tap_kernel<3, 7, W>()}};
};

// wanted: want_both, want_dx or want_dw.
inline TapKernel find_tap_kernel(Wanted wanted, bool more, int64_t rows, int64_t cols) {
  static constexpr TapKernels<want_both> both;
  static constexpr TapKernels<want_both_more> both_more;
  static constexpr TapKernels<want_dx> dx;
  static constexpr TapKernels<want_dx_more> dx_more;
  static constexpr TapKernels<want_dw> dw;
  const auto& of = wanted == want_dw ? dw.of : wanted == want_dx ? (more ? dx_more.of : dx.of) : (more ? both_more.of : both.of);
  return of[cols - 1][rows - 1];
}

}  // namespace fastconv::FASTCONV_ISA
