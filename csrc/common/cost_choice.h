// Fused or through memory: what serves a separable layer on a GPU, by what was measured on it or else by predicted times.
#pragma once
#include "cost_separable.h"

namespace fastconv::cuda {

// Rates of a GPU of this kind, by its multiprocessors; data sheets, and an H200's copy and library product as measured.
Rates rates_of(const Device& device);

// The layer through memory: the depthwise kernel, the library's product, and a pass over the result for whatever the library does not fuse with it.
// Bytes over the copy rate, an assumption for the library's kernels.
std::vector<Cost> cost_library(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates);
// Whether the library's product is a matrix product with its bias, or a convolution: rows of channels, but float32, whose flag for TF32 only
// convolutions share.
constexpr bool library_rows(const SeparableForward& p) { return p.layout == Layout::channels_last && p.dtype != DType::f32; }

struct SeparableChoice {
  bool library;
  bool measured;  // by a table; otherwise predicted
  double fused_seconds, library_seconds;  // predicted
};
SeparableChoice weigh_separable(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates);
// The same at the rates of the device's kind; remembers layers, so that a call that comes again does not weigh costs again.
SeparableChoice choose_separable(const SeparableForward& p, FloatProducts products, const Device& device);

// One line for people, as FASTCONV_LOG=1 prints it where the library is taken.
std::string describe_choice(const SeparableForward& p, FloatProducts products, const SeparableChoice& choice);

}  // namespace fastconv::cuda
