// Depthwise backward with neighbouring pixels of a plane in the lanes of a vector: contiguous maps, stride 1, rows of the result no
// longer than rows of the input.
//
// The gradient plane is staged as float32 with the input's row length, so that every tap is one constant offset in a flat plane. Columns
// that leave the map are masked (the masks of a tap repeat after at most W vectors and serve all planes), rows that leave it read zeros
// staged before and after the plane, or are skipped where there are many. float32 planes of x and dx are used where they lie.
//
// An item is a strip of rows of one plane (mostly: a whole plane).
#include "depthwise_backward.h"
#include "depthwise_backward_taps.h"

namespace fastconv::FASTCONV_ISA {

namespace {

// Staged planes of a strip stay in half of a 1 MB second-level cache.
constexpr int64_t kStripPixels = 32 * 1024;
constexpr int64_t kReduceChannels = 64;

struct Strip {
  int64_t y0, y1;            // rows of the input
  int64_t own_g0, own_g1;    // rows of the gradient that this strip counts in the bias gradient
  int64_t g0, g1;            // rows of the gradient that it stages
};

Strip strip_of(const ConvGeometry& g, const AxisClass& rows, int64_t strips, int64_t index) {
  const Parts in{strips, g.h}, out{strips, g.oh};
  Strip s = {in.begin(index), in.begin(index + 1), out.begin(index), out.begin(index + 1), 0, 0};
  s.g0 = min64(s.own_g0, max64(0, rows.origin + s.y0 - (g.kh - 1) * g.dh));
  s.g1 = max64(s.own_g1, min64(g.oh, rows.origin + s.y1));
  return s;
}

inline int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t r = a % b;
    a = b, b = r;
  }
  return a;
}

struct Buffers {
  AxisClass rows, cols;
  int64_t t0, t1;         // taps that meet some column
  int64_t period;         // of the masks, in vectors
  int64_t guard, pixels;  // zeros before and after the staged plane; pixels of a strip rounded up to vectors
  float *plane, *x, *raw_x, *dx, *z, *weight, *dw;
  MaskWord *masks, *tail_mask;
  Segment* segments;
  int64_t bytes;

  Buffers(const ConvGeometry& g, int64_t strips, void* memory) {
    rows = axis_class(0, g.h, g.kh, 1, g.dh, g.pt), cols = axis_class(0, g.w, g.kw, 1, g.dw, g.pl);
    int64_t unused;
    cols.taps_at(0, g.ow, &t0, &unused);
    cols.taps_at(max64(g.w, 1) - 1, g.ow, &unused, &t1);
    period = g.w / common_divisor(max64(g.w, 1), L);
    guard = round_up(((g.kh - 1) * g.dh + 2) * g.w + 3 * L, int64_t(L));
    int64_t staged = 0, longest = 0;
    for (int64_t i = 0; i < strips; ++i) {
      const Strip s = strip_of(g, rows, strips, i);
      staged = max64(staged, s.g1 - s.g0);
      longest = max64(longest, s.y1 - s.y0);
    }
    pixels = round_up(longest * g.w, int64_t(L));
    Carver carve(memory);
    plane = carve.take<float>(staged * g.w + 2 * guard);
    x = carve.take<float>(pixels);
    raw_x = carve.take<float>(pixels);
    dx = carve.take<float>(pixels);
    z = carve.take<float>(staged * g.w + L);
    weight = carve.take<float>(g.multiplier * g.taps());
    dw = carve.take<float>(g.taps() * L);
    masks = carve.take<MaskWord>(period * (t1 - t0) * kMaskWords);
    tail_mask = carve.take<MaskWord>(kMaskWords);
    segments = carve.take<Segment>(2 * g.kh + 1);
    bytes = carve.bytes();
  }
};

template <class T>
class PlaneWorker {
 public:
  PlaneWorker(const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, float* partials, void* scratch)
      : p_(p), gate_(gate), plan_(plan), g_(p.g), partials_(partials), b_(p.g, plan.strips, scratch) {
    memset(b_.masks, 0, sizeof(MaskWord) * b_.period * (b_.t1 - b_.t0) * kMaskWords);
    for (int64_t i = 0; i < b_.period * L; ++i) {
      int64_t t0, t1;
      b_.cols.taps_at(i % g_.w, g_.ow, &t0, &t1);
      for (int64_t t = t0; t < t1; ++t) set_lane(b_.masks + (i / L * (b_.t1 - b_.t0) + t - b_.t0) * kMaskWords, int(i % L));
    }
    wanted_ = p.dx.data && p.dw ? want_both : p.dx.data ? want_dx : want_dw;
  }

  void item(int64_t index) {
    const int64_t planes = g_.n * g_.c, strip = index / planes, n = index % planes / g_.c, c = index % g_.c;
    if (strip != strip_) enter_strip(strip);
    const bool direct = sizeof(T) == 4 && p_.input_activation == Activation::identity;
    const T* x_plane = (const T*)p_.x.data + n * p_.x.sn + c * p_.x.sc + s_.y0 * g_.w;
    T* dx_plane = (T*)p_.dx.data + n * p_.dx.sn + c * p_.dx.sc + s_.y0 * g_.w;
    const float* x = direct ? (const float*)x_plane : b_.x;
    float* dx = direct && p_.dx.data ? (float*)dx_plane : b_.dx;
    const bool compute = pixels_ > 0 && (p_.dx.data || p_.dw);
    if (compute && !direct) stage_input(x_plane);

    const int64_t first = c * g_.multiplier, taps = g_.taps();
    for (int64_t i = 0; i < g_.multiplier * taps; ++i) b_.weight[i] = to_float(((const T*)p_.weight)[first * taps + i]);
    for (int64_t m = 0; m < g_.multiplier; ++m) {
      float* sums = partials_ + ((strip * g_.n + n) * g_.out_channels() + first + m) * (taps + 1);
      stage_gradient(p_.grad, n, first + m, b_.plane + b_.guard);
      if (gate_.activation != Activation::identity) {
        stage_gradient(gate_.z, n, first + m, b_.z);
        multiply_by_slope(gate_.activation, b_.z, b_.plane + b_.guard, (s_.g1 - s_.g0) * g_.w);
      }
      if (p_.db) sums[taps] = sum(b_.plane + b_.guard + (s_.own_g0 - s_.g0) * g_.w, (s_.own_g1 - s_.own_g0) * g_.w);
      memset(b_.dw, 0, sizeof(float) * taps * L);
      if (compute)
        for (int64_t i = 0; i < segment_count_; ++i) segment(b_.segments[i], x, dx, b_.weight + m * taps, m > 0);
      if (p_.dw) sum_lanes(sums);
    }
    if (compute && !direct && p_.dx.data) finish(dx_plane);
  }

 private:
  void enter_strip(int64_t strip) {
    strip_ = strip;
    s_ = strip_of(g_, b_.rows, plan_.strips, strip);
    pixels_ = (s_.y1 - s_.y0) * g_.w;
    memset(b_.plane, 0, sizeof(float) * b_.guard);
    memset(b_.plane + b_.guard + (s_.g1 - s_.g0) * g_.w, 0, sizeof(float) * b_.guard);
    memset(b_.tail_mask, 0, sizeof(MaskWord) * kMaskWords);
    for (int64_t l = 0; l < pixels_ % L; ++l) set_lane(b_.tail_mask, int(l));
    segment_count_ = 0;
    for (int64_t v = 0; v * L < pixels_; ++v) {
      int64_t unused;
      Segment next = {v, v + 1, 0, 0};
      b_.rows.taps_at(s_.y0 + v * L / g_.w, g_.oh, &next.t0, &unused);
      b_.rows.taps_at(s_.y0 + (min64((v + 1) * L, pixels_) - 1) / g_.w, g_.oh, &unused, &next.t1);
      if (!next.has_taps()) next.t0 = next.t1 = 0;
      Segment* last = b_.segments + segment_count_ - 1;
      if (segment_count_ > 0 && last->t0 == next.t0 && last->t1 == next.t1)
        last->i1 = v + 1;
      else
        b_.segments[segment_count_++] = next;
    }
    segment_count_ = merge_segments(b_.segments, segment_count_);
  }

  // Rows g0 .. g1 of a map with the geometry of the gradient, at the input's row length.
  void stage_gradient(const MapView& m, int64_t n, int64_t c, float* to) const {
    const T* from = (const T*)m.data + n * m.sn + c * m.sc + s_.g0 * g_.ow;
    const int64_t count = s_.g1 - s_.g0;
    if (g_.ow == g_.w) {
      convert(from, to, count * g_.w);
      return;
    }
    for (int64_t y = 0; y < count; ++y)
      for (int64_t i = 0; i < g_.w; i += L) store_lanes(to + y * g_.w + i, i < g_.ow ? load_lanes(from + y * g_.ow + i, g_.ow - i) : vf{}, g_.w - i);
  }

  static void convert(const T* from, float* to, int64_t count) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, load(from + i));
    if (i < count) store_part(to + i, load_part(from + i, int(count - i)), int(count - i));
  }

  static float sum(const float* p, int64_t count) {
    vf part[4] = {};
    int64_t i = 0;
    for (; i + 4 * L <= count; i += 4 * L)
      for (int k = 0; k < 4; ++k) part[k] += load(p + i + k * L);
    for (; i < count; i += L) part[0] += load_lanes(p + i, count - i);
    vf rows[L] = {(part[0] + part[1]) + (part[2] + part[3])};
    return sum_rows(rows)[0];
  }

  void stage_input(const T* from) {
    const bool active = p_.input_activation != Activation::identity;
    convert(from, active ? b_.raw_x : b_.x, pixels_);
    if (active) apply_activation(p_.input_activation, b_.raw_x, b_.x, round_up(pixels_, int64_t(L)));
  }

  void finish(T* to) const {
    if (p_.input_activation != Activation::identity) multiply_by_slope(p_.input_activation, b_.raw_x, b_.dx, round_up(pixels_, int64_t(L)));
    for (int64_t i = 0; i < pixels_; i += L) store_lanes(to + i, load(b_.dx + i), pixels_ - i);
  }

  void sum_lanes(float* to) const {
    for (int64_t t = 0; t < g_.taps(); t += L) {
      vf rows[L];
      for (int i = 0; i < L; ++i) rows[i] = t + i < g_.taps() ? load(b_.dw + (t + i) * L) : vf{};
      store_lanes(to + t, sum_rows(rows), g_.taps() - t);
    }
  }

  void segment(const Segment& s, const float* x, float* dx, const float* weight, bool more) const {
    const int64_t begin = s.i0 * L, end = min64(s.i1 * L, pixels_);
    if (!s.has_taps() || b_.t1 <= b_.t0) {
      if (wanted_ != want_dw && !more) memset(dx + begin, 0, sizeof(float) * (end - begin));
      return;
    }
    PlaneRun run;
    run.x = x + begin, run.dx = dx + begin;
    run.tap_shift = g_.dw, run.row_step = g_.kw;
    run.mask_step = (b_.t1 - b_.t0) * kMaskWords, run.period = b_.period, run.phase = s.i0 % b_.period;
    run.count = (end - begin) / L, run.tail = (end - begin) % L, run.tail_mask = b_.tail_mask;
    const float* origin = b_.plane + b_.guard + (b_.rows.origin + s_.y0 - s_.g0) * g_.w + b_.cols.origin + begin;
    const int64_t groups = ceil_div(b_.t1 - b_.t0, int64_t(kMaxCols));
    const Parts parts{groups, b_.t1 - b_.t0};
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t t = b_.t0 + parts.begin(group), cols = parts.begin(group + 1) - parts.begin(group);
      for (int64_t j = s.t0; j < s.t1;) {
        const int64_t count = min64(rows_at_once(int(cols)), s.t1 - j);
        run.weight = weight + j * g_.kw + t;
        run.dw = b_.dw + (j * g_.kw + t) * L;
        run.masks = b_.masks + (t - b_.t0) * kMaskWords;
        for (int64_t r = 0; r < count; ++r) run.g[r] = origin - (j + r) * g_.dh * g_.w - t * g_.dw;
        find_tap_kernel<PlaneTaps>(wanted_, more, count, cols)(run);
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
  Wanted wanted_;
  int64_t strip_ = -1;
  Strip s_;
  int64_t pixels_, segment_count_;
};

template <class T>
void run_items(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, float* partials, void* scratch) {
  PlaneWorker<T> worker(p, gate, plan, partials, scratch);
  for (int64_t i = begin; i < end; ++i) worker.item(i);
}

}  // namespace

bool planes_take(const DepthwiseBackward& p) {
  const ConvGeometry& g = p.g;
  return p.layout == Layout::contiguous && g.sh == 1 && g.sw == 1 && g.ow <= g.w && g.h > 0;
}

DepthwiseBackwardPlan plan_planes(const DepthwiseBackward& p) {
  const ConvGeometry& g = p.g;
  DepthwiseBackwardPlan plan = {};
  plan.flat = true;
  plan.chunk = min64(g.c, max64(1, kReduceChannels / g.multiplier));
  plan.chunks = ceil_div(g.c, plan.chunk);
  const int64_t planes = g.n * g.c;
  plan.strips = planes ? max64(ceil_div(g.h * g.w, kStripPixels), min64(ceil_div(kItems, planes), g.h / kLeastRows)) : 1;
  plan.strips = min64(max64(1, plan.strips), g.h);
  plan.items = planes * plan.strips;
  plan.scratch_bytes = Buffers(g, plan.strips, nullptr).bytes;
  plan.partial_bytes = 4 * plan.strips * g.n * g.out_channels() * (g.taps() + 1);
  plan.reduce_items = plan.chunks;
  return plan;
}

void backward_planes(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, float* partials, void* scratch) {
  switch (p.dtype) {
    case DType::f32: return run_items<float>(p, gate, plan, begin, end, partials, scratch);
    case DType::f16: return run_items<f16>(p, gate, plan, begin, end, partials, scratch);
    case DType::bf16: return run_items<bf16>(p, gate, plan, begin, end, partials, scratch);
    case DType::f64: return;
  }
}

}  // namespace fastconv::FASTCONV_ISA
