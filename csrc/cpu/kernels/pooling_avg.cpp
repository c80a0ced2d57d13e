// Average pool at every offset, and its gradient: both are sums over a rectangle of taps, taken along columns and then along rows, each in
// tap order. The forward pass divides what it stores, the backward pass what it loads.
#include "../kernels.h"
#include "pool_rows.h"

namespace fastconv::FASTCONV_ISA {
namespace {

template <class A>
void sum_across(A* row, int64_t n, int64_t step, int64_t taps) {
  using V = Lanes<A>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V sum = V::get(row + e);
    for (int64_t k = 1; k < taps; ++k) sum += V::get(row + e + k * step);
    V::put(row + e, sum);
  }
}

// out[e] = sum of rows[i][e], divided by divisor[e] * scale where there is a divisor.
template <class T, class A>
void sum_down(const A* const* rows, int64_t count, const A* divisor, A scale, int64_t n, T* out) {
  using V = Lanes<A>;
  const typename V::V factor = V::set(scale);
  const auto sum_at = [&](int64_t e) {
    typename V::V sum = V::set(0);
    if (count > 0) sum = V::get(rows[0] + e);
    for (int64_t i = 1; i < count; ++i) sum += V::get(rows[i] + e);
    return divisor ? sum / (V::get(divisor + e) * factor) : sum;
  };
  int64_t e = 0;
  for (; e + V::n <= n; e += V::n) Rounded::put(out + e, sum_at(e));
  if (e < n) Rounded::put_part(out + e, sum_at(e), int(n - e));
}

template <class A>
void divide(A* row, const A* divisor, A scale, int64_t n) {
  using V = Lanes<A>;
  const typename V::V factor = V::set(scale);
  for (int64_t e = 0; e < n; e += V::n) V::put(row + e, V::get(row + e) / (V::get(divisor + e) * factor));
}

// Taps of the window at dense position `at` that the divisor counts along one axis; 1 where there is none, for the sum is 0 then.
int64_t counted(int64_t at, int64_t size, int64_t kernel, int64_t padding, int64_t dilation, bool include_pad) {
  const int64_t edge = include_pad ? padding : 0, start = at - padding;
  const int64_t low = start < -edge ? ceil_div(-edge - start, dilation) : 0;
  const int64_t high = start < size + edge ? ceil_div(size + edge - start, dilation) : 0;
  const int64_t taps = (high < kernel ? high : kernel) - low;
  return taps > 0 ? taps : 1;
}

// One axis of the sum: the destination's position t adds up source positions t - padding + k*dilation.
struct Axis {
  int64_t source, kernel, padding, dilation;
};

template <class T>
class WindowSum {
  using A = typename Compute<T>::type;

 public:
  WindowSum(const AvgPool& p, Carver& carver, int64_t columns, int64_t channels) : p_(p), g_(p.g) {
    const DealtMap plain = plain_map(g_, p.layout), pooled = pooled_map(g_, p.layout);
    from_ = p.backward ? pooled : plain, to_ = p.backward ? plain : pooled;
    // The gradient's window is the mirror image: what the forward pass leaves out on the left, it reaches beyond.
    y_ = {p.backward ? g_.dense_h : g_.h, g_.kh, p.backward ? (g_.kh - 1) * g_.dh - g_.ph : g_.ph, g_.dh};
    x_ = {p.backward ? g_.dense_w : g_.w, g_.kw, p.backward ? (g_.kw - 1) * g_.dw - g_.pw : g_.pw, g_.dw};
    const int64_t loaded = (columns + (g_.kw - 1) * g_.dw) * channels;
    pitch_ = ring_pitch<A>(loaded);
    values_ = carver.take<A>(pitch_ * g_.kh);
    divisor_ = carver.take<A>(pitch_);
    ring_ = {carver.take<int64_t>(g_.kh), g_.kh, g_.dh};
    rows_ = carver.take<const A*>(g_.kh);
    deal_ = carver.take<T>(loaded + kSlack + 2 * g_.sw);
    row_ = carver.take<T>(loaded + kSlack);
  }

  static int64_t scratch_bytes(const PoolGeometry& g, int64_t columns, int64_t channels) {
    const int64_t loaded = (columns + (g.kw - 1) * g.dw) * channels;
    return ring_pitch<A>(loaded) * (g.kh + 1) * int64_t(sizeof(A)) + g.kh * 16 + (loaded + kSlack + 2 * g.sw) * 2 * int64_t(sizeof(T)) + 1024;
  }

  void strip(const Strip& s, T fill) {
    s_ = s;
    ring_.reset();
    prepare_divisor();
    T* const out = static_cast<T*>(p_.out);
    const int64_t n = (s.x1 - s.x0) * s.channels, width = p_.backward ? g_.w : g_.dense_w, height = p_.backward ? g_.h : g_.dense_h;
    const int64_t held = ((s.x1 < width ? s.x1 : width) - s.x0) * s.channels;
    const bool direct = is_run(to_, s);
    for_each_row(s, y_.dilation, [&](int64_t y) {
      T* const to = direct ? run_at(to_, out, s, y) : row_;
      if (y < height) sum_row(y, n, to);
      for (int64_t e = y < height ? held : 0; e < n; ++e) to[e] = fill;
      if (!direct) store_row(to_, out, s, y, row_);
    });
  }

 private:
  bool overridden() const { return p_.divisor != 0; }
  A row_count(int64_t dense_y) const {
    return overridden() ? A(p_.divisor) : A(counted(dense_y, g_.h, g_.kh, g_.ph, g_.dh, p_.count_include_pad));
  }

  // Per column of the dense map, as it lies in a stored row (forward) or a loaded one (backward).
  void prepare_divisor() {
    const int64_t first = s_.x0 - (p_.backward ? x_.padding : 0), columns = s_.x1 - s_.x0 + (p_.backward ? (x_.kernel - 1) * x_.dilation : 0);
    for (int64_t i = 0; i < columns; ++i) {
      const bool inside = first + i >= 0 && first + i < g_.dense_w;
      const A taps = overridden() || !inside ? A(1) : A(counted(first + i, g_.w, g_.kw, g_.pw, g_.dw, p_.count_include_pad));
      for (int64_t c = 0; c < s_.channels; ++c) divisor_[i * s_.channels + c] = taps;
    }
    fill_row(divisor_ + columns * s_.channels, kSlack / 2, A(1));
  }

  void sum_row(int64_t y, int64_t n, T* out) {
    int64_t count = 0;
    for (int64_t k = 0; k < y_.kernel; ++k) {
      const int64_t from = y - y_.padding + k * y_.dilation;
      if (from < 0 || from >= y_.source) continue;
      const int64_t slot = ring_.slot(from);
      rows_[count++] = values_ + slot * pitch_;
      if (ring_.held[slot] != from) reduce(from, slot);
    }
    sum_down<T, A>(rows_, count, p_.backward ? nullptr : divisor_, p_.backward ? A(1) : row_count(y), n, out);
  }

  void reduce(int64_t from, int64_t slot) {
    A* row = values_ + slot * pitch_;
    const int64_t xa = s_.x0 - x_.padding, xb = s_.x1 - x_.padding + (x_.kernel - 1) * x_.dilation;
    load_row<T, A>(from_, static_cast<const T*>(p_.in), s_, from, xa, xb, x_.source, A(0), row, deal_);
    if (p_.backward) divide(row, divisor_, row_count(from), (xb - xa) * s_.channels);
    sum_across(row, (s_.x1 - s_.x0) * s_.channels, x_.dilation * s_.channels, x_.kernel);
    ring_.held[slot] = from;
  }

  const AvgPool& p_;
  const PoolGeometry& g_;
  DealtMap from_, to_;
  Axis y_, x_;
  A *values_, *divisor_;
  int64_t pitch_;
  RowRing ring_;
  const A** rows_;
  T *deal_, *row_;
  Strip s_;
};

template <class T>
void run(const AvgPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  Carver carver{static_cast<char*>(scratch)};
  WindowSum<T> sum(p, carver, plan.columns, plan.channels);
  const int64_t height = p.backward ? p.g.h : pooled_height(p.g), width = p.backward ? p.g.w : pooled_width(p.g);
  for (int64_t item = begin; item < end; ++item) sum.strip(strip_of(plan, p.g, p.layout, height, width, item), narrow<T>(p.fill));
}

void avg_pool(const AvgPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  switch (p.dtype) {
    case DType::f32: return run<float>(p, plan, begin, end, scratch);
    case DType::f16: return run<f16>(p, plan, begin, end, scratch);
    case DType::bf16: return run<bf16>(p, plan, begin, end, scratch);
    case DType::f64: return run<double>(p, plan, begin, end, scratch);
  }
}

PoolPlan avg_pool_plan(const AvgPool& p, int threads) {
  const PoolGeometry& g = p.g;
  const int64_t height = p.backward ? g.h : pooled_height(g), width = p.backward ? g.w : pooled_width(g);
  PoolPlan plan = plan_strips(g, p.layout, height, width, g.fragments && !p.backward ? g.sw : 1, (p.dtype == DType::f64 ? 8 : 4) * (g.kh + 1), threads);
  switch (p.dtype) {
    case DType::f32: plan.scratch_bytes = WindowSum<float>::scratch_bytes(g, plan.columns, plan.channels); break;
    case DType::f64: plan.scratch_bytes = WindowSum<double>::scratch_bytes(g, plan.columns, plan.channels); break;
    default: plan.scratch_bytes = WindowSum<bf16>::scratch_bytes(g, plan.columns, plan.channels);
  }
  return plan;
}

}  // namespace

void register_pooling_avg(Kernels& t) {
  t.avg_pool_plan = &avg_pool_plan;
  t.avg_pool = &avg_pool;
}

}  // namespace fastconv::FASTCONV_ISA
