// Gradient of the max pool in gather form: an input position adds up the gradients of those windows whose argmax it is, in a fixed order.
//
// A stitched map's windows of 2x2 and 3x3 with a given argmax are gathered straight from memory (pool_max_windows.h). For all others rows of
// the incoming gradient and of the argmax wait in a ring, zero where the map has no position. For an input row, part k is, at each
// window column, the sum over the windows (one a row of the ring) whose argmax lies in this row at tap column k: all loads are aligned. The
// input's gradient is the sum of the parts, each shifted by its tap column.
#include "../kernels.h"
#include "pool_max_rows.h"
#include "pool_max_windows.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// Parts made in one pass over the ring.
constexpr int kGroup = 4;

// part[k][e], 0 <= k < G: sum of grad[i][e] over those i where tap[i][e] == base[i] + k.
template <int G, class A, class Tap>
void sum_parts(const A* const* grad, const Tap* const* tap, const int32_t* base, int64_t count, int64_t n, A* part, int64_t pitch) {
  using V = Lanes<A>;
  using X = TapLanes<A, Tap>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V sum[G];
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) sum[k] = V::set(0);
    for (int64_t i = 0; i < count; ++i) {
      const typename V::V g = V::get(grad[i] + e);
      const typename X::I t = X::get(tap[i] + e);
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) sum[k] = X::add_where(sum[k], t, X::set(base[i] + k), g);
    }
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) V::put(part + k * pitch + e, sum[k]);
  }
}

// Tap is uint8_t for a given argmax and where a recomputed one fits.
template <class T, class Tap>
class MaxGradient {
  using A = typename Compute<T>::type;

 public:
  MaxGradient(const MaxPoolBackward& p, const PoolPlan& plan, Carver& carver)
      : p_(p), g_(p.g), grad_reader_(pooled_map(p.g, p.layout), nullptr, nullptr), tap_reader_(pooled_map(p.g, p.layout), nullptr, nullptr),
        writer_(plain_map(p.g, p.layout), static_cast<T*>(p.dx)), argmax_(p.g, p.layout, p.x, carver, span(p.g, plan), plan.channels, plan.rows) {
    const Room room(p, plan);
    pitch_ = room.pitch, tap_pitch_ = room.tap_pitch, window_ = room.window;
    grad_ = carver.take<A>(window_.slots() * pitch_ + kSlack), tap_ = carver.take<Tap>(window_.slots() * tap_pitch_ + kSlack);
    part_ = carver.take<A>(room.parts * pitch_ + kSlack);
    row_grad_ = carver.take<const A*>(g_.kh), row_tap_ = carver.take<const Tap*>(g_.kh), base_ = carver.take<int32_t>(g_.kh);
    row_ = carver.take<T>(pitch_ + kSlack);
    const DealtMap map = pooled_map(g_, p.layout);
    grad_reader_ = RowReader<T>(map, static_cast<const T*>(p.grad), carver.take<T>(room.deal));
    tap_reader_ = RowReader<uint8_t>(map, p.argmax, carver.take<uint8_t>(room.deal));
  }

  static int64_t scratch_bytes(const MaxPoolBackward& p, const PoolPlan& plan) {
    const Room room(p, plan);
    return room.window.slots() * (room.pitch * int64_t(sizeof(A)) + room.tap_pitch * int64_t(sizeof(Tap))) + room.parts * room.pitch * int64_t(sizeof(A)) +
        p.g.kh * 20 + (room.pitch + kSlack + room.deal) * int64_t(sizeof(T)) + room.deal + 4 * kSlack * 8 + 1024 +
        MaxRows<T, Tap, true>::scratch_bytes(p.g, span(p.g, plan), plan.channels, plan.rows);
  }

  void strip(const Strip& s) {
    const int64_t xa = s.x0 + g_.pw - (g_.kw - 1) * g_.dw, xb = s.x1 + g_.pw;
    s_ = s;
    grad_reader_.start(s, xa, xb, g_.dense_w), tap_reader_.start(s, xa, xb, g_.dense_w), writer_.start(s);
    fill_row(grad_, window_.slots() * pitch_, A(0));
    Strip seen = s;  // the columns of the dense map whose windows reach the strip
    seen.x0 = xa > 0 ? xa : 0, seen.x1 = xb < g_.dense_w ? xb : g_.dense_w;
    seen_at_ = (seen.x0 - xa) * s.channels;
    if (!p_.argmax) argmax_.start(seen);
    for_each_class(s, g_.dh, [&](int64_t iy, int64_t rows) {
      // Tap row ky of window row y is input row y - ph + ky*dh.
      const int64_t first = iy + g_.ph - (g_.kh - 1) * g_.dh;
      window_.begin(first, g_.dense_h, rows);
      if (!p_.argmax && window_.hi > window_.lo) argmax_.begin_class(window_.row(window_.lo), window_.hi - window_.lo);
      for (int64_t j = 0; j < rows; ++j, iy += g_.dh) {
        T* const direct = writer_.direct(iy);
        row(j, direct ? direct : row_);
        if (!direct) writer_.write(iy, row_);
      }
    });
  }

 private:
  static int64_t span(const PoolGeometry& g, const PoolPlan& plan) { return plan.columns + (g.kw - 1) * g.dw; }
  struct Room {
    int64_t pitch, tap_pitch, parts, deal;
    RowWindow window;
    Room(const MaxPoolBackward& p, const PoolPlan& plan) {
      const int64_t loaded = span(p.g, plan) * plan.channels;
      pitch = row_pitch<A>(loaded), tap_pitch = row_pitch<Tap>(loaded);
      window = RowWindow::of(p.g.kh, p.g.dh, 1 << 20, 1);
      parts = p.g.kw;
      deal = RowReader<T>::deal_elements(pooled_map(p.g, p.layout), span(p.g, plan)) + kSlack;
    }
  };

  void fetch(int64_t unit, int64_t slot) {
    const int64_t y = window_.row(unit);
    typename Lanes<A>::V ignored = Lanes<A>::set(0);
    grad_reader_.template read<Look::past>(y, grad_ + slot * pitch_, ignored);
    Tap* const tap = tap_ + slot * tap_pitch_;
    if (!p_.argmax)
      argmax_.row(unit - window_.lo, row_, tap + seen_at_);
    else if constexpr (sizeof(Tap) == 1)
      tap_reader_.copy(y, tap);
  }

  void row(int64_t j, T* out) {
    window_.need(j, [&](int64_t unit, int64_t, int64_t slot) { fetch(unit, slot); });
    const int64_t from = window_.from(j), to = window_.to(j), count = to > from ? to - from : 0;
    for (int64_t i = 0; i < count; ++i) {
      // The last row of the ring holds the windows whose first tap row this is.
      const int64_t slot = window_.slot(from + i), ky = g_.kh - 1 - (from + i - j);
      row_grad_[i] = grad_ + slot * pitch_, row_tap_[i] = tap_ + slot * tap_pitch_, base_[i] = int32_t(ky * g_.kw);
    }
    const int64_t n = (s_.x1 - s_.x0) * s_.channels, step = g_.dw * s_.channels, loaded = n + (g_.kw - 1) * step;
    for (int64_t k = 0; k < g_.kw; k += kGroup) {
      const int64_t group = g_.kw - k < kGroup ? g_.kw - k : kGroup;
      A* const part = part_ + k * pitch_;
      if (group == 1) sum_parts<1>(row_grad_, row_tap_, base_, count, loaded, part, pitch_);
      if (group == 2) sum_parts<2>(row_grad_, row_tap_, base_, count, loaded, part, pitch_);
      if (group == 3) sum_parts<3>(row_grad_, row_tap_, base_, count, loaded, part, pitch_);
      if (group == 4) sum_parts<4>(row_grad_, row_tap_, base_, count, loaded, part, pitch_);
      for (int64_t i = 0; i < count; ++i) base_[i] += int32_t(kGroup);
    }
    unrolled(g_.kw, [&](auto k) { join<decltype(k)::value>(n, step, out); });
  }

  // out[e] = sum of part[k][e + (kw-1-k)*step].
  template <int K>
  void join(int64_t n, int64_t step, T* out) const {
    using V = Lanes<A>;
    const int64_t kw = K ? K : g_.kw;
    const auto sum_at = [&](int64_t e) {
      typename V::V sum = V::get(part_ + e + (kw - 1) * step);
#pragma GCC unroll 4
      for (int64_t k = 1; k < (K ? K : kw); ++k) sum += V::get(part_ + k * pitch_ + e + (kw - 1 - k) * step);
      return sum;
    };
    int64_t e = 0;
    for (; e + V::n <= n; e += V::n) Rounded::put(out + e, sum_at(e));
    if (e < n) Rounded::put_part(out + e, sum_at(e), int(n - e));
  }

  const MaxPoolBackward& p_;
  const PoolGeometry& g_;
  RowReader<T> grad_reader_;
  RowReader<uint8_t> tap_reader_;
  RowWriter<T> writer_;
  MaxRows<T, Tap, true> argmax_;
  RowWindow window_;
  int64_t pitch_, tap_pitch_, seen_at_;
  A *grad_, *part_;
  Tap* tap_;
  const A** row_grad_;
  const Tap** row_tap_;
  int32_t* base_;
  T* row_;
  Strip s_;
};

bool gathers_windows(const MaxPoolBackward& p) {
  return p.argmax && !p.g.fragments && p.dtype != DType::f64 && p.g.kh == p.g.kw && (p.g.kh == 2 || p.g.kh == 3);
}

template <int K, class T>
void gather_strip(const MaxPoolBackward& p, const Strip& s) {
  const PoolGeometry& g = p.g;
  const DealtMap from = pooled_map(g, p.layout), to = plain_map(g, p.layout);
  const int64_t channels = to.pixel(), n = (s.x1 - s.x0) * channels, at = (s.x0 + g.pw) * channels;
  WindowRows<K, T> rows;
  rows.lo = -at, rows.hi = g.dense_w * channels - at;
  // Far enough for memory to answer: a row, or 4 KB of short ones.
  const int64_t pitch = g.dh * g.dense_w * channels;
  rows.ahead = pitch * (pitch < 1024 ? ceil_div(1024, pitch) : 1);
  // One residue class of the dilation after the other: neighbours in a class share all gradient rows but one.
  for_each_class(s, g.dh, [&](int64_t iy, int64_t count) {
    for (; count > 0; --count, iy += g.dh) {
      rows.count = 0;
      for (int ky = K - 1; ky >= 0; --ky) {
        const int64_t y = iy + g.ph - ky * g.dh;
        if (y < 0 || y >= g.dense_h) continue;
        if (rows.count == 0) rows.ky = ky;
        const int64_t window = from.offset(s.n, s.c, y, 0) + at;
        rows.grad[rows.count] = static_cast<const T*>(p.grad) + window;
        rows.tap[rows.count++] = p.argmax + window;
      }
      T* const out = static_cast<T*>(p.dx) + to.offset(s.n, s.c, iy, 0) + s.x0 * channels;
      (rows.count == K ? &gather_row<K, K, T> : &gather_row<K, 0, T>)(rows, n, g.dw * channels, out);
    }
  });
}

// f.run<T, Tap>() for p.
template <class T, class F>
void with_tap(const MaxPoolBackward& p, const F& f) {
  if (p.g.kh * p.g.kw <= 256) return f.template run<T, uint8_t>();
  f.template run<T, int32_t>();
}
template <class F>
void dispatch(const MaxPoolBackward& p, const F& f) {
  switch (p.dtype) {
    case DType::f32: return with_tap<float>(p, f);
    case DType::f16: return with_tap<f16>(p, f);
    case DType::bf16: return with_tap<bf16>(p, f);
    case DType::f64: return with_tap<double>(p, f);
  }
}

struct Backward {
  const MaxPoolBackward& p;
  const PoolPlan& plan;
  int64_t begin, end;
  void* scratch;
  template <class T, class Tap>
  void run() const {
    if constexpr (sizeof(T) < 8) {
      if (gathers_windows(p)) {
        for (int64_t item = begin; item < end; ++item)
          (p.g.kh == 2 ? &gather_strip<2, T> : &gather_strip<3, T>)(p, strip_of(plan, p.g, p.layout, p.g.h, p.g.w, item));
        return;
      }
    }
    Carver carver{static_cast<char*>(scratch)};
    MaxGradient<T, Tap> gradient(p, plan, carver);
    for (int64_t item = begin; item < end; ++item) gradient.strip(strip_of(plan, p.g, p.layout, p.g.h, p.g.w, item));
  }
};
struct Measure {
  const MaxPoolBackward& p;
  PoolPlan& plan;
  template <class T, class Tap>
  void run() const {
    plan.scratch_bytes = MaxGradient<T, Tap>::scratch_bytes(p, plan);
  }
};

void max_pool_backward(const MaxPoolBackward& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  dispatch(p, Backward{p, plan, begin, end, scratch});
}

PoolPlan max_pool_backward_plan(const MaxPoolBackward& p, int threads) {
  const int64_t element = p.dtype == DType::f64 ? 8 : 4, recomputed = p.argmax ? 0 : element * (p.g.kh + 1);
  if (gathers_windows(p)) return plan_blocks(p.g, p.layout, p.g.h, p.g.w, 1, element + 1, threads);
  PoolPlan plan = plan_strips(p.g, p.layout, p.g.h, p.g.w, 1, (element + 1) * p.g.kh + element * p.g.kw + recomputed, threads);
  dispatch(p, Measure{p, plan});
  return plan;
}

}  // namespace

void register_pooling_max_backward(Kernels& t) {
  t.max_pool_backward_plan = &max_pool_backward_plan;
  t.max_pool_backward = &max_pool_backward;
}

}  // namespace fastconv::FASTCONV_ISA
