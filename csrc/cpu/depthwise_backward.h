// Gradients of a depthwise convolution on the CPU, as an operator's whole work and as the second phase of the separable backward.
#pragma once
#include "kernels.h"

namespace fastconv {

// Plans, allocates scratch, runs the parallel loops; dx, dw and db are complete on return. float32, float16, bfloat16. With a gate, `grad` counts
// multiplied by gate.activation'(gate.z).
void run_depthwise_backward(const DepthwiseBackward& p, const ActivationGate& gate = {Activation::identity, {}});

}  // namespace fastconv
