// Max pool at every offset: stitched map or fragments, with or without the argmax. An item is a strip; see pool_max_rows.h for its rows.
#include "../kernels.h"
#include "pool_max_rows.h"

namespace fastconv::FASTCONV_ISA {
namespace {

enum class Want { values, argmax, indices };

template <Want>
struct TapOf {
  using type = uint8_t;
};
template <>
struct TapOf<Want::indices> {
  using type = int32_t;
};

template <class T>
void set_range(T* row, int64_t from, int64_t to, T value) {
  for (int64_t e = from; e < to; ++e) row[e] = value;
}

// Flat input indices from taps; -1 where the whole window lies in the padding.
void flat_indices(const PoolGeometry& g, const Strip& s, int64_t y, const int32_t* tap, int64_t* out) {
  for (int64_t x = s.x0; x < s.x1; ++x)
    for (int64_t c = 0; c < s.channels; ++c, ++tap, ++out) {
      const int64_t iy = y - g.ph + *tap / g.kw * g.dh, ix = x - g.pw + *tap % g.kw * g.dw;
      *out = iy >= 0 && iy < g.h && ix >= 0 && ix < g.w ? iy * g.w + ix : -1;
    }
}

template <class T, Want want>
int64_t scratch_bytes(const PoolGeometry& g, int64_t columns, int64_t channels) {
  const int64_t row = columns * channels + kSlack;
  return MaxRows<T, want != Want::values>::scratch_bytes(g, columns, channels) + row * int64_t(sizeof(T) + (want == Want::values ? 0 : want == Want::argmax ? 1 : 12)) + 256;
}

template <class T, Want want>
void forward(const MaxPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  using Tap = typename TapOf<want>::type;
  const PoolGeometry& g = p.g;
  Carver carver{static_cast<char*>(scratch)};
  MaxRows<T, want != Want::values> rows(g, p.layout, p.x, carver, plan.columns, plan.channels);
  const int64_t room = plan.columns * plan.channels + kSlack;
  T* row = carver.take<T>(room);
  Tap* tap = carver.take<Tap>(want == Want::values ? 0 : room);
  int64_t* index = carver.take<int64_t>(want == Want::indices ? room : 0);

  const DealtMap map = pooled_map(g, p.layout);
  const int64_t height = pooled_height(g), width = pooled_width(g);
  const T fill = narrow<T>(p.fill);
  T* const out = static_cast<T*>(p.out);
  for (int64_t item = begin; item < end; ++item) {
    const Strip s = strip_of(plan, g, p.layout, height, width, item);
    const int64_t n = (s.x1 - s.x0) * s.channels, held = ((s.x1 < g.dense_w ? s.x1 : g.dense_w) - s.x0) * s.channels;
    const bool direct = is_run(map, s);
    rows.start(s);
    for_each_row(s, g.dh, [&](int64_t y) {
      // A fragment's tail: whole rows beyond the dense map, or columns from `filled` on.
      const int64_t filled = y < g.dense_h ? held : 0;
      T* const to = direct ? run_at(map, out, s, y) : row;
      if (y < g.dense_h) rows.row(y, to, tap);
      set_range(to, filled, n, fill);
      if (!direct) store_row(map, out, s, y, row);
      if constexpr (want == Want::argmax) {
        set_range(tap, filled, n, uint8_t(0));
        store_row(map, p.argmax, s, y, tap);
      }
      if constexpr (want == Want::indices) {
        if (y < g.dense_h) flat_indices(g, s, y, tap, index);
        set_range(index, filled, n, int64_t(-1));
        store_row(map, p.indices, s, y, index);
      }
    });
  }
}

template <class T>
void dispatch(const MaxPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  if (p.indices) return forward<T, Want::indices>(p, plan, begin, end, scratch);
  if (p.argmax) return forward<T, Want::argmax>(p, plan, begin, end, scratch);
  forward<T, Want::values>(p, plan, begin, end, scratch);
}

template <class T>
int64_t dispatch_bytes(const MaxPool& p, int64_t columns, int64_t channels) {
  if (p.indices) return scratch_bytes<T, Want::indices>(p.g, columns, channels);
  if (p.argmax) return scratch_bytes<T, Want::argmax>(p.g, columns, channels);
  return scratch_bytes<T, Want::values>(p.g, columns, channels);
}

void max_pool(const MaxPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) {
  switch (p.dtype) {
    case DType::f32: return dispatch<float>(p, plan, begin, end, scratch);
    case DType::f16: return dispatch<f16>(p, plan, begin, end, scratch);
    case DType::bf16: return dispatch<bf16>(p, plan, begin, end, scratch);
    case DType::f64: return dispatch<double>(p, plan, begin, end, scratch);
  }
}

PoolPlan max_pool_plan(const MaxPool& p, int threads) {
  const bool taps = p.argmax || p.indices;
  const int64_t element = (p.dtype == DType::f64 ? 8 : 4) + (taps ? 4 : 0);
  PoolPlan plan = plan_strips(p.g, p.layout, pooled_height(p.g), pooled_width(p.g), p.g.fragments ? p.g.sw : 1, element * p.g.kh, threads);
  switch (p.dtype) {
    case DType::f32: plan.scratch_bytes = dispatch_bytes<float>(p, plan.columns, plan.channels); break;
    case DType::f64: plan.scratch_bytes = dispatch_bytes<double>(p, plan.columns, plan.channels); break;
    default: plan.scratch_bytes = dispatch_bytes<bf16>(p, plan.columns, plan.channels);
  }
  return plan;
}

}  // namespace

void register_pooling_max(Kernels& t) {
  t.max_pool_plan = &max_pool_plan;
  t.max_pool = &max_pool;
}

}  // namespace fastconv::FASTCONV_ISA
