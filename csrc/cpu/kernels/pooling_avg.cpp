// Average pool at every offset, and its gradient: both are sums over a rectangle of taps, taken along columns and then along rows, each in
// tap order. The forward pass divides what it stores, the backward pass what it loads.
#include "../kernels.h"
#include "pool_rows.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// to[e] = sum of from[e + k*step], 0 <= k < taps.
template <class A>
void sum_across(const A* from, A* to, int64_t n, int64_t step, int64_t taps) {
  using V = Lanes<A>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V sum = V::get(from + e);
    for (int64_t k = 1; k < taps; ++k) sum += V::get(from + e + k * step);
    V::put(to + e, sum);
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
  WindowSum(const AvgPool& p, const PoolPlan& plan, Carver& carver)
      : p_(p), g_(p.g), reader_(source(p), static_cast<const T*>(p.in), carver.take<T>(Room(p, plan).deal)),
        writer_(p.backward ? plain_map(p.g, p.layout) : pooled_map(p.g, p.layout), static_cast<T*>(p.out)) {
    const Room room(p, plan);
    // The gradient's window is the mirror image: what the forward pass leaves out on the left, it reaches beyond.
    y_ = {p.backward ? g_.dense_h : g_.h, g_.kh, p.backward ? (g_.kh - 1) * g_.dh - g_.ph : g_.ph, g_.dh};
    x_ = {p.backward ? g_.dense_w : g_.w, g_.kw, p.backward ? (g_.kw - 1) * g_.dw - g_.pw : g_.pw, g_.dw};
    pitch_ = room.pitch, window_ = room.window;
    staged_ = carver.take<A>(room.staged);
    values_ = carver.take<A>(room.ring);
    divisor_ = carver.take<A>(pitch_ + kSlack);
    rows_ = carver.take<const A*>(g_.kh);
    row_ = carver.take<T>(pitch_ + kSlack);
  }

  static int64_t scratch_bytes(const AvgPool& p, const PoolPlan& plan) {
    const Room room(p, plan);
    return (room.staged + room.ring + room.pitch + kSlack) * int64_t(sizeof(A)) + p.g.kh * 8 + (room.deal + room.pitch + kSlack) * int64_t(sizeof(T)) + 512;
  }

  void strip(const Strip& s) {
    s_ = s;
    xa_ = s.x0 - x_.padding;
    reader_.start(s, xa_, s.x1 - x_.padding + (x_.kernel - 1) * x_.dilation, x_.source), writer_.start(s);
    fill_row(staged_, window_.block * pitch_, A(0));
    prepare_divisor();
    const int64_t n = (s.x1 - s.x0) * s.channels, width = p_.backward ? g_.w : g_.dense_w, height = p_.backward ? g_.h : g_.dense_h;
    const int64_t held = ((s.x1 < width ? s.x1 : width) - s.x0) * s.channels;
    const T fill = narrow<T>(p_.fill);
    for_each_class(s, y_.dilation, [&](int64_t y, int64_t rows) {
      window_.begin(y - y_.padding, y_.source, rows);
      for (int64_t j = 0; j < rows; ++j, y += y_.dilation) {
        T* const direct = writer_.direct(y);
        T* const to = direct ? direct : row_;
        if (y < height) sum_row(j, y, n, to);
        const int64_t filled = y < height ? held : 0;
        fill_row(to + filled, n - filled, fill);
        if (!direct) writer_.write(y, row_);
      }
    });
  }

 private:
  static DealtMap source(const AvgPool& p) { return p.backward ? pooled_map(p.g, p.layout) : plain_map(p.g, p.layout); }
  struct Room {
    int64_t pitch, staged, ring, deal;
    RowWindow window;
    Room(const AvgPool& p, const PoolPlan& plan) {
      const PoolGeometry& g = p.g;
      const int64_t columns = plan.columns + (g.kw - 1) * g.dw, halo = (g.kw - 1) * g.dw * plan.channels;
      pitch = row_pitch<A>(columns * plan.channels);
      window = RowWindow::of(g.kh, g.dh, pitch, ceil_div(plan.rows, g.dh));
      staged = window.block * pitch + halo + kSlack, ring = window.slots() * pitch + kSlack;
      deal = RowReader<T>::deal_elements(source(p), columns);
    }
  };

  bool overridden() const { return p_.divisor != 0; }
  A row_count(int64_t dense_y) const {
    return overridden() ? A(p_.divisor) : A(counted(dense_y, g_.h, g_.kh, g_.ph, g_.dh, p_.count_include_pad));
  }

  // Per column of the dense map, as it lies in a stored row (forward) or a loaded one (backward).
  void prepare_divisor() {
    fill_row(divisor_, pitch_ + kSlack, A(1));
    if (overridden()) return;
    const int64_t first = p_.backward ? xa_ : s_.x0, columns = s_.x1 - s_.x0 + (p_.backward ? (x_.kernel - 1) * x_.dilation : 0);
    for (int64_t i = 0; i < columns; ++i)
      if (first + i >= 0 && first + i < g_.dense_w)
        fill_row(divisor_ + i * s_.channels, s_.channels, A(counted(first + i, g_.w, g_.kw, g_.pw, g_.dw, p_.count_include_pad)));
  }

  void sum_row(int64_t j, int64_t y, int64_t n, T* out) {
    window_.need(j, [&](int64_t unit, int64_t count, int64_t slot) { reduce(unit, count, slot); });
    const int64_t from = window_.from(j), count = window_.to(j) - from;
    for (int64_t i = 0; i < count; ++i) rows_[i] = values_ + window_.slot(from + i) * pitch_;
    sum_down<T, A>(rows_, count, p_.backward ? nullptr : divisor_, p_.backward ? A(1) : row_count(y), n, out);
  }

  void reduce(int64_t unit, int64_t count, int64_t slot) {
    const int64_t step = x_.dilation * s_.channels, n = (s_.x1 - s_.x0) * s_.channels;
    typename Lanes<A>::V ignored = Lanes<A>::set(0);
    for (int64_t i = 0; i < count; ++i) {
      reader_.template read<Look::past>(window_.row(unit + i), staged_ + i * pitch_, ignored);
      if (p_.backward) divide(staged_ + i * pitch_, divisor_, row_count(window_.row(unit + i)), n + (x_.kernel - 1) * step);
    }
    // Rows of a block lie one behind the other: one loop runs through them and their halos.
    sum_across(staged_, values_ + slot * pitch_, (count - 1) * pitch_ + n, step, x_.kernel);
  }

  const AvgPool& p_;
  const PoolGeometry& g_;
  RowReader<T> reader_;
  RowWriter<T> writer_;
  Axis y_, x_;
  RowWindow window_;
  A *staged_, *values_, *divisor_;
  const A** rows_;
  T* row_;
  int64_t pitch_, xa_;
  Strip s_;
};

template <class T>
void run(const AvgPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  Carver carver{static_cast<char*>(scratch)};
  WindowSum<T> sum(p, plan, carver);
  const int64_t height = p.backward ? p.g.h : pooled_height(p.g), width = p.backward ? p.g.w : pooled_width(p.g);
  for (int64_t item = begin; item < end; ++item) sum.strip(strip_of(plan, p.g, p.layout, height, width, item));
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
    case DType::f32: plan.scratch_bytes = WindowSum<float>::scratch_bytes(p, plan); break;
    case DType::f64: plan.scratch_bytes = WindowSum<double>::scratch_bytes(p, plan); break;
    default: plan.scratch_bytes = WindowSum<bf16>::scratch_bytes(p, plan);
  }
  return plan;
}

}  // namespace

void register_pooling_avg(Kernels& t) {
  t.avg_pool_plan = &avg_pool_plan;
  t.avg_pool = &avg_pool;
}

}  // namespace fastconv::FASTCONV_ISA
