// Plain descriptions of the pooling operators, as params.h gives them for the convolutions.
#pragma once
#include "params.h"

namespace fastconv {

// (N, C, h, w) of a dense tensor, read as a dense map dealt out to sy*sx fragments of `h` rows and `w` columns each; sy = sx = 1 is an
// ordinary map. Position (y, x) of map n is row y/sy, column x/sx of batch index (n*sy + y%sy)*sx + x%sx.
struct DealtMap {
  int64_t channels, h, w, sy, sx;
  Layout layout;
  int64_t pixel() const { return layout == Layout::channels_last ? channels : 1; }
  // Of the first element of column `fragment` (an offset 0 <= ox < sx) in row y.
  int64_t offset(int64_t n, int64_t c, int64_t y, int64_t fragment) const {
    const int64_t u = sy == 1 ? y : y / sy, b = (n * sy + y - u * sy) * sx + fragment;
    return layout == Layout::channels_last ? (b * h + u) * w * channels + c : ((b * channels + c) * h + u) * w;
  }
  int64_t fragment_stride() const { return channels * h * w; }
};

struct MaxPool {
  PoolGeometry g;
  DType dtype;
  Layout layout;
  double fill;
  const void* x;
  void* out;
  uint8_t* argmax;   // tap ky*kw + kx of every window, or null
  int64_t* indices;  // y*w + x in the input plane, or null
};

struct MaxPoolBackward {
  PoolGeometry g;
  DType dtype;
  Layout layout;
  const void* grad;       // (N, C, dense_h, dense_w) or its fragments
  const uint8_t* argmax;  // null: recomputed from x
  const void* x;
  void* dx;
};

struct AvgPool {
  PoolGeometry g;
  DType dtype;
  Layout layout;
  bool backward;           // from the gradient of the dense map to the gradient of the input
  bool count_include_pad;
  int64_t divisor;         // 0: the number of taps counted
  double fill;
  const void* in;
  void* out;
};

// Copies between a map and its fragments; `bytes` is the size of an element.
struct ShiftStitch {
  DealtMap fragments;
  int64_t n, h, w;  // the map
  int bytes;
  const void* in;
  void* out;
  uint64_t fill;    // bit pattern, shift only
};

// An item is a strip: one plane (contiguous) or `channels` channels of one image (channels_last), `columns` pixels wide, `rows` high.
struct PoolPlan {
  int64_t items;
  int64_t channels, columns, rows;
  int64_t chunks, strips, bands;  // how many of them cover an image
  int64_t scratch_bytes;          // per thread
};

}  // namespace fastconv
