// Depthwise backward with channels in the lanes of a vector: channels_last as it lies in memory, and every contiguous case that the flat
// kernel (depthwise_backward_planes.cpp) does not take, through transposed rows.
//
// An item is a chunk of channels in a strip of rows of one image. It owns its rows of the input, so nothing is computed twice. Gradient rows are
// staged as float32 in a ring: the rows that one input row needs. Rows a dilation apart follow each other, so the ring holds as many
// rows as the kernel has, whatever the dilation. Along a row, taps that leave the map are cut out by segments, except where a border is so
// short that zeros beside the staged row are cheaper.
#include "depthwise_backward.h"
#include "depthwise_backward_taps.h"

namespace fastconv::FASTCONV_ISA {

namespace {

struct ColumnClass {
  AxisClass axis;
  Segment* segments;
  int64_t segment_count;
};

// A dilated axis of stride 1 is walked residue by residue.
struct RowOrder {
  int64_t rows, step;
  RowOrder(int64_t rows, const ConvGeometry& g) : rows(rows), step(g.sh == 1 ? g.dh : 1) {}
  int64_t row(int64_t position) const {
    const int64_t each = rows / step, longer = rows % step, head = longer * (each + 1);
    if (position < head) return position % (each + 1) * step + position / (each + 1);
    return (position - head) % each * step + longer + (position - head) / each;
  }
  int64_t position(int64_t row) const {
    const int64_t residue = row % step;
    return residue * (rows / step) + min64(residue, rows % step) + row / step;
  }
};

struct Buffers {
  int64_t slots, lanes, pad_left, slot_floats;
  float *ring, *gate, *x, *raw_x, *dx, *weight;
  int64_t* slot_row;
  uint8_t* counted;
  const float** rows;
  AxisClass* row_classes;
  ColumnClass* columns;
  Segment* segments;
  int64_t bytes;

  Buffers(const ConvGeometry& g, int64_t blocks, void* memory) {
    Carver carve(memory);
    lanes = blocks * L;
    slots = g.sh == 1 ? g.kh : (g.kh - 1) * g.dh / g.sh + 2;
    pad_left = 0;
    int64_t pad_right = 0;
    for (int64_t r = 0; r < min64(g.sw, g.w); ++r) {
      const AxisClass c = axis_class(r, g.w, g.kw, g.sw, g.dw, g.pl);
      if (!c.taps) continue;
      pad_left = max64(pad_left, (c.taps - 1) * c.shift - c.origin);
      pad_right = max64(pad_right, c.origin + c.count - g.ow);
    }
    slot_floats = (pad_left + g.ow + pad_right) * lanes;
    ring = carve.take<float>(slots * slot_floats);
    gate = carve.take<float>(g.ow * lanes);
    x = carve.take<float>(g.w * lanes);
    raw_x = carve.take<float>(g.w * lanes);
    dx = carve.take<float>(g.w * lanes);
    weight = carve.take<float>(g.taps() * lanes);
    slot_row = carve.take<int64_t>(slots);
    counted = carve.take<uint8_t>(g.oh);
    rows = carve.take<const float*>(g.kh);
    row_classes = carve.take<AxisClass>(g.sh);
    columns = carve.take<ColumnClass>(g.sw);
    segments = carve.take<Segment>(2 * g.kw + g.sw);
    bytes = carve.bytes();
  }
};

template <class T>
class PixelWorker {
 public:
  PixelWorker(const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, float* partials, void* scratch)
      : p_(p), gate_(gate), plan_(plan), g_(p.g), partials_(partials), b_(p.g, plan.blocks, scratch), in_order_(p.g.h, p.g), out_order_(p.g.oh, p.g) {
    for (int64_t r = 0; r < min64(g_.sh, g_.h); ++r) b_.row_classes[r] = axis_class(r, g_.h, g_.kh, g_.sh, g_.dh, g_.pt);
    Segment* next = b_.segments;
    for (int64_t r = 0; r < min64(g_.sw, g_.w); ++r) next = split_columns(r, next);
    const int64_t used = (b_.pad_left + g_.ow) * b_.lanes;
    for (int64_t s = 0; s < b_.slots; ++s) {
      float* slot = b_.ring + s * b_.slot_floats;
      memset(slot, 0, sizeof(float) * b_.pad_left * b_.lanes);
      memset(slot + used, 0, sizeof(float) * (b_.slot_floats - used));
    }
    wanted_ = p.dx.data && p.dw ? want_both : p.dx.data ? want_dx : want_dw;
  }

  void item(int64_t index) {
    const int64_t c0 = index % plan_.chunks * plan_.chunk, strip = index / plan_.chunks % plan_.strips;
    n_ = index / plan_.chunks / plan_.strips;
    c0_ = c0;
    channels_ = min64(plan_.chunk, g_.c - c0);
    out_channels_ = channels_ * g_.multiplier;
    dw_ = partials_ + index * (g_.taps() + 1) * b_.lanes;
    memset(dw_, 0, sizeof(float) * (g_.taps() + 1) * b_.lanes);
    for (int64_t s = 0; s < b_.slots; ++s) b_.slot_row[s] = -1;
    memset(b_.counted, 0, g_.oh);
    load_pixels((const T*)p_.weight + c0 * g_.multiplier * g_.taps(), g_.taps(), 1, out_channels_, g_.taps(), b_.weight, b_.lanes);
    own_begin_ = Parts{plan_.strips, g_.oh}.begin(strip), own_end_ = Parts{plan_.strips, g_.oh}.begin(strip + 1);
    if (p_.dx.data || p_.dw) {
      const Parts strips{plan_.strips, g_.h};
      for (int64_t position = strips.begin(strip); position < strips.begin(strip + 1); ++position) input_row(in_order_.row(position));
    }
    if (p_.db)
      for (int64_t position = own_begin_; position < own_end_; ++position)
        if (!b_.counted[out_order_.row(position)]) gradient_row(out_order_.row(position));
  }

 private:
  Segment* split_columns(int64_t residue, Segment* next) {
    ColumnClass& c = b_.columns[residue];
    c.axis = axis_class(residue, g_.w, g_.kw, g_.sw, g_.dw, g_.pl);
    c.segments = next;
    for (int64_t i = 0; i < c.axis.count; ++i) {
      Segment s = {i, i + 1, 0, 0};
      c.axis.taps_at(i, g_.ow, &s.t0, &s.t1);
      if (!s.has_taps()) s.t0 = s.t1 = 0;
      if (next > c.segments && next[-1].t0 == s.t0 && next[-1].t1 == s.t1)
        next[-1].i1 = i + 1;
      else
        *next++ = s;
    }
    c.segment_count = merge_segments(c.segments, next - c.segments);
    return c.segments + c.segment_count;
  }

  const T* at(const MapView& m, int64_t channel, int64_t row) const { return (const T*)m.data + n_ * m.sn + channel * m.sc + row * m.sh; }

  // Row `oy` of the gradient in its slot of the ring.
  const float* gradient_row(int64_t oy) {
    const int64_t s = oy / out_order_.step % b_.slots, first = c0_ * g_.multiplier;
    float* row = b_.ring + s * b_.slot_floats + b_.pad_left * b_.lanes;
    if (b_.slot_row[s] == oy) return row;
    b_.slot_row[s] = oy;
    load_pixels(at(p_.grad, first, oy), p_.grad.sc, p_.grad.sw, out_channels_, g_.ow, row, b_.lanes);
    if (gate_.activation != Activation::identity) {
      load_pixels(at(gate_.z, first, oy), gate_.z.sc, gate_.z.sw, out_channels_, g_.ow, b_.gate, b_.lanes);
      multiply_by_slope(gate_.activation, b_.gate, row, g_.ow * b_.lanes);
    }
    const int64_t position = out_order_.position(oy);
    if (p_.db && !b_.counted[oy] && position >= own_begin_ && position < own_end_) {
      b_.counted[oy] = 1;
      add_pixels(row, dw_ + g_.taps() * b_.lanes);
    }
    return row;
  }

  void add_pixels(const float* row, float* sum) const {
    for (int64_t c = 0; c < out_channels_; c += L) {
      vf part[4] = {};
      int64_t i = 0;
      for (; i + 4 <= g_.ow; i += 4)
        for (int k = 0; k < 4; ++k) part[k] += load(row + (i + k) * b_.lanes + c);
      for (; i < g_.ow; ++i) part[0] += load(row + i * b_.lanes + c);
      store(sum + c, load(sum + c) + ((part[0] + part[1]) + (part[2] + part[3])));
    }
  }

  void input_row(int64_t y) {
    const AxisClass& axis = b_.row_classes[y % g_.sh];
    int64_t j0, j1;
    axis.taps_at(y / g_.sh, g_.oh, &j0, &j1);
    for (int64_t j = j0; j < j1; ++j) b_.rows[j] = gradient_row(axis.origin + y / g_.sh - j * axis.shift);

    const bool whole = channels_ % L == 0 && g_.multiplier == 1;
    const bool direct = sizeof(T) == 4 && p_.layout == Layout::channels_last && p_.input_activation == Activation::identity && whole;
    const float* x = b_.x;
    float* dx = b_.dx;
    int64_t x_step = b_.lanes, dx_step = b_.lanes;
    if (direct) {
      x = (const float*)at(p_.x, c0_, y), x_step = p_.x.sw;
      if (p_.dx.data) dx = (float*)dx_row(y), dx_step = p_.dx.sw;
    } else {
      stage_input(y);
    }
    for (int64_t c = 0; c < out_channels_; c += L)
      for (int64_t r = 0; r < min64(g_.sw, g_.w); ++r)
        for (int64_t s = 0; s < b_.columns[r].segment_count; ++s)
          segment(axis, j0, j1, b_.columns[r], b_.columns[r].segments[s], c, x + r * x_step + c, x_step * g_.sw, dx + r * dx_step + c, dx_step * g_.sw);
    if (p_.dx.data && !direct) finish_row(y);
  }

  T* dx_row(int64_t y) const { return (T*)p_.dx.data + n_ * p_.dx.sn + c0_ * p_.dx.sc + y * p_.dx.sh; }

  void stage_input(int64_t y) {
    const bool active = p_.input_activation != Activation::identity;
    load_pixels(at(p_.x, c0_, y), p_.x.sc, p_.x.sw, channels_, g_.w, active ? b_.raw_x : b_.x, b_.lanes);
    if (active) apply_activation(p_.input_activation, b_.raw_x, b_.x, g_.w * b_.lanes);
    if (g_.multiplier > 1)  // in place, last channel first
      for (int64_t i = 0; i < g_.w; ++i)
        for (int64_t j = out_channels_ - 1; j >= 0; --j) b_.x[i * b_.lanes + j] = b_.x[i * b_.lanes + j / g_.multiplier];
  }

  void finish_row(int64_t y) {
    if (g_.multiplier > 1)
      for (int64_t i = 0; i < g_.w; ++i) {
        float* pixel = b_.dx + i * b_.lanes;
        for (int64_t c = 0; c < channels_; ++c) {
          float sum = 0;
          for (int64_t m = 0; m < g_.multiplier; ++m) sum += pixel[c * g_.multiplier + m];
          pixel[c] = sum;
        }
      }
    if (p_.input_activation != Activation::identity) multiply_by_slope(p_.input_activation, b_.raw_x, b_.dx, g_.w * b_.lanes);
    store_pixels(dx_row(y), p_.dx.sc, p_.dx.sw, channels_, g_.w, b_.dx, b_.lanes);
  }

  // x and dx: position 0 of the column class, at lanes `c` of the chunk.
  void segment(
      const AxisClass& rows, int64_t j0, int64_t j1, const ColumnClass& column, const Segment& s, int64_t c, const float* x, int64_t x_step, float* dx,
      int64_t dx_step) {
    PixelRun run;
    run.x = x + s.i0 * x_step, run.x_step = x_step;
    run.dx = dx + s.i0 * dx_step, run.dx_step = dx_step;
    run.g_step = b_.lanes;
    run.tap_shift = column.axis.shift * b_.lanes;
    run.row_step = rows.tap_step * g_.kw * b_.lanes, run.tap_step = column.axis.tap_step * b_.lanes;
    run.count = s.i1 - s.i0;
    if (j0 == j1 || !s.has_taps()) {
      if (wanted_ != want_dw)
        for (int64_t i = 0; i < run.count; ++i) store(run.dx + i * dx_step, vf{});
      return;
    }
    const int64_t groups = ceil_div(s.t1 - s.t0, int64_t(kMaxCols));
    const Parts parts{groups, s.t1 - s.t0};
    bool more = false;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t t = s.t0 + parts.begin(group), cols = parts.begin(group + 1) - parts.begin(group);
      for (int64_t j = j0; j < j1;) {
        const int64_t count = min64(rows_at_once(int(cols)), j1 - j);
        const int64_t tap = (rows.tap0 + j * rows.tap_step) * g_.kw + column.axis.tap0 + t * column.axis.tap_step;
        run.weight = b_.weight + tap * b_.lanes + c;
        run.dw = dw_ + tap * b_.lanes + c;
        for (int64_t r = 0; r < count; ++r) run.g[r] = b_.rows[j + r] + (column.axis.origin + s.i0 - t * column.axis.shift) * b_.lanes + c;
        find_tap_kernel<PixelTaps>(wanted_, more, count, cols)(run);
        more = true;
        j += count;
      }
    }
  }

  const DepthwiseBackward& p_;
  const ActivationGate& gate_;
  const DepthwiseBackwardPlan& plan_;
  const ConvGeometry& g_;
  float* partials_;
  Buffers b_;
  RowOrder in_order_, out_order_;
  Wanted wanted_;
  // of the current item
  int64_t n_, c0_, channels_, out_channels_, own_begin_, own_end_;
  float* dw_;
};

template <class T>
void run_items(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, float* partials, void* scratch) {
  PixelWorker<T> worker(p, gate, plan, partials, scratch);
  for (int64_t i = begin; i < end; ++i) worker.item(i);
}

// Half of a 1 MB second-level cache for the rows in flight, a third of a 48 KB first-level cache for weights and their gradients.
constexpr int64_t kRowBytes = 384 * 1024, kWeightBytes = 16 * 1024;

}  // namespace

DepthwiseBackwardPlan plan_pixels(const DepthwiseBackward& p) {
  const ConvGeometry& g = p.g;
  DepthwiseBackwardPlan plan = {};
  const Buffers one(g, 1, nullptr);
  const int64_t row_bytes = 4 * (one.slots * one.slot_floats + 2 * g.w * L), weight_bytes = 8 * g.taps() * L;
  const int64_t total = ceil_div(g.out_channels(), int64_t(L));
  const int64_t fitting = max64(1, min64(total, min64(kRowBytes / max64(1, row_bytes), kWeightBytes / weight_bytes)));
  plan.chunks = ceil_div(total, fitting);
  const int64_t lanes = ceil_div(total, plan.chunks) * L;
  plan.chunk = g.multiplier == 1 ? lanes : max64(1, lanes / g.multiplier);
  plan.chunks = ceil_div(g.c, plan.chunk);
  plan.blocks = ceil_div(plan.chunk * g.multiplier, int64_t(L));
  const int64_t items = g.n * plan.chunks;
  plan.strips = items ? max64(1, min64(ceil_div(kItems, items), g.h / kLeastRows)) : 1;
  plan.items = items * plan.strips;
  plan.scratch_bytes = Buffers(g, plan.blocks, nullptr).bytes;
  plan.partial_bytes = 4 * plan.items * (g.taps() + 1) * plan.blocks * L;
  plan.reduce_items = plan.chunks;
  return plan;
}

void backward_pixels(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, float* partials, void* scratch) {
  switch (p.dtype) {
    case DType::f32: return run_items<float>(p, gate, plan, begin, end, partials, scratch);
    case DType::f16: return run_items<f16>(p, gate, plan, begin, end, partials, scratch);
    case DType::bf16: return run_items<bf16>(p, gate, plan, begin, end, partials, scratch);
    case DType::f64: return;
  }
}

}  // namespace fastconv::FASTCONV_ISA
