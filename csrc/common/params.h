// Plain descriptions of what a kernel is asked to do: sizes, element strides (64-bit), pointers. No torch, no CUDA, no std containers:
// shared by the CPU kernels (compiled once per instruction set), the CUDA kernels and the planner.
#pragma once
#include <cstdint>

namespace fastconv {

enum class DType : int { f32 = 0, f16 = 1, bf16 = 2, f64 = 3 };
enum class Layout : int { contiguous = 0, channels_last = 1 };
enum class Activation : int { identity = 0, relu = 1, relu6 = 2, silu = 3, gelu = 4, gelu_tanh = 5, hardswish = 6 };

// Whether d(activation) can be read off the activation's output; otherwise the backward pass recomputes its input.
constexpr bool derivative_from_output(Activation a) { return a == Activation::relu || a == Activation::relu6; }

// A depthwise convolution. The input channel of output channel j is j / multiplier.
struct ConvGeometry {
  int64_t n, c, h, w;  // input
  int64_t multiplier;  // output channels per input channel
  int64_t kh, kw, sh, sw, dh, dw;
  int64_t pt, pb, pl, pr;  // padding: top, bottom, left, right
  int64_t oh, ow;          // output
  constexpr int64_t out_channels() const { return c * multiplier; }
  constexpr int64_t taps() const { return kh * kw; }
};

// A (N, C, H, W) operand: strides count elements. Layout::contiguous means sw == 1, Layout::channels_last means sc == 1.
struct MapView {
  const void* data;
  int64_t sn, sc, sh, sw;
};
struct MutableMapView {
  void* data;
  int64_t sn, sc, sh, sw;
};

struct DepthwiseForward {
  ConvGeometry g;
  DType dtype;
  Layout layout;
  Activation input_activation, activation;
  MapView x;
  const void* weight;  // (C*M, Kh, Kw), dense, dtype
  const void* bias;    // (C*M), dtype, or null
  MutableMapView out;
};

struct SeparableForward {
  ConvGeometry g;
  int64_t o;  // channels of the pointwise result
  DType dtype;
  Layout layout;
  Activation input_activation, depthwise_activation, pointwise_activation;
  MapView x;
  const void* depthwise_weight;  // (C*M, Kh, Kw), dense, dtype
  const void* depthwise_bias;    // (C*M) or null
  const void* pointwise_weight;  // (O, C*M), dense, dtype
  const void* pointwise_bias;    // (O) or null
  MapView residual;              // data null when absent; layout of out
  MutableMapView out;
};

// Gradients of a depthwise convolution; `grad` is already multiplied by the derivative of the activation that follows.
// dx = conv_transpose(grad, weight) * input_activation'(x), dw[t] = sum_p input_activation(x)[p + t] * grad[p], db = sum_p grad[p].
struct DepthwiseBackward {
  ConvGeometry g;
  DType dtype;
  Layout layout;
  Activation input_activation;
  MapView x;
  MapView grad;        // (N, C*M, OH, OW)
  const void* weight;  // (C*M, Kh, Kw), dense, dtype
  MutableMapView dx;   // data null when not wanted
  float* dw;           // (C*M, Kh, Kw), or null
  float* db;           // (C*M), or null
};

// The part of a fused separable backward that precedes the depthwise backward: from the gradient of the output to that of the depthwise result.
struct SeparableBackward {
  SeparableForward f;       // input and weights; its out is unused
  MapView grad;             // gradient of the output
  MapView pointwise_z;      // where pointwise_activation is not the identity: its output (relu, relu6) or its input (the others)
  MutableMapView dz1;       // gradient of the depthwise pre-activation, dtype; data null when not wanted
  MutableMapView dresidual; // gradient of the pointwise pre-activation, dtype; data null when not wanted
  float* dpointwise;        // (O, C*M), or null
  float* dbias;             // (O), or null
};

// A pool evaluated at every offset 0 <= (oy, ox) < (sh, sw); lengths from shape.h.
struct PoolGeometry {
  int64_t n, c, h, w;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  int64_t dense_h, dense_w;  // positions of the dense (stitched) map
  int64_t frag_h, frag_w;    // rows and columns of one fragment: ceil(dense / stride)
  bool fragments;
};

}  // namespace fastconv
