#include "plan.h"

#include <algorithm>

#include "rates.h"
#include "widest_vector.h"

namespace fastconv::cuda {

RowPlan plan_rows(int64_t n, int64_t planes, int64_t rows, int64_t row, int64_t pixel, int64_t unit_bytes) {
  // About 16 KB a block: enough copies in flight for each thread, few enough blocks that their prologue does not show.
  constexpr int64_t kBlockBytes = 16 * 1024;
  RowPlan p{planes, rows, row, pixel, 0, 0, 0};
  p.chunk_rows = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(row * unit_bytes, 1), 1, std::max<int64_t>(rows, 1));
  p.chunks = ceil_div(rows, p.chunk_rows);
  p.blocks = n * planes * p.chunks;
  return p;
}

StripPlan plan_strips(int64_t n, int64_t vectors, int64_t h, int64_t w, int64_t dh, int64_t dw, int columns, int halo_rows, int resident, const Device& device) {
  StripPlan p;
  p.h = h, p.w = w, p.dh = dh, p.dw = dw, p.columns = columns, p.vectors = vectors;
  p.column_classes = std::min(dw, w), p.row_classes = std::min(dh, h);
  p.groups = ceil_div(ceil_div(w, dw), columns);
  const int64_t class_rows = ceil_div(h, dh);
  // Long strips march through their halo rows less often; short ones fill the chip. A thread takes a row's time for each of its rows, for each row of its halo,
  // and about two to begin, longer where more threads run than keep the schedulers busy; those that find no room take turns.
  constexpr int64_t kLongest = 32, kBeginning = 2;
  const int64_t across = n * p.column_classes * p.row_classes * p.groups * vectors, room = int64_t(device.multiprocessors) * std::min(resident, device.threads_per_multiprocessor);
  double least = 0;
  for (int64_t rows = 1; rows <= std::min(class_rows, kLongest); ++rows) {
    const int64_t strips = ceil_div(class_rows, rows);
    const double at_a_time = double(std::min(across * strips, room)), turns = double(ceil_div(across * strips, room));
    const double time = turns * std::max(1.0, at_a_time / (double(device.multiprocessors) * kBusyThreads)) * double(rows + halo_rows + kBeginning);
    if (rows == 1 || time <= least) least = time, p.strips = strips;
  }
  p.rows = static_cast<int>(ceil_div(class_rows, p.strips));
  p.total = across * p.strips;
  return p;
}

BandPlan plan_bands(
    int64_t n, int64_t planes, int64_t h, int64_t w, int64_t dh, int columns_per_lane, int64_t halo_rows, int64_t halo_columns, int element_bytes,
    const Device& device, bool with_own) {
  BandPlan p;
  p.h = h, p.w = w, p.dh = dh, p.planes = planes, p.element_bytes = element_bytes;
  p.threads = 256;
  // As few tiles as leave few threads idle: every tile stages its own halo columns.
  double best = 0;
  for (int64_t tiles = ceil_div(w, int64_t(p.threads) * columns_per_lane); tiles <= ceil_div(w, 32 * columns_per_lane) || best == 0; ++tiles) {
    const int64_t lanes = ceil_div(ceil_div(w, tiles), columns_per_lane), items = p.threads / lanes;
    const double busy = double(items) / p.threads * double(w) / double(tiles * columns_per_lane);
    const double staged = double(w) / double(w + tiles * halo_columns);
    if (busy * staged > best) {
      best = busy * staged;
      p.tiles = tiles, p.lanes = static_cast<int>(lanes), p.items_per_block = static_cast<int>(items);
    }
  }
  p.columns = p.lanes * columns_per_lane;
  p.tiles = ceil_div(w, p.columns);
  const int64_t per = 16 / element_bytes, class_rows = ceil_div(h, dh);
  p.row_classes = std::min(dh, h);
  // The first column may stand anywhere within its 16 bytes.
  const int64_t pitch = round_up(p.columns + halo_columns + per - 1, per) * element_bytes, own = with_own ? round_up(p.columns + per - 1, per) * element_bytes : 0;
  auto bytes = [&](int64_t rows, int64_t items) { return (pitch * (rows + halo_rows) + own * rows) * items; };
  // Long strips stage their halo rows less often; six blocks should fit on a multiprocessor, and every multiprocessor have some. Wide halos
  // beside narrow maps (large dilations) leave room for fewer items.
  const int64_t most = device.shared_per_multiprocessor / 6;
  p.items_per_block = static_cast<int>(std::clamp<int64_t>(most / bytes(std::min<int64_t>(class_rows, 2 * halo_rows), 1), 1, p.items_per_block));
  if (bytes(1, 1) > device.shared_per_block) return BandPlan{};
  p.pitch_bytes = static_cast<int>(pitch), p.own_pitch_bytes = static_cast<int>(own);
  const int64_t memory_rows = (most / p.items_per_block - pitch * halo_rows) / (pitch + own);
  const int64_t items_of_one_strip = n * planes * p.row_classes * p.tiles, wanted_items = int64_t(device.multiprocessors) * 4 * p.items_per_block;
  const int64_t busy_rows = std::max<int64_t>(class_rows * items_of_one_strip / std::max<int64_t>(wanted_items, 1), 4 * std::max<int64_t>(halo_rows, 1));
  const int64_t rows = std::clamp<int64_t>(std::min(memory_rows, busy_rows), 1, std::min<int64_t>(class_rows, 32));
  p.strips = ceil_div(class_rows, rows);
  p.rows = static_cast<int>(ceil_div(class_rows, p.strips));
  p.input_rows = static_cast<int>(p.rows + halo_rows);
  p.items = items_of_one_strip * p.strips;
  p.blocks = ceil_div(p.items, p.items_per_block);
  p.shared_bytes = static_cast<size_t>(bytes(p.rows, p.items_per_block));
  return p;
}

CopyPlan plan_copy(const ShiftStitch& p) {
  CopyPlan plan;
  const DealtMap& f = p.fragments;
  const bool pixels = f.layout == Layout::channels_last;
  const int rows_vector = widest_vector(address(p.in), address(p.out), p.w * p.bytes, f.w * p.bytes);
  plan.form = !pixels && rows_vector == 16 && f.sx <= 4 && (p.bytes == 2 || p.bytes == 4) ? CopyForm::rows : CopyForm::vectors;
  plan.vector_bytes = plan.form == CopyForm::rows ? 16 : pixels ? widest_vector(address(p.in), address(p.out), f.channels * p.bytes) : p.bytes;
  const int64_t pixel = pixels ? f.channels * p.bytes / plan.vector_bytes : 1;
  const int64_t row = plan.form == CopyForm::rows ? f.w * p.bytes / 16 : f.sx * f.w * pixel;
  plan.rows = plan_rows(p.n, pixels ? 1 : f.channels, f.sy * f.h, row, pixel, plan.form == CopyForm::rows ? 16 * f.sx : plan.vector_bytes);
  return plan;
}

namespace {

// The map that a pool's forward pass stores: whole fragments, tails included, or the dense map.
struct Extent {
  int64_t h, w;
};
Extent stored(const PoolGeometry& g) { return g.fragments ? Extent{g.frag_h * g.sh, g.frag_w * g.sw} : Extent{g.dense_h, g.dense_w}; }

PoolPlan plan_pool(const PoolGeometry& g, DType dtype, Layout layout, Extent e, bool strips, int64_t vectors, int columns, const Device& device) {
  PoolPlan plan{};
  const bool pixels = layout == Layout::channels_last;
  plan.form = strips ? PoolForm::pixels : PoolForm::windows;
  plan.threads = strips ? 128 : 256;
  plan.rows = plan_rows(g.n, pixels ? 1 : g.c, e.h, e.w * (pixels ? g.c : 1), pixels ? g.c : 1, element_bytes(dtype));
  if (strips) plan.strips = plan_strips(g.n, vectors, e.h, e.w, g.dh, g.dw, columns, static_cast<int>(g.kh - 1), 3 * plan.threads, device);
  return plan;
}

// Square kernels that have an instance of their own.
bool special_kernel(const PoolGeometry& g, int64_t largest) { return g.kh == g.kw && (g.kh == 2 || g.kh == 3 || g.kh == 5) && g.kh <= largest; }

}  // namespace

PoolPlan plan_max_pool(const MaxPool& p, const Device& device) {
  const PoolGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype);
  // The argmax of a vector is half as many bytes (16-bit types) or a quarter.
  const bool vectors = widest_vector(address(p.x), address(p.out), e * address(p.argmax), g.c * e) == 16;
  const bool strips = p.layout == Layout::channels_last && vectors && special_kernel(g, 5) && p.dtype != DType::f64 && !p.indices;
  return plan_pool(g, p.dtype, p.layout, stored(g), strips, g.c * e / 16, g.kh == 5 ? 2 : 4, device);
}

PoolPlan plan_max_pool_backward(const MaxPoolBackward& p, const int64_t* indices, const Device& device) {
  const PoolGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype);
  const bool vectors = g.c % 4 == 0 && address(p.grad) % (4 * e) == 0 && address(p.dx) % (4 * e) == 0 && address(p.argmax) % 4 == 0;
  const bool strips = p.layout == Layout::channels_last && vectors && special_kernel(g, 3) && p.dtype != DType::f64 && !indices;
  PoolPlan plan = plan_pool(g, p.dtype, p.layout, {g.h, g.w}, strips, g.c / 4, g.kh == 2 ? 6 : 4, device);
  // A ring of 2 x 8 or 4 x 8 partial sums for each channel of each thread.
  if (strips) plan.shared_bytes = (g.kh == 2 ? 16 : 32) * 4 * sizeof(float) * plan.threads;
  return plan;
}

PoolPlan plan_avg_pool(const AvgPool& p, const Device& device) {
  const PoolGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype);
  const bool vectors = widest_vector(address(p.in), address(p.out), g.c * e) == 16;
  const bool strips = p.layout == Layout::channels_last && vectors && special_kernel(g, 5) && p.dtype != DType::f64;
  return plan_pool(g, p.dtype, p.layout, p.backward ? Extent{g.h, g.w} : stored(g), strips, g.c * e / 16, g.kh == 5 ? 2 : 4, device);
}

}  // namespace fastconv::cuda
