// What the two depthwise backward kernels share: how taps meet positions along an axis, and rows of a map <-> rows of float32 scratch.
#pragma once
#include "../kernels.h"
#include "activation.h"
#include "common/shape.h"
#include "pixels.h"

namespace fastconv::FASTCONV_ISA {

// Input positions first, first + stride, ... of one axis: those that the same taps reach. Input position number i and tap number j meet
// at output position origin + i - j * shift, so within a class a strided or dilated axis behaves like one of stride 1.
struct AxisClass {
  int64_t count;           // input positions
  int64_t tap0, tap_step;  // tap j of the class is tap tap0 + j * tap_step of the kernel
  int64_t taps;
  int64_t origin, shift;

  // The taps [*lo, *hi) that meet input position i inside the output.
  void taps_at(int64_t i, int64_t out, int64_t* lo, int64_t* hi) const {
    const int64_t far = origin + i, over = far - (out - 1);
    *lo = over > 0 ? min64(taps, ceil_div(over, shift)) : 0;
    *hi = far < 0 ? 0 : min64(taps, far / shift + 1);
    if (*hi < *lo) *hi = *lo;
  }
};

inline AxisClass axis_class(int64_t first, int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
  int64_t a = stride, b = dilation;
  while (b) {
    const int64_t r = a % b;
    a = b, b = r;
  }
  AxisClass c = {size > first ? ceil_div(size - first, stride) : 0, 0, stride / a, 0, 0, dilation / a};
  for (int64_t k = 0; k < min64(c.tap_step, kernel); ++k)
    if ((first + pad - k * dilation) % stride == 0) {
      c.tap0 = k;
      c.taps = (kernel - 1 - k) / c.tap_step + 1;
      c.origin = (first + pad - k * dilation) / stride;
      break;
    }
  return c;
}

// Positions [i0, i1) of a class, which all use taps [t0, t1).
struct Segment {
  int64_t i0, i1, t0, t1;
  bool has_taps() const { return t1 > t0; }
  // In units of one tap at one position; entering the inner loop and moving its weights costs about what four positions do.
  int64_t cost() const { return (i1 - i0 + 4) * (t1 - t0); }
};

// Merges neighbours wherever computing with zeros costs less than a loop of its own.
inline int64_t merge_segments(Segment* s, int64_t count) {
  for (int64_t i = 0; i + 1 < count;) {
    const Segment merged = {s[i].i0, s[i + 1].i1, s[i].t0, s[i + 1].t1};
    if (!s[i].has_taps() || !s[i + 1].has_taps() || merged.cost() > s[i].cost() + s[i + 1].cost()) {
      ++i;
      continue;
    }
    s[i] = merged;
    for (int64_t j = i + 2; j < count; ++j) s[j - 1] = s[j];
    --count;
    i = i > 0 ? i - 1 : 0;
  }
  return count;
}

// ---- sums over the lanes of L rows at once ----
// Lanes with bit H of rows a and b change places: one bit of the row number becomes a bit of the lane number.
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
template <int H>
struct ExchangeIndex {
  alignas(64) int32_t low[L] = {}, high[L] = {};
  constexpr ExchangeIndex() {
    for (int l = 0; l < L; ++l) low[l] = l & H ? L + (l ^ H) : l, high[l] = low[l] ^ H;
  }
};
template <int H>
FASTCONV_INLINE void exchange(vf& a, vf& b) {
  static constexpr ExchangeIndex<H> index;
  const __m512 x = (__m512)a, y = (__m512)b;
  a = (vf)_mm512_permutex2var_ps(x, _mm512_load_si512(index.low), y);
  b = (vf)_mm512_permutex2var_ps(x, _mm512_load_si512(index.high), y);
}
#elif FASTCONV_ISA_avx2
template <int H>
FASTCONV_INLINE void exchange(vf& a, vf& b) {
  const __m256 x = (__m256)a, y = (__m256)b;
  if (H == 1) {
    a = (vf)_mm256_blend_ps(x, _mm256_moveldup_ps(y), 0xaa);
    b = (vf)_mm256_blend_ps(_mm256_movehdup_ps(x), y, 0xaa);
  } else if (H == 2) {
    a = (vf)_mm256_shuffle_ps(x, y, 0x44);
    b = (vf)_mm256_shuffle_ps(x, y, 0xee);
  } else {
    a = (vf)_mm256_permute2f128_ps(x, y, 0x20);
    b = (vf)_mm256_permute2f128_ps(x, y, 0x31);
  }
}
#else
template <int H>
FASTCONV_INLINE void exchange(vf& a, vf& b) {
  const vf x = a, y = b;
  for (int l = 0; l < L; ++l) {
    a[l] = l & H ? y[l ^ H] : x[l];
    b[l] = l & H ? y[l] : x[l ^ H];
  }
}
#endif

// Lane t of the result is the sum of the lanes of rows[t].
template <int H = 1>
FASTCONV_INLINE vf sum_rows(vf* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < L; i += 2 * H) {
    exchange<H>(rows[i], rows[i + H]);
    rows[i] += rows[i + H];
  }
  if constexpr (2 * H < L)
    return sum_rows<2 * H>(rows);
  else
    return rows[0];
}

// ---- float32 scratch; counts are multiples of L ----
void apply_activation(Activation a, const float* from, float* to, int64_t count);
// values *= activation'(z). Where the slope of a relu is 0 the value is cut, not multiplied: an infinite gradient leaves no NaN there.
void multiply_by_slope(Activation a, const float* z, float* values, int64_t count);

// Hands out pieces of one allocation; with no memory behind it, it only counts.
class Carver {
 public:
  explicit Carver(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
  int64_t bytes() const { return int64_t(next_); }

 private:
  uintptr_t next_;
};

struct Parts {
  int64_t count, of;
  int64_t begin(int64_t part) const { return of * part / count; }
};

// The plan depends on shapes alone, or else the sums of the weight gradients would depend on the number of threads.
constexpr int64_t kItems = 32, kLeastRows = 8;

DepthwiseBackwardPlan plan_pixels(const DepthwiseBackward& p);
void backward_pixels(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, float* partials, void* scratch);

bool planes_take(const DepthwiseBackward& p);
DepthwiseBackwardPlan plan_planes(const DepthwiseBackward& p);
void backward_planes(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, float* partials, void* scratch);

}  // namespace fastconv::FASTCONV_ISA
