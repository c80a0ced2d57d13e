// Plans of the depthwise convolution's CUDA kernels.
#pragma once
#include "plan.h"

namespace fastconv::cuda {

// What a thread of the forward kernels of a square kernel of this size owns; running sums and weights live in its registers.
constexpr bool depthwise_special(int64_t kh, int64_t kw) { return kh == kw && (kh == 3 || kh == 5 || kh == 7); }
constexpr int depthwise_channels(int k) { return k == 7 ? 2 : 4; }  // channels_last
constexpr int depthwise_columns(int k) { return k == 5 ? 2 : 4; }
constexpr int kDepthwiseStages = 4;  // rows of the ring: one in use, the others on their way
constexpr int depthwise_band_columns(int k) { return k == 3 ? 4 : 2; }  // contiguous

enum class DepthwiseForm {
  elements,  // one element of the result a thread, anything goes
  vectors,   // channels_last: 16 bytes of channels of one position a thread, any kernel
  pixels,    // channels_last, square kernels, stride 1: strips
  bands,     // contiguous, square kernels, stride 1: staged bands
};
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

}  // namespace fastconv::cuda
