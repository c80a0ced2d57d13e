// Activations in registers. Identity and the clamps (relu, relu6) are instances of their own; the smooth ones share an instance and a switch on
// a kernel argument, since their arithmetic hides it.
#pragma once
#include "common/params.h"
#include "ptx.cuh"

namespace fastconv::cuda {

enum class Form { identity, clamp, smooth };

constexpr Form form_of(Activation a) {
  return a == Activation::identity ? Form::identity : a == Activation::relu || a == Activation::relu6 ? Form::clamp : Form::smooth;
}

struct ActivationArgs {
  Activation kind;
  float high;  // of a clamp; the low end is 0

  explicit ActivationArgs(Activation a) : kind(a), high(a == Activation::relu6 ? 6.f : INFINITY) {}
};

// Fast: errors far below the rounding of 16-bit results. Otherwise accurate to a few ulp of float.
template <bool Fast>
FASTCONV_DEVICE float exponential(float x) {
  return Fast ? ptx::fast_exp2(x * 1.44269504f) : expf(x);
}
template <bool Fast>
FASTCONV_DEVICE float sigmoid(float x) {
  const float d = 1.f + exponential<Fast>(-x);
  return Fast ? ptx::fast_reciprocal(d) : 1.f / d;
}
// The sigmoid s, and 1 - s without the bits that a subtraction loses where s is near 1.
struct Sigmoid {
  float s, rest;
};
template <bool Fast>
FASTCONV_DEVICE Sigmoid sigmoid_parts(float x) {
  const float e = ptx::min_nan(exponential<Fast>(-x), 1e30f), r = Fast ? ptx::fast_reciprocal(1.f + e) : 1.f / (1.f + e);
  return {r, e * r};
}
FASTCONV_DEVICE float gelu_tanh_argument(float x) { return 0.79788456f * (0.044715f * x * x * x + x); }

template <bool Fast>
FASTCONV_DEVICE float smooth_activation(Activation kind, float x) {
  switch (kind) {
    case Activation::silu: return x * sigmoid<Fast>(x);
    case Activation::gelu: return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case Activation::gelu_tanh: return x * sigmoid<Fast>(2.f * gelu_tanh_argument(x));  // (1 + tanh u) / 2 = sigmoid(2u)
    default: return x * ptx::min_nan(6.f, ptx::max_nan(0.f, x + 3.f)) * (1.f / 6.f);
  }
}

template <Form F, bool Fast>
FASTCONV_DEVICE float activate(const ActivationArgs& a, float x) {
  if (F == Form::identity) return x;
  if (F == Form::clamp) return ptx::min_nan(a.high, ptx::max_nan(0.f, x));
  return smooth_activation<Fast>(a.kind, x);
}

// Of any kind, chosen at run time: for paths where a branch costs nothing beside the rest.
template <bool Fast>
FASTCONV_DEVICE float activate_any(const ActivationArgs& a, float x) {
  if (a.kind == Activation::identity) return x;
  if (a.kind == Activation::relu || a.kind == Activation::relu6) return activate<Form::clamp, Fast>(a, x);
  return smooth_activation<Fast>(a.kind, x);
}

// A gradient through relu or relu6, from the activation's output or its input; as PyTorch, it passes where that is NaN.
FASTCONV_DEVICE float clamp_gate(const ActivationArgs& a, float x, float grad) { return x <= 0.f || x >= a.high ? 0.f : grad; }

// Derivative at pre-activation x; for relu and relu6 the activation's output serves as well.
template <bool Fast>
FASTCONV_DEVICE float derivative_any(const ActivationArgs& a, float x) {
  switch (a.kind) {
    case Activation::identity: return 1.f;
    case Activation::relu: return x <= 0.f ? 0.f : 1.f;
    case Activation::relu6: return x <= 0.f || x >= 6.f ? 0.f : 1.f;
    case Activation::silu: {
      const Sigmoid g = sigmoid_parts<Fast>(x);
      return g.s * (x * g.rest + 1.f);
    }
    case Activation::gelu: return 0.5f * (1.f + erff(x * 0.70710678f)) + x * 0.39894228f * exponential<Fast>(-0.5f * x * x);
    case Activation::gelu_tanh: {
      const Sigmoid g = sigmoid_parts<Fast>(2.f * gelu_tanh_argument(x));
      return g.s + x * 2.f * g.s * g.rest * 0.79788456f * (3.f * 0.044715f * x * x + 1.f);
    }
    default: return x <= -3.f ? 0.f : x < 3.f ? x * (1.f / 3.f) + 0.5f : 1.f;
  }
}

}  // namespace fastconv::cuda
