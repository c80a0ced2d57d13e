// Plans of the depthwise convolution's CUDA kernels.
#pragma once
#include "plan.h"

namespace fastconv::cuda {

// What a thread of the forward kernels of a square kernel of this size owns; running sums and weights live in its registers.
constexpr bool depthwise_special(int64_t kh, int64_t kw) { return kh == kw && (kh == 3 || kh == 5 || kh == 7); }
constexpr int depthwise_channels(int k) { return k == 7 ? 2 : 4; }  // channels_last
constexpr int depthwise_columns(int k) { return k == 5 ? 2 : 4; }
constexpr int depthwise_blocks(int k) { return k == 3 ? 4 : 2; }  // of 128 threads that a multiprocessor holds
constexpr int kDepthwiseStages = 4;  // rows of the ring: one in use, the others on their way
constexpr int depthwise_band_columns(int k) { return k == 3 ? 4 : 2; }  // contiguous

enum class DepthwiseForm {
  elements,  // one element of the result a thread, anything goes
  vectors,   // channels_last: 16 bytes of channels of one position a thread, any kernel
  pixels,    // channels_last, square kernels, stride 1: strips
  bands,     // contiguous, square kernels, stride 1: staged bands
};
constexpr const char* depthwise_form_name(DepthwiseForm f) {
  constexpr const char* names[] = {"elements", "vectors", "pixels", "bands"};
  return names[static_cast<int>(f)];
}
struct DepthwisePlan {
  DepthwiseForm form;
  RowPlan rows;      // elements, vectors
  StripPlan strips;  // pixels
  BandPlan band;     // bands
  int64_t slice_vectors, slices;  // vectors: channel vectors of a block, blocks side by side
  int threads;                    // of a block
  int64_t blocks;
  size_t shared_bytes;
};
DepthwisePlan plan_depthwise(const DepthwiseForward& p, const Device& device);

// ---- backward ------------------------------------------------------------------------------------------------------------------
constexpr int depthwise_backward_channels(int k) { return k == 3 ? 4 : 2; }  // channels_last
constexpr int depthwise_backward_columns(int k) { return k == 5 ? 3 : 4; }
constexpr int kDepthwiseTapsAtOnce = 10;  // of the general weight gradient: a 3 x 3 kernel and its bias

// Which positions the one-pass kernels divide among themselves: x's own, and beyond them as many as it takes for every element of grad to stand at
// the kernel's centre of one of them.
struct Reach {
  int64_t low, size;
};
Reach reach(int64_t size, int64_t out, int64_t padding, int64_t dilation, int64_t kernel);

struct SlotPlan {
  int64_t vectors, slice_vectors, slices, groups, splits, strips;
};
enum class DepthwiseBackwardForm {
  pixels,        // channels_last, K = 3, 5: both gradients in one pass
  pixels_twice,  // channels_last, K = 7: dx by the forward kernel with the kernel turned round, dw by the one-pass kernel
  bands,         // contiguous: both in one pass
  forward,       // dx alone, by the forward kernel
  elements,      // the general kernels
};
struct DepthwiseBackwardPlan {
  DepthwiseBackwardForm form;
  StripPlan strips;      // pixels
  SlotPlan slots;        // pixels
  BandPlan band;         // bands, of grad
  BandPlan own;          // bands, of x
  DepthwisePlan turned;  // forward, pixels_twice: the plan of dx
  RowPlan rows;          // elements
  int64_t lanes;         // elements: channels of a block of the weight gradient
  int threads;
  int64_t blocks;
  int64_t splits;        // partial results of dw
  size_t shared_bytes, partial_bytes;
};
// `wants_dw`: the gradient of the weight or of the bias is asked for; dx is where its data is.
DepthwiseBackwardPlan plan_depthwise_backward(const DepthwiseBackward& p, bool wants_dw, const Device& device);
// dx as a convolution of grad (stride 1): the kernel is turned round, the padding is what a full convolution has less the padding taken.
DepthwiseForward turned(const DepthwiseBackward& p);

}  // namespace fastconv::cuda
