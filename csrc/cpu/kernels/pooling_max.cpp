// Max pool at every offset: stitched map or fragments, with or without the argmax. An item is a strip; its rows come from pool_max_block.h
// for windows of 2x2 and 3x3, from pool_max_rows.h for all others.
#include "../kernels.h"
#include "pool_max_block.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// Flat input indices of a row from its taps; -1 where the whole window lies in the padding.
template <class Tap>
class FlatIndices {
 public:
  // columns: of a strip; 0 where no indices are wanted.
  FlatIndices(const PoolGeometry& g, Carver& carver, int64_t columns) : g_(g) {
    if (columns == 0) return;
    offset_ = carver.take<int64_t>(g.kh * g.kw), inside_ = carver.take<uint8_t>(columns);
    for (int64_t ky = 0; ky < g.kh; ++ky)
      for (int64_t kx = 0; kx < g.kw; ++kx) offset_[ky * g.kw + kx] = ky * g.dh * g.w + kx * g.dw;
  }
  static int64_t scratch_bytes(const PoolGeometry& g, int64_t columns) { return g.kh * g.kw * 8 + columns + 128; }

  void start(const Strip& s) {
    s_ = s;
    for (int64_t x = s.x0; x < s.x1; ++x) inside_[x - s.x0] = reaches(x - g_.pw, g_.kw, g_.dw, g_.w);
  }
  void row(int64_t y, const Tap* tap, int64_t* out) const {
    const bool row_inside = reaches(y - g_.ph, g_.kh, g_.dh, g_.h);
    int64_t base = (y - g_.ph) * g_.w + s_.x0 - g_.pw;
    for (int64_t x = 0; x < s_.x1 - s_.x0; ++x, ++base, tap += s_.channels, out += s_.channels) {
      if (row_inside && inside_[x])
        for (int64_t c = 0; c < s_.channels; ++c) out[c] = base + offset_[tap[c]];
      else
        fill_row(out, s_.channels, int64_t(-1));
    }
  }

 private:
  // Whether any of start + k*dilation lies in [0, size).
  static bool reaches(int64_t start, int64_t kernel, int64_t dilation, int64_t size) {
    const int64_t k = start < 0 ? ceil_div(-start, dilation) : 0;
    return k < kernel && start + k * dilation < size;
  }
  const PoolGeometry& g_;
  int64_t* offset_;
  uint8_t* inside_;
  Strip s_;
};

enum class Want { values, argmax, indices };

bool takes_blocks(const MaxPool& p) { return p.dtype != DType::f64 && p.g.kh == p.g.kw && (p.g.kh == 2 || p.g.kh == 3); }

template <class T, class Tap, Want want>
class Forward {
  static constexpr bool kTaps = want != Want::values;

 public:
  Forward(const MaxPool& p, const PoolPlan& plan, Carver& carver)
      : p_(p), g_(p.g), blocks_(takes_blocks(p)), pitch_(row_elements(plan)), x_(static_cast<const T*>(p.x)), values_(pooled_map(p.g, p.layout), static_cast<T*>(p.out)),
        argmax_(pooled_map(p.g, p.layout), p.argmax), indices_(pooled_map(p.g, p.layout), p.indices), flat_(p.g, carver, want == Want::indices ? plan.columns : 0),
        fill_(narrow<T>(p.fill)), row_(carver.take<T>(kBlockRows * pitch_)), tap_row_(carver.take<Tap>(kBlockRows * pitch_)),
        index_row_(carver.take<int64_t>(want == Want::indices ? pitch_ : 0)), rows_(p.g, p.layout, p.x, carver, blocks_ ? 0 : plan.columns, plan.channels, plan.rows) {}

  static int64_t scratch_bytes(const MaxPool& p, const PoolPlan& plan) {
    return row_elements(plan) * int64_t(kBlockRows * (sizeof(T) + sizeof(Tap)) + (want == Want::indices ? 8 : 0)) + FlatIndices<Tap>::scratch_bytes(p.g, plan.columns) +
        MaxRows<T, Tap, kTaps>::scratch_bytes(p.g, takes_blocks(p) ? 0 : plan.columns, plan.channels, plan.rows) + 512;
  }

  void strip(const Strip& s) {
    s_ = s, held_ = s;
    held_.x1 = s.x1 < g_.dense_w ? s.x1 : g_.dense_w;
    values_.start(s), argmax_.start(s);
    if constexpr (want == Want::indices) indices_.start(s), flat_.start(held_);
    if (!blocks_) rows_.start(held_);
    // Rows from dense_h on are the tail of short fragments.
    for_each_class(s, g_.dh, [&](int64_t y, int64_t count) {
      const int64_t held = y < g_.dense_h ? ceil_div(g_.dense_h - y, g_.dh) : 0, rows = count < held ? count : held;
      if (!blocks_)
        one_by_one(y, rows);
      else if (g_.kh == 2)
        in_blocks<2>(y, rows);
      else
        in_blocks<3>(y, rows);
      for (int64_t j = rows; j < count; ++j) finish(y + j * g_.dh, row_, tap_row_, 0);
    });
  }

 private:
  static int64_t row_elements(const PoolPlan& plan) { return plan.columns * plan.channels + kSlack; }

  void one_by_one(int64_t y, int64_t rows) {
    rows_.begin_class(y, rows);
    for (int64_t j = 0; j < rows; ++j, y += g_.dh) {
      T* const direct = values_.direct(y);
      Tap* const direct_tap = tap_at(y);
      rows_.row(j, direct ? direct : row_, direct_tap ? direct_tap : tap_row_);
      finish(y, direct ? direct : row_, direct_tap ? direct_tap : tap_row_, held_elements());
    }
  }

  template <int K>
  void in_blocks(int64_t y, int64_t rows) {
    if constexpr (sizeof(typename Compute<T>::type) == 4) {
      const DealtMap plain = plain_map(g_, p_.layout);
      // A stitched map takes the rows of a class where they belong; fragments are dealt out from scratch, a block at a time.
      if (!g_.fragments && want != Want::indices && rows > 0 && values_.direct(y)) {
        MaxBlocks<K, kTaps, T, Tap>::rows(g_, plain, x_, held_, y, rows, values_.direct(y), tap_at(y), g_.dh * g_.dense_w * plain.pixel());
        return;
      }
      for (int64_t j = 0; j < rows; j += kBlockRows) {
        const int64_t count = rows - j < kBlockRows ? rows - j : kBlockRows;
        MaxBlocks<K, kTaps, T, Tap>::rows(g_, plain, x_, held_, y, count, row_, tap_row_, pitch_);
        for (int64_t i = 0; i < count; ++i, y += g_.dh) finish(y, row_ + i * pitch_, tap_row_ + i * pitch_, held_elements());
      }
    }
  }

  int64_t held_elements() const { return (held_.x1 - held_.x0) * s_.channels; }
  Tap* tap_at(int64_t y) const {
    if constexpr (want == Want::argmax) return argmax_.direct(y);
    return nullptr;
  }

  // Fills the tail of a row from element `held` on, and takes it to its place where it isn't there yet.
  void finish(int64_t y, T* row, Tap* tap, int64_t held) {
    const int64_t n = (s_.x1 - s_.x0) * s_.channels;
    fill_row(row + held, n - held, fill_);
    if (row != values_.direct(y)) values_.write(y, row);
    if constexpr (want == Want::argmax) {
      fill_row(tap + held, n - held, Tap(0));
      if (tap != tap_at(y)) argmax_.write(y, tap);
    }
    if constexpr (want == Want::indices) {
      if (held > 0) flat_.row(y, tap, index_row_);
      fill_row(index_row_ + held, n - held, int64_t(-1));
      indices_.write(y, index_row_);
    }
  }

  const MaxPool& p_;
  const PoolGeometry& g_;
  const bool blocks_;
  const int64_t pitch_;
  const T* const x_;
  RowWriter<T> values_;
  RowWriter<uint8_t> argmax_;
  RowWriter<int64_t> indices_;
  FlatIndices<Tap> flat_;
  const T fill_;
  T* const row_;
  Tap* const tap_row_;
  int64_t* const index_row_;
  MaxRows<T, Tap, kTaps> rows_;
  Strip s_, held_;
};

// f.run<T, Tap, want>() of what p asks for.
template <class T, class F>
void with_want(const MaxPool& p, const F& f) {
  if (p.argmax) return f.template run<T, uint8_t, Want::argmax>();
  if (!p.indices) return f.template run<T, uint8_t, Want::values>();
  if (p.g.kh * p.g.kw <= 256) return f.template run<T, uint8_t, Want::indices>();
  f.template run<T, int32_t, Want::indices>();
}
template <class F>
void dispatch(const MaxPool& p, const F& f) {
  switch (p.dtype) {
    case DType::f32: return with_want<float>(p, f);
    case DType::f16: return with_want<f16>(p, f);
    case DType::bf16: return with_want<bf16>(p, f);
    case DType::f64: return with_want<double>(p, f);
  }
}

struct Run {
  const MaxPool& p;
  const PoolPlan& plan;
  int64_t begin, end;
  void* scratch;
  template <class T, class Tap, Want want>
  void run() const {
    Carver carver{static_cast<char*>(scratch)};
    Forward<T, Tap, want> forward(p, plan, carver);
    for (int64_t item = begin; item < end; ++item) forward.strip(strip_of(plan, p.g, p.layout, pooled_height(p.g), pooled_width(p.g), item));
  }
};
struct Measure {
  const MaxPool& p;
  PoolPlan& plan;
  template <class T, class Tap, Want want>
  void run() const {
    plan.scratch_bytes = Forward<T, Tap, want>::scratch_bytes(p, plan);
  }
};

void max_pool(const MaxPool& p, const PoolPlan& plan, int64_t begin, int64_t end, void* scratch) { dispatch(p, Run{p, plan, begin, end, scratch}); }

PoolPlan max_pool_plan(const MaxPool& p, int threads) {
  const int64_t element = (p.dtype == DType::f64 ? 8 : 4) + (p.argmax || p.indices ? 1 : 0), quantum = p.g.fragments ? p.g.sw : 1;
  PoolPlan plan = takes_blocks(p) ? plan_blocks(p.g, p.layout, pooled_height(p.g), pooled_width(p.g), quantum, element, threads)
                                  : plan_strips(p.g, p.layout, pooled_height(p.g), pooled_width(p.g), quantum, element * (p.g.kh + 1), threads);
  dispatch(p, Measure{p, plan});
  return plan;
}

}  // namespace

void register_pooling_max(Kernels& t) {
  t.max_pool_plan = &max_pool_plan;
  t.max_pool = &max_pool;
}

}  // namespace fastconv::FASTCONV_ISA
