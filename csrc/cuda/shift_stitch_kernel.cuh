// shift and stitch: one copy between a dense map and its sy*sx fragments, position (oy + sy*u, ox + sx*v) of the map being position (u, v) of
// fragment (oy, ox). Both directions visit every position of the fragments, so that a short fragment's tail is met as well: shift fills it,
// stitch skips it.
//
// Three forms. channels_last: a pixel is a run of bytes and moves in the widest vectors that divide it. Contiguous with 16-byte rows: a thread
// takes sx vectors of a dense row and deals their elements out to sx fragments in registers. Contiguous otherwise: single elements, read and
// written in the order of the dense map, so that reads are coalesced and the writes of a warp fill sx runs.
#pragma once
#include "ptx.cuh"
#include "rows.cuh"

namespace fastconv::cuda {

constexpr int kCopyThreads = 256;
constexpr int kCopiesInFlight = 4;

struct CopyArgs {
  const void* from;
  void* to;
  uint64_t fill;  // bit pattern of one element, repeated
  int h, w;       // of the map
  int sh, sw;
  int row_units, fragment_row_units, pixel;  // in vectors (copy_vectors) or elements (copy_rows)
  int64_t image, fragment;                   // units of a plane of the map, of a fragment
  int64_t planes;                            // planes that share a batch index: 1 for channels_last
  FastDivision by_sh, by_sw;
};

// Where row y of a plane starts: the row of the map, and the row of fragment (oy, 0).
struct CopyRow {
  int64_t dense, fragment;
};

FASTCONV_DEVICE CopyRow copy_row(const CopyArgs& a, const RowsAt& at, uint32_t y) {
  uint32_t oy;
  const uint32_t u = a.by_sh.divide(y, &oy);
  const int64_t batch = (int64_t(at.n) * a.sh + oy) * a.sw;
  return {(at.n * a.planes + at.plane) * a.image + int64_t(y) * a.row_units, (batch * a.planes + at.plane) * a.fragment + int64_t(u) * a.fragment_row_units};
}

// V bytes a time, pixels innermost. The dense grid is padded to whole fragments; `inside` tells a position of the map from a tail.
template <int V, bool ToFragments>
FASTCONV_KERNEL(256, 4) copy_vectors(CopyArgs a, Rows rows) {
  const RowsAt at = rows_at(rows);
  const unsigned char* from = static_cast<const unsigned char*>(a.from);
  unsigned char* to = static_cast<unsigned char*>(a.to);

  for (uint32_t base = threadIdx.x; base < at.elements; base += kCopyThreads * kCopiesInFlight) {
    Bytes<V> value[kCopiesInFlight];
    int64_t target[kCopiesInFlight];
    FASTCONV_UNROLL
    for (int i = 0; i < kCopiesInFlight; ++i) {
      const uint32_t unit = base + i * kCopyThreads;
      target[i] = -1;
      if (unit >= at.elements) continue;
      uint32_t in_row, part, ox;
      const uint32_t y = at.first + rows.by_row.divide(unit, &in_row);
      const uint32_t x = rows.by_pixel.divide(in_row, &part);
      const uint32_t v = a.by_sw.divide(x, &ox);
      const CopyRow row = copy_row(a, at, y);
      const int64_t dense = row.dense + in_row;
      const int64_t fragment = row.fragment + ox * a.planes * a.fragment + int64_t(v) * a.pixel + part;
      const bool inside = y < static_cast<uint32_t>(a.h) && x < static_cast<uint32_t>(a.w);
      if (inside) {
        value[i] = ptx::load<V>(from + (ToFragments ? dense : fragment) * V);
        target[i] = ToFragments ? fragment : dense;
      } else if (ToFragments) {
        FASTCONV_UNROLL
        for (int k = 0; k < (V < 4 ? 1 : V / 4); ++k) value[i].word[k] = static_cast<uint32_t>(k % 2 ? a.fill >> 32 : a.fill);
        target[i] = fragment;
      }
    }
    FASTCONV_UNROLL
    for (int i = 0; i < kCopiesInFlight; ++i)
      if (target[i] >= 0) ptx::store<V>(to + target[i] * V, value[i]);
  }
}

// Contiguous rows that are whole 16-byte vectors on both sides: sx dense vectors against one vector of each of sx fragments.
template <class Element, int SX, bool ToFragments>
FASTCONV_KERNEL(256, 4) copy_rows(CopyArgs a, Rows rows) {
  constexpr int kPer = 16 / sizeof(Element);
  union Row {
    Bytes<16> vector[SX];
    Element element[SX * kPer];
  };
  const RowsAt at = rows_at(rows);
  const Element* from = static_cast<const Element*>(a.from);
  Element* to = static_cast<Element*>(a.to);

  for (uint32_t unit = threadIdx.x; unit < at.elements; unit += kCopyThreads) {
    uint32_t group;
    const uint32_t y = at.first + rows.by_row.divide(unit, &group);
    const CopyRow row = copy_row(a, at, y);
    const int64_t dense = row.dense + int64_t(group) * (SX * kPer), fragment = row.fragment + int64_t(group) * kPer;
    const int64_t next_fragment = a.planes * a.fragment;
    const bool row_inside = y < static_cast<uint32_t>(a.h);
    Row in, out;
    FASTCONV_UNROLL
    for (int i = 0; i < SX; ++i) {
      const bool inside = row_inside && (group * SX + i) * kPer < static_cast<uint32_t>(a.w);
      if (!ToFragments) {
        if (row_inside) in.vector[i] = ptx::load<16>(from + fragment + i * next_fragment);
      } else if (inside) {
        in.vector[i] = ptx::load<16>(from + dense + i * kPer);
      } else {
        FASTCONV_UNROLL
        for (int k = 0; k < 4; ++k) in.vector[i].word[k] = static_cast<uint32_t>(k % 2 ? a.fill >> 32 : a.fill);
      }
    }
    FASTCONV_UNROLL
    for (int i = 0; i < SX; ++i)
      FASTCONV_UNROLL
      for (int k = 0; k < kPer; ++k) {
        if (ToFragments) {
          out.element[i * kPer + k] = in.element[k * SX + i];
        } else {
          out.element[k * SX + i] = in.element[i * kPer + k];
        }
      }
    FASTCONV_UNROLL
    for (int i = 0; i < SX; ++i) {
      if (ToFragments) {
        ptx::store<16>(to + fragment + i * next_fragment, out.vector[i]);
      } else if (row_inside && (group * SX + i) * kPer < static_cast<uint32_t>(a.w)) {
        ptx::store<16>(to + dense + i * kPer, out.vector[i]);
      }
    }
  }
}

}  // namespace fastconv::cuda
