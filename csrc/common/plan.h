// Which kernel, which tile, and what it should cost: plain C++, no torch, no CUDA headers. The CUDA entries obey these plans, explain() prints
// them.
#pragma once
#include <cstddef>

#include "params.h"
#include "params_pool.h"
#include "shape.h"

namespace fastconv::cuda {

// What plans need to know of a GPU; the defaults are an H200's.
struct Device {
  int multiprocessors = 132;
  int threads_per_multiprocessor = 2048;
  int shared_per_block = 227 * 1024, shared_per_multiprocessor = 228 * 1024;
  int capability = 90;
  int table = 0;  // of measured choices (plan_measured.h); 0: none
};

// ---- how work is divided -------------------------------------------------------------------------------------------------------

// Blocks of `chunk_rows` rows of a plane; an image has `planes` of them (1 for channels_last, where a row's `pixel` units lie together).
struct RowPlan {
  int64_t planes, rows, row, pixel;  // row: units (elements or vectors) in a row
  int64_t chunk_rows, chunks, blocks;
};
RowPlan plan_rows(int64_t n, int64_t planes, int64_t rows, int64_t row, int64_t pixel, int64_t unit_bytes);

// One thread for each strip of `columns` by `rows` positions of a residue class and one vector of channels.
struct StripPlan {
  int64_t h, w, dh, dw;
  int columns, rows;
  int64_t vectors, groups, column_classes, strips, row_classes, total;
};
// `resident`: threads that a multiprocessor holds as far as registers and shared memory go.
StripPlan plan_strips(int64_t n, int64_t vectors, int64_t h, int64_t w, int64_t dh, int64_t dw, int columns, int halo_rows, int resident, const Device& device);

// Contiguous planes in bands staged in shared memory: items of `rows` rows of a residue class by `columns` columns, `lanes` threads each.
struct BandPlan {
  int64_t h, w, dh, planes;  // the result
  int lanes, columns, rows, input_rows, items_per_block, threads, pitch_bytes, own_pitch_bytes, element_bytes;
  int64_t tiles, strips, row_classes, items, blocks;
  size_t shared_bytes;
};
// `columns_per_lane` columns a thread; halo_rows rows of the class and halo_columns columns more are staged than produced. No blocks: one row
// and its halo do not fit into shared memory. `with_own`: a second map is staged beside, without a halo.
BandPlan plan_bands(
    int64_t n, int64_t planes, int64_t h, int64_t w, int64_t dh, int columns_per_lane, int64_t halo_rows, int64_t halo_columns, int element_bytes,
    const Device& device, bool with_own = false);

// ---- shift and stitch ----------------------------------------------------------------------------------------------------------
enum class CopyForm { vectors, rows };
struct CopyPlan {
  CopyForm form;
  int vector_bytes;
  RowPlan rows;
};
CopyPlan plan_copy(const ShiftStitch& p);

// ---- pooling -------------------------------------------------------------------------------------------------------------------
enum class PoolForm { windows, pixels };  // one element of the result a thread; strips of channel vectors (channels_last)
struct PoolPlan {
  PoolForm form;
  RowPlan rows;      // windows
  StripPlan strips;  // pixels
  int threads;       // of a block
  size_t shared_bytes;
};
PoolPlan plan_max_pool(const MaxPool& p, const Device& device);
// `argmax` of the problem must be set, or `indices`, which the gradient of kernels beyond 256 taps goes by.
PoolPlan plan_max_pool_backward(const MaxPoolBackward& p, const int64_t* indices, const Device& device);
PoolPlan plan_avg_pool(const AvgPool& p, const Device& device);

}  // namespace fastconv::cuda
