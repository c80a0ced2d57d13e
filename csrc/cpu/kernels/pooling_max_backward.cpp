// Gradient of the max pool in gather form: an input position adds up the gradients of those windows whose argmax it is, in a fixed order. Rows of
// the incoming gradient and of the argmax wait in a ring, zero where the map has no position, so the loop over windows knows no border.
#include "../kernels.h"
#include "pool_max_rows.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// The rows of windows that reach one input row.
template <class A, class Tap>
struct Windows {
  const A** grad;
  const Tap** tap;
  int32_t* base;  // the tap whose row is this input row, first column
  int64_t count;
};

template <class A, class Tap>
FASTCONV_INLINE typename Lanes<A>::V gather_at(const Windows<A, Tap>& w, int64_t kw, int64_t step, int64_t e) {
  using V = Lanes<A>;
  typename V::V sum = V::set(0);
  for (int64_t i = 0; i < w.count; ++i) {
    int64_t at = e + (kw - 1) * step;
    for (int64_t kx = 0; kx < kw; ++kx, at -= step) sum = V::add_where(sum, V::get(w.tap[i] + at), V::set_index(w.base[i] + int32_t(kx)), V::get(w.grad[i] + at));
  }
  return sum;
}

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
// Four vectors at a time: one comparison of 64 taps serves them all.
template <class T>
int64_t gather_blocks(const Windows<float, uint8_t>& w, int64_t kw, int64_t step, int64_t n, T* out) {
  int64_t e = 0;
  for (; e + 64 <= n; e += 64) {
    __m512 sum[4] = {};
    for (int64_t i = 0; i < w.count; ++i) {
      int64_t at = e + (kw - 1) * step;
      __m512i wanted = _mm512_set1_epi8(char(w.base[i]));
      for (int64_t kx = 0; kx < kw; ++kx, at -= step) {
        const __mmask64 m = _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(w.tap[i] + at), wanted);
        wanted = _mm512_add_epi8(wanted, _mm512_set1_epi8(1));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sum[j] = _mm512_mask_add_ps(sum[j], __mmask16(m >> (16 * j)), sum[j], _mm512_loadu_ps(w.grad[i] + at + 16 * j));
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) Rounded::put(out + e + 16 * j, (vf)sum[j]);
  }
  return e;
}
#endif
template <class A, class Tap, class T>
int64_t gather_blocks(const Windows<A, Tap>&, int64_t, int64_t, int64_t, T*) {
  return 0;
}

template <class T, class A, class Tap>
void gather(const Windows<A, Tap>& w, int64_t kw, int64_t step, int64_t n, T* out) {
  constexpr int N = Lanes<A>::n;
  int64_t e = gather_blocks(w, kw, step, n, out);
  for (; e + N <= n; e += N) Rounded::put(out + e, gather_at(w, kw, step, e));
  if (e < n) Rounded::put_part(out + e, gather_at(w, kw, step, e), int(n - e));
}

// Tap is uint8_t for a given argmax, int32_t for one recomputed from x.
template <class T, class Tap>
class MaxGradient {
  using A = typename Compute<T>::type;
  static constexpr bool kRecompute = sizeof(Tap) == 4;

 public:
  MaxGradient(const MaxPoolBackward& p, Carver& carver, int64_t columns, int64_t channels)
      : p_(p), g_(p.g), map_(pooled_map(p.g, p.layout)), span_(columns + (g_.kw - 1) * g_.dw) {
    const int64_t loaded = span_ * channels;
    grad_pitch_ = ring_pitch<A>(loaded), tap_pitch_ = ring_pitch<Tap>(loaded);
    grad_ = carver.take<A>(grad_pitch_ * g_.kh), tap_ = carver.take<Tap>(tap_pitch_ * g_.kh);
    ring_ = {carver.take<int64_t>(g_.kh), g_.kh, g_.dh};
    windows_ = {carver.take<const A*>(g_.kh), carver.take<const Tap*>(g_.kh), carver.take<int32_t>(g_.kh), 0};
    deal_ = carver.take<T>(loaded + kSlack + 2 * g_.sw);
    deal_tap_ = carver.take<uint8_t>(loaded + kSlack + 2 * g_.sw);
    row_ = carver.take<T>(loaded + kSlack);
  }

  static int64_t scratch_bytes(const MaxPoolBackward& p, int64_t columns, int64_t channels) {
    const PoolGeometry& g = p.g;
    const int64_t loaded = (columns + (g.kw - 1) * g.dw) * channels;
    return (ring_pitch<A>(loaded) * int64_t(sizeof(A)) + ring_pitch<Tap>(loaded) * int64_t(sizeof(Tap)) + 32) * g.kh + (loaded + kSlack + 2 * g.sw) * int64_t(2 * sizeof(T) + 1) +
        1024 + (kRecompute ? MaxRows<T, true>::scratch_bytes(g, columns + (g.kw - 1) * g.dw, channels) : 0);
  }

  void strip(const Strip& s, MaxRows<T, true>* argmax) {
    const DealtMap plain = plain_map(g_, p_.layout);
    T* const dx = static_cast<T*>(p_.dx);
    const bool direct = is_run(plain, s);
    s_ = s, argmax_ = argmax;
    ring_.reset();
    if constexpr (kRecompute) argmax->start(seen());
    for_each_row(s, g_.dh, [&](int64_t iy) {
      windows_.count = 0;
      for (int64_t ky = 0; ky < g_.kh; ++ky) {
        const int64_t y = iy + g_.ph - ky * g_.dh;
        if (y < 0 || y >= g_.dense_h) continue;
        const int64_t slot = ring_.slot(y), i = windows_.count++;
        windows_.grad[i] = grad_ + slot * grad_pitch_, windows_.tap[i] = tap_ + slot * tap_pitch_, windows_.base[i] = int32_t(ky * g_.kw);
        if (ring_.held[slot] != y) fetch(y, slot);
      }
      T* const to = direct ? run_at(plain, dx, s, iy) : row_;
      gather<T>(windows_, g_.kw, g_.dw * s.channels, (s.x1 - s.x0) * s.channels, to);
      if (!direct) store_row(plain, dx, s, iy, row_);
    });
  }

 private:
  int64_t first() const { return s_.x0 + g_.pw - (g_.kw - 1) * g_.dw; }

  // The columns of the dense map whose windows reach the strip.
  Strip seen() const {
    Strip d = s_;
    const int64_t xa = first(), xb = s_.x1 + g_.pw;
    d.x0 = xa > 0 ? xa : 0, d.x1 = xb < g_.dense_w ? xb : g_.dense_w;
    return d;
  }

  void fetch(int64_t y, int64_t slot) {
    const int64_t xa = first(), xb = s_.x1 + g_.pw;
    load_row<T, A>(map_, static_cast<const T*>(p_.grad), s_, y, xa, xb, g_.dense_w, A(0), grad_ + slot * grad_pitch_, deal_);
    Tap* tap = tap_ + slot * tap_pitch_;
    if constexpr (kRecompute)
      argmax_->row(y, row_, tap + (seen().x0 - xa) * s_.channels);
    else
      load_row<uint8_t, uint8_t>(map_, p_.argmax, s_, y, xa, xb, g_.dense_w, 0, tap, deal_tap_);
    ring_.held[slot] = y;
  }

  const MaxPoolBackward& p_;
  const PoolGeometry& g_;
  DealtMap map_;
  int64_t span_, grad_pitch_, tap_pitch_;
  A* grad_;
  Tap* tap_;
  RowRing ring_;
  Windows<A, Tap> windows_;
  T *deal_, *row_;
  uint8_t* deal_tap_;
  Strip s_;
  MaxRows<T, true>* argmax_;
};

template <class T>
void backward(const MaxPoolBackward& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  const PoolGeometry& g = p.g;
  Carver carver{static_cast<char*>(scratch)};
  const auto each = [&](auto& gradient, MaxRows<T, true>* argmax) {
    for (int64_t item = begin; item < end; ++item) gradient.strip(strip_of(plan, g, p.layout, g.h, g.w, item), argmax);
  };
  if (p.argmax) {
    MaxGradient<T, uint8_t> gradient(p, carver, plan.columns, plan.channels);
    each(gradient, nullptr);
  } else {
    MaxGradient<T, int32_t> gradient(p, carver, plan.columns, plan.channels);
    MaxRows<T, true> argmax(g, p.layout, p.x, carver, plan.columns + (g.kw - 1) * g.dw, plan.channels);
    each(gradient, &argmax);
  }
}

template <class T>
int64_t bytes(const MaxPoolBackward& p, const PoolPlan& plan) {
  return p.argmax ? MaxGradient<T, uint8_t>::scratch_bytes(p, plan.columns, plan.channels) : MaxGradient<T, int32_t>::scratch_bytes(p, plan.columns, plan.channels);
}

void max_pool_backward(const MaxPoolBackward& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  switch (p.dtype) {
    case DType::f32: return backward<float>(p, plan, begin, end, scratch);
    case DType::f16: return backward<f16>(p, plan, begin, end, scratch);
    case DType::bf16: return backward<bf16>(p, plan, begin, end, scratch);
    case DType::f64: return backward<double>(p, plan, begin, end, scratch);
  }
}

PoolPlan max_pool_backward_plan(const MaxPoolBackward& p, int threads) {
  const int64_t element = (p.dtype == DType::f64 ? 8 : 4) + (p.argmax ? 1 : 12);
  PoolPlan plan = plan_strips(p.g, p.layout, p.g.h, p.g.w, 1, element * p.g.kh, threads);
  switch (p.dtype) {
    case DType::f32: plan.scratch_bytes = bytes<float>(p, plan); break;
    case DType::f64: plan.scratch_bytes = bytes<double>(p, plan); break;
    default: plan.scratch_bytes = bytes<bf16>(p, plan);
  }
  return plan;
}

}  // namespace

void register_pooling_max_backward(Kernels& t) {
  t.max_pool_backward_plan = &max_pool_backward_plan;
  t.max_pool_backward = &max_pool_backward;
}

}  // namespace fastconv::FASTCONV_ISA
