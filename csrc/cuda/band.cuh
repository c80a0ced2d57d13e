// Contiguous maps: bands of a plane, staged in shared memory.
//
// An item is `rows` rows of a residue class (y, y+dh, ...) and `columns` columns of one plane. A block serves several items, `lanes` threads each;
// thread l of an item owns columns l, l+lanes, l+2*lanes, ... so that neighbouring threads read and write neighbouring elements whatever the
// width's parity and the dilation.
//
// A staged row is an image of memory: it starts at the 16-byte boundary before its first column and is copied in whole 16-byte pieces, so its first
// column stands at position (address / element) % (16 / element) of the row, different from row to row when the width is odd. Columns
// and rows beyond the plane hold `fill`, so readers know no border.
#pragma once
#include "common/fast_division.h"
#include "common/plan.h"
#include "numeric.cuh"

namespace fastconv::cuda {

struct Band {
  FastDivision by_lanes, by_tiles, by_strips, by_row_classes, by_planes, by_chunks, by_input_rows;
  uint32_t items;
  int items_per_block, lanes, columns, rows;
  int dh, h, w;         // step between the rows of an item; the result's size
  int pitch;            // elements of a staged row
  int input_rows;       // staged for an item
  int input_h, input_w; // the plane that is staged
  int pt, pl;           // its first row and column relative to the item's
  int64_t sn, sc, sh;   // its strides

  Band(const BandPlan& p, int64_t input_h, int64_t input_w, int64_t pt, int64_t pl, const int64_t (&strides)[3])
      : by_lanes(p.lanes),
        by_tiles(p.tiles),
        by_strips(p.strips),
        by_row_classes(p.row_classes),
        by_planes(p.planes),
        by_chunks(p.pitch_bytes / 16),
        by_input_rows(p.input_rows),
        items(static_cast<uint32_t>(p.items)),
        items_per_block(p.items_per_block),
        lanes(p.lanes),
        columns(p.columns),
        rows(p.rows),
        dh(static_cast<int>(p.dh)),
        h(static_cast<int>(p.h)),
        w(static_cast<int>(p.w)),
        pitch(p.pitch_bytes / p.element_bytes),
        input_rows(p.input_rows),
        input_h(static_cast<int>(input_h)),
        input_w(static_cast<int>(input_w)),
        pt(static_cast<int>(pt)),
        pl(static_cast<int>(pl)),
        sn(strides[0]),
        sc(strides[1]),
        sh(strides[2]) {}
};

struct BandAt {
  int n, c, y, x, rows;
};

FASTCONV_DEVICE BandAt band_at(const Band& b, uint32_t item) {
  uint32_t tile, strip, row_class, plane;
  item = b.by_tiles.divide(item, &tile);
  item = b.by_strips.divide(item, &strip);
  item = b.by_row_classes.divide(item, &row_class);
  BandAt at;
  at.n = static_cast<int>(b.by_planes.divide(item, &plane));
  at.c = static_cast<int>(plane);
  at.x = static_cast<int>(tile) * b.columns;
  at.y = static_cast<int>(row_class + strip * b.rows * b.dh);
  const int left = at.y < b.h ? (b.h - at.y + b.dh - 1) / b.dh : 0;
  at.rows = left < b.rows ? left : b.rows;
  return at;
}

// Elements between a 16-byte boundary and the item's first staged column in its row `r`; what lies left of the plane counts as memory.
template <class T>
FASTCONV_DEVICE uint32_t staged_offset(const Band& b, const void* base, const BandAt& at, int r) {
  constexpr uint32_t kPer = 16 / sizeof(T);
  const int64_t element = at.n * b.sn + at.c * b.sc + (at.y - b.pt + r * b.dh) * b.sh + (at.x - b.pl);
  return (static_cast<uint32_t>(reinterpret_cast<uintptr_t>(base) / sizeof(T)) + static_cast<uint32_t>(element)) & (kPer - 1);
}

// Brings the rows of the block's items into `staged`; complete after ptx::wait_copies<0>() and sync_threads().
template <class T>
FASTCONV_DEVICE void stage_bands(const Band& b, const T* base, uint32_t first_item, uint32_t item_count, T* staged, uint32_t fill_word) {
  constexpr int kPer = 16 / sizeof(T);
  const uint32_t pieces = item_count * b.by_input_rows.divisor * b.by_chunks.divisor;
  for (uint32_t i = threadIdx.x; i < pieces; i += blockDim.x) {
    uint32_t piece, r;
    const uint32_t item = b.by_input_rows.divide(b.by_chunks.divide(i, &piece), &r);
    const BandAt at = band_at(b, first_item + item);
    const int y = at.y - b.pt + static_cast<int>(r) * b.dh;
    const int x = at.x - b.pl - static_cast<int>(staged_offset<T>(b, base, at, static_cast<int>(r))) + static_cast<int>(piece) * kPer;
    T* to = staged + (item * b.input_rows + r) * b.pitch + piece * kPer;
    const T* row = base + at.n * b.sn + at.c * b.sc + y * b.sh;
    const bool row_inside = y >= 0 && y < b.input_h;
    if (row_inside && x >= 0 && x + kPer <= b.input_w) {
      ptx::copy_async<16>(to, row + x, true);
    } else if (row_inside && x + kPer > 0 && x < b.input_w) {
      FASTCONV_UNROLL
      for (int k = 0; k < kPer; ++k) {
        T v;
        fill_element(v, fill_word);
        if (x + k >= 0 && x + k < b.input_w) v = row[x + k];
        to[k] = v;
      }
    } else {
      *reinterpret_cast<Bytes<16>*>(to) = {{fill_word, fill_word, fill_word, fill_word}};
    }
  }
  ptx::commit_copies();
}

}  // namespace fastconv::cuda
