// shift and stitch: copies between a map and its fragments. An item is one row of the map, of one plane (contiguous) or of one image
// (channels_last), the rows that only a fragment's tail has included.
#include "../kernels.h"
#include "common/shape.h"
#include "deal.h"

namespace fastconv::FASTCONV_ISA {
namespace {

template <class E>
void shift_row(const ShiftStitch& p, const E* row, int64_t n, int64_t c, int64_t y, E* out) {
  const DealtMap& m = p.fragments;
  const int64_t pixel = m.pixel(), held = y < p.h ? p.w : 0, whole = held / m.sx;
  E* first = out + m.offset(n, c, y, 0);
  if (pixel == 1) {
    spread(row, first, m.fragment_stride(), m.sx, whole);
  } else {
    for (int64_t x = 0; x < whole * m.sx; ++x) memcpy(first + x % m.sx * m.fragment_stride() + x / m.sx * pixel, row + x * pixel, sizeof(E) * pixel);
  }
  // The ragged end: some fragments still hold a column.
  for (int64_t o = 0; o < m.sx; ++o)
    for (int64_t v = whole; v < m.w; ++v)
      for (int64_t i = 0; i < pixel; ++i) first[o * m.fragment_stride() + v * pixel + i] = v * m.sx + o < held ? row[(v * m.sx + o) * pixel + i] : E(p.fill);
}

template <class E>
void stitch_row(const ShiftStitch& p, const E* in, int64_t n, int64_t c, int64_t y, E* row) {
  const DealtMap& m = p.fragments;
  const int64_t pixel = m.pixel(), whole = p.w / m.sx;
  const E* first = in + m.offset(n, c, y, 0);
  if (pixel == 1) {
    collect(first, m.fragment_stride(), m.sx, whole, row);
    for (int64_t x = whole * m.sx; x < p.w; ++x) row[x] = first[x % m.sx * m.fragment_stride() + x / m.sx];
  } else {
    for (int64_t x = 0; x < p.w; ++x) memcpy(row + x * pixel, first + x % m.sx * m.fragment_stride() + x / m.sx * pixel, sizeof(E) * pixel);
  }
}

struct RowOf {
  int64_t n, c, y, start;  // start: of the row in the map
};
RowOf row_of(const ShiftStitch& p, int64_t height, int64_t item) {
  const DealtMap& m = p.fragments;
  RowOf r;
  r.y = item % height;
  const int64_t plane = item / height;
  r.n = m.layout == Layout::contiguous ? plane / m.channels : plane;
  r.c = m.layout == Layout::contiguous ? plane % m.channels : 0;
  r.start = (plane * p.h + r.y) * p.w * m.pixel();
  return r;
}

template <class E>
void shift_rows(const ShiftStitch& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RowOf r = row_of(p, p.fragments.h * p.fragments.sy, item);
    shift_row(p, static_cast<const E*>(p.in) + r.start, r.n, r.c, r.y, static_cast<E*>(p.out));
  }
}
template <class E>
void stitch_rows(const ShiftStitch& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RowOf r = row_of(p, p.h, item);
    stitch_row(p, static_cast<const E*>(p.in), r.n, r.c, r.y, static_cast<E*>(p.out) + r.start);
  }
}

void shift(const ShiftStitch& p, int64_t begin, int64_t end) {
  switch (p.bytes) {
    case 1: return shift_rows<uint8_t>(p, begin, end);
    case 2: return shift_rows<uint16_t>(p, begin, end);
    case 4: return shift_rows<uint32_t>(p, begin, end);
    case 8: return shift_rows<uint64_t>(p, begin, end);
  }
}
void stitch(const ShiftStitch& p, int64_t begin, int64_t end) {
  switch (p.bytes) {
    case 1: return stitch_rows<uint8_t>(p, begin, end);
    case 2: return stitch_rows<uint16_t>(p, begin, end);
    case 4: return stitch_rows<uint32_t>(p, begin, end);
    case 8: return stitch_rows<uint64_t>(p, begin, end);
  }
}

}  // namespace

void register_shift_stitch(Kernels& t) {
  t.shift = &shift;
  t.stitch = &stitch;
}

}  // namespace fastconv::FASTCONV_ISA
