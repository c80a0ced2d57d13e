// The innermost loops of the depthwise backward: a run of positions that share their taps. One load of the gradient serves both
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

// Keeps the compiler from folding one load into both of its users as two.
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
#define FASTCONV_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define FASTCONV_IN_REGISTER(v) asm("" : "+x"(v))
#else
#define FASTCONV_IN_REGISTER(v)
#endif

enum Wanted { want_both, want_both_more, want_dx, want_dx_more, want_dw };  // ..._more: add to dx instead of setting it
constexpr bool sets_dx(Wanted w) { return w != want_dw; }
constexpr bool adds_dx(Wanted w) { return w == want_both_more || w == want_dx_more; }
constexpr bool sets_dw(Wanted w) { return w == want_both || w == want_both_more || w == want_dw; }

// ---- lanes are channels ----
// Steps count floats.
struct PixelRun {
  const float* x;
  float* dx;
  const float* g[kMaxRows];  // row r, tap 0
  int64_t x_step, dx_step, g_step;
  int64_t tap_shift;   // tap t reads t * tap_shift before tap 0
  const float* weight; // (row, tap, lane)
  float* dw;
  int64_t row_step, tap_step;
  int64_t count;
};

struct PixelTaps {
  using Run = PixelRun;

  template <int Rows, int Cols, Wanted W>
  static void run(const PixelRun& run) {
    vf w[Rows][Cols], a[Rows][Cols];
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
      for (int t = 0; t < Cols; ++t) {
        w[r][t] = sets_dx(W) ? load(run.weight + r * run.row_step + t * run.tap_step) : vf{};
        a[r][t] = sets_dw(W) ? load(run.dw + r * run.row_step + t * run.tap_step) : vf{};
      }
    const float* x = run.x;
    float* dx = run.dx;
    const int64_t shift = run.tap_shift, g_step = run.g_step, x_step = run.x_step, dx_step = run.dx_step, count = run.count;
    const float* g[Rows];
    for (int r = 0; r < Rows; ++r) g[r] = run.g[r];
    for (int64_t i = 0; i < count; ++i) {
      const vf xv = sets_dw(W) ? load(x) : vf{};
      vf d = adds_dx(W) ? load(dx) : vf{};
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
        for (int t = 0; t < Cols; ++t) {
          vf gv = load(g[r] - t * shift);
          FASTCONV_IN_REGISTER(gv);
          if (sets_dx(W)) d = fma(w[r][t], gv, d);
          if (sets_dw(W)) a[r][t] = fma(xv, gv, a[r][t]);
        }
      if (sets_dx(W)) store(dx, d);
      x += x_step, dx += dx_step;
      for (int r = 0; r < Rows; ++r) g[r] += g_step;
    }
    if (sets_dw(W))
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
        for (int t = 0; t < Cols; ++t) store(run.dw + r * run.row_step + t * run.tap_step, a[r][t]);
  }
};

// ---- lanes are neighbouring pixels of a plane ----
// Which lanes of a vector a tap may use.
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
using MaskWord = uint16_t;
constexpr int kMaskWords = 1;
using Mask = __mmask16;
FASTCONV_INLINE Mask load_mask(const MaskWord* p) { return *p; }
FASTCONV_INLINE Mask both(Mask a, Mask b) { return Mask(a & b); }
FASTCONV_INLINE vf load_if(const float* p, Mask m) { return (vf)_mm512_maskz_loadu_ps(m, p); }
inline void set_lane(MaskWord* p, int lane) { *p = MaskWord(*p | 1u << lane); }
#else
using MaskWord = int32_t;
constexpr int kMaskWords = L;
using Mask = vi;
FASTCONV_INLINE Mask load_mask(const MaskWord* p) {
  Mask m;
  memcpy(&m, p, sizeof(m));
  return m;
}
FASTCONV_INLINE Mask both(Mask a, Mask b) { return a & b; }
FASTCONV_INLINE vf load_if(const float* p, Mask m) { return (vf)((vi)load(p) & m); }
inline void set_lane(MaskWord* p, int lane) { p[lane] = -1; }
#endif

struct PlaneRun {
  const float* x;
  float* dx;
  const float* g[kMaxRows];  // row r, tap 0; every lane of every vector may be read
  int64_t tap_shift;
  const float* weight;  // (row, tap)
  float* dw;            // (row, tap, lane)
  int64_t row_step;     // taps
  const MaskWord* masks;  // of the first vector and tap; they repeat after `period` vectors, of which `phase` have gone by
  int64_t mask_step, period, phase;
  int64_t count;  // full vectors, before
  int64_t tail;   // this many lanes more,
  const MaskWord* tail_mask;
};

struct PlaneTaps {
  using Run = PlaneRun;

  template <int Rows, int Cols, Wanted W>
  static void run(const PlaneRun& run) {
    vf w[Rows][Cols], a[Rows][Cols];
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
      for (int t = 0; t < Cols; ++t) {
        w[r][t] = sets_dx(W) ? set1(run.weight[r * run.row_step + t]) : vf{};
        a[r][t] = sets_dw(W) ? load(run.dw + (r * run.row_step + t) * L) : vf{};
      }
    const int64_t shift = run.tap_shift, count = run.count;
    const float *x = run.x, *g[Rows];
    float* dx = run.dx;
    for (int r = 0; r < Rows; ++r) g[r] = run.g[r];
    const auto taps = [&](vf xv, vf d, auto mask) __attribute__((always_inline)) {
#pragma GCC unroll 7
      for (int t = 0; t < Cols; ++t) {
        const Mask m = mask(t);
#pragma GCC unroll 3
        for (int r = 0; r < Rows; ++r) {
          vf gv = load_if(g[r] - t * shift, m);
          FASTCONV_IN_REGISTER(gv);
          if (sets_dx(W)) d = fma(w[r][t], gv, d);
          if (sets_dw(W)) a[r][t] = fma(xv, gv, a[r][t]);
        }
      }
      return d;
    };
    const MaskWord* masks = run.masks + run.phase * run.mask_step;
    int64_t left = run.period - run.phase;
    for (int64_t i = 0; i < count; ++i) {
      const vf d = taps(sets_dw(W) ? load(x) : vf{}, adds_dx(W) ? load(dx) : vf{}, [&](int t) __attribute__((always_inline)) { return load_mask(masks + t * kMaskWords); });
      if (sets_dx(W)) store(dx, d);
      x += L, dx += L;
      for (int r = 0; r < Rows; ++r) g[r] += L;
      masks += run.mask_step;
      if (--left == 0) masks = run.masks, left = run.period;
    }
    if (run.tail) {
      const Mask lanes = load_mask(run.tail_mask);
      const int n = int(run.tail);
      const vf d = taps(sets_dw(W) ? load_part(x, n) : vf{}, adds_dx(W) ? load_part(dx, n) : vf{}, [&](int t) __attribute__((always_inline)) {
        return both(load_mask(masks + t * kMaskWords), lanes);
      });
      if (sets_dx(W)) store_part(dx, d, n);
    }
    if (sets_dw(W))
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 7
        for (int t = 0; t < Cols; ++t) store(run.dw + (r * run.row_step + t) * L, a[r][t]);
  }
};

// ---- which of them ----
template <class Kind, Wanted W>
struct TapKernels {
  using Kernel = void (*)(const typename Kind::Run&);
  template <int Rows, int Cols>
  static constexpr Kernel kernel() {
    if constexpr (Rows <= rows_at_once(Cols))
      return &Kind::template run<Rows, Cols, W>;
    else
      return nullptr;
  }
  Kernel of[kMaxCols][kMaxRows] = {
      {kernel<1, 1>(), kernel<2, 1>(), kernel<3, 1>()}, {kernel<1, 2>(), kernel<2, 2>(), kernel<3, 2>()}, {kernel<1, 3>(), kernel<2, 3>(), kernel<3, 3>()},
      {kernel<1, 4>(), kernel<2, 4>(), kernel<3, 4>()}, {kernel<1, 5>(), kernel<2, 5>(), kernel<3, 5>()}, {kernel<1, 6>(), kernel<2, 6>(), kernel<3, 6>()},
      {kernel<1, 7>(), kernel<2, 7>(), kernel<3, 7>()}};
};

// wanted: want_both, want_dx or want_dw.
template <class Kind>
inline auto find_tap_kernel(Wanted wanted, bool more, int64_t rows, int64_t cols) {
  static constexpr TapKernels<Kind, want_both> first;
  static constexpr TapKernels<Kind, want_both_more> next;
  static constexpr TapKernels<Kind, want_dx> first_dx;
  static constexpr TapKernels<Kind, want_dx_more> next_dx;
  static constexpr TapKernels<Kind, want_dw> dw;
  const auto& of = wanted == want_dw ? dw.of : wanted == want_dx ? (more ? next_dx.of : first_dx.of) : (more ? next.of : first.of);
  return of[cols - 1][rows - 1];
}

}  // namespace fastconv::FASTCONV_ISA
