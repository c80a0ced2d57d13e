// Activations on vectors, accurate to a few ulp of float32.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// e^x by 2^n * p(r), |r| <= ln2/2, degree-6 minimax p (Cephes expf); saturates where float32 does.
FASTCONV_INLINE vf exp(vf x) {
  x = min(set1(88.72283f), max(set1(-87.33654f), x));
  const vf n = fma(x, set1(1.44269504f), set1(12582912.f)) - set1(12582912.f);
  vf r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  vf p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.f));
  // 2^n in two halves: n = 128 alone would overflow the exponent field.
  const vi i = __builtin_convertvector(n, vi), half = i >> 1;
  return p * (vf)((half + 127) << 23) * (vf)((i - half + 127) << 23);
}

FASTCONV_INLINE vf sigmoid(vf x) { return set1(1.f) / (set1(1.f) + exp(-x)); }

// erf by Abramowitz and Stegun 7.1.26 for |x| > 0.5 and by its Maclaurin series below, where 7.1.26 loses relative accuracy.
FASTCONV_INLINE vf erf(vf x) {
  const vf a = x < vf{} ? -x : x;
  const vf t = set1(1.f) / fma(a, set1(0.3275911f), set1(1.f));
  vf p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  const vf far = set1(1.f) - p * t * exp(-a * a);
  const vf s = a * a;
  vf q = set1(-7.5757576e-4f);
  q = fma(q, s, set1(4.6296296e-3f));
  q = fma(q, s, set1(-2.3809524e-2f));
  q = fma(q, s, set1(0.1f));
  q = fma(q, s, set1(-3.3333333e-1f));
  q = fma(q, s, set1(1.f));
  const vf near = set1(1.12837917f) * a * q;
  const vf y = a < set1(0.5f) ? near : far;
  return x < vf{} ? -y : y;
}

FASTCONV_INLINE vf gelu_tanh_argument(vf x) { return set1(0.79788456f) * fma(set1(0.044715f) * x * x, x, x); }

template <Activation A>
FASTCONV_INLINE vf activate(vf x) {
  switch (A) {
    case Activation::identity: return x;
    case Activation::relu: return max(vf{}, x);
    case Activation::relu6: return min(set1(6.f), max(vf{}, x));
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return set1(0.5f) * x * (set1(1.f) + erf(x * set1(0.70710678f)));
    case Activation::gelu_tanh: return x * sigmoid(set1(2.f) * gelu_tanh_argument(x));  // (1 + tanh u) / 2 = sigmoid(2u)
    case Activation::hardswish: return x * min(set1(6.f), max(vf{}, x + set1(3.f))) * set1(1.f / 6.f);
  }
  return x;
}

// Derivative at pre-activation x (for relu and relu6 the activation's output serves as well).
template <Activation A>
FASTCONV_INLINE vf derivative(vf x) {
  const vf one = set1(1.f), zero = {};
  switch (A) {
    case Activation::identity: return one;
    case Activation::relu: return x > zero ? one : zero;
    case Activation::relu6: return (x > zero) & (x < set1(6.f)) ? one : zero;
    case Activation::silu: {
      const vf s = sigmoid(x);
      return s * fma(x, one - s, one);
    }
    case Activation::gelu: {
      const vf cdf = set1(0.5f) * (one + erf(x * set1(0.70710678f)));
      return fma(x * set1(0.39894228f), exp(set1(-0.5f) * x * x), cdf);
    }
    case Activation::gelu_tanh: {
      const vf s = sigmoid(set1(2.f) * gelu_tanh_argument(x));
      const vf du = set1(0.79788456f) * fma(set1(3.f * 0.044715f) * x, x, one);
      return fma(x * set1(2.f) * s * (one - s), du, s);
    }
    case Activation::hardswish: {
      const vf slope = fma(x, set1(1.f / 3.f), set1(0.5f));
      return x <= set1(-3.f) ? zero : (x < set1(3.f) ? slope : one);
    }
  }
  return one;
}

// Calls f with the activation as a compile-time constant, so that loops inside f carry no switch.
template <Activation A>
struct Constant {
  static constexpr Activation value = A;
};
template <class F>
FASTCONV_INLINE void with_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::identity: return f(Constant<Activation::identity>{});
    case Activation::relu: return f(Constant<Activation::relu>{});
    case Activation::relu6: return f(Constant<Activation::relu6>{});
    case Activation::silu: return f(Constant<Activation::silu>{});
    case Activation::gelu: return f(Constant<Activation::gelu>{});
    case Activation::gelu_tanh: return f(Constant<Activation::gelu_tanh>{});
    case Activation::hardswish: return f(Constant<Activation::hardswish>{});
  }
}

// The rarer activations share one copy of their code: inlining them into every kernel would multiply its size.
__attribute__((noinline)) inline void activate_out_of_line(vf* v, int count, Activation a) {
  with_activation(a, [&](auto c) {
    for (int i = 0; i < count; ++i) v[i] = activate<c.value>(v[i]);
  });
}

// All vectors of a register block.
template <int N>
FASTCONV_INLINE void activate_all(vf (&v)[N], Activation a) {
  if (a == Activation::identity) return;
  if (a == Activation::relu) {
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) v[i] = activate<Activation::relu>(v[i]);
  } else if (a == Activation::relu6) {
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) v[i] = activate<Activation::relu6>(v[i]);
  } else {
    // Unrolled, or else v would live in memory for the sake of this branch.
    vf copy[N];
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) copy[i] = v[i];
    activate_out_of_line(copy, N, a);
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) v[i] = copy[i];
  }
}

}  // namespace fastconv::FASTCONV_ISA
