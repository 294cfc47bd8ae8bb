// exp, log1p, tanh and the like on whole vectors, without branches.
// A polynomial's coefficients stand from the constant up. Series: Abramowitz and Stegun 4.2.1
// (exp), 4.1.27 (log); erfc is exp(-x^2) t P(t) with t = 1 / (1 + 0.3 x), P interpolated at the
// Chebyshev nodes of 0 <= x <= 10.5 to a relative 2e-9 (float) and 3e-19 (double).
#pragma once

#include <limits>

#include "common/simd.h"

namespace ocvtp::OCVTP_ISA {

template <class T>
struct Maths;

template <>
struct Maths<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float lowest = -87.0F, highest = 88.7F;
  static constexpr float ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
  static constexpr float expm1[] = {1.0F,       0.5F,       1.0F / 6,   1.0F / 24,
                                    1.0F / 120, 1.0F / 720, 1.0F / 5040};
  static constexpr float atanh[] = {1.0F, 1.0F / 3, 1.0F / 5, 1.0F / 7, 1.0F / 9};
  static constexpr float erfc[] = {0.169284298F, 0.168624923F,  0.168102504F, 0.1077192F,
                                   0.27509299F,  -0.300283919F, 0.799145788F, -0.866662244F,
                                   0.761502307F, -0.339325034F, 0.056799185F};
};

template <>
struct Maths<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double lowest = -708.0, highest = 709.7;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double expm1[] = {1.0,
                                     1.0 / 2,
                                     1.0 / 6,
                                     1.0 / 24,
                                     1.0 / 120,
                                     1.0 / 720,
                                     1.0 / 5040,
                                     1.0 / 40320,
                                     1.0 / 362880,
                                     1.0 / 3628800,
                                     1.0 / 39916800,
                                     1.0 / 479001600,
                                     1.0 / 6227020800,
                                     1.0 / 87178291200};
  static constexpr double atanh[] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                                     1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
  static constexpr double erfc[] = {
      0.169256873554992123,    0.169256944525319952,   0.161638809555239247,
      0.146427658766632737,    0.12439038772023241,    0.0996260712989684472,
      0.0624941488793906852,   0.0775043748787034474,  -0.0980944145314556112,
      0.350131020681616912,    -0.812135347815056023,  1.54799515000799172,
      -2.42731686638413127,    3.03502513196317096,    -2.99067151585857414,
      2.23351852710656301,     -1.16212348135670178,   0.333282814478261609,
      0.0253928131075381292,   -0.0709759408712116569, 0.0315442275332773228,
      -0.00677894509479896765, 0.000611557854030744203};
};

template <class T, int count>
inline Vector<T> polynomial(const T (&coefficients)[count], Vector<T> x) {
  Vector<T> value = splat(coefficients[count - 1]);
  for (int i = count - 2; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

// NaN in `other` stays: a comparison with it is false.
template <class T>
inline Vector<T> larger(Vector<T> x, Vector<T> other) {
  return x > other ? x : other;
}

// 2^n and e^r - 1 with x = n ln 2 + r, |r| <= ln 2 / 2; x is clamped to where 2^n is a number.
template <class T>
inline void reduce(Vector<T> x, Vector<T>& power, Vector<T>& rest) {
  using M = Maths<T>;
  x = x < M::lowest ? splat(M::lowest) : x;
  x = x > M::highest ? splat(M::highest) : x;
  const Vector<T> shifted = x * T(1.44269504088896340736) + M::magic;
  const Vector<T> n = shifted - M::magic;
  const Vector<T> r = (x - n * M::ln2_high) - n * M::ln2_low;
  rest = r * polynomial(M::expm1, r);
  // The low bits of `shifted` are n. Half of the power twice: 2^128 alone is no float.
  Integers<T> bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  using Integer = decltype(bits[0] + 0);
  const Integers<T> whole = (bits << (8 * sizeof(T) - 12)) >> (8 * sizeof(T) - 12);
  const Integers<T> half = whole >> 1;
  const Integers<T> first = (half + Integer(M::bias)) << M::mantissa;
  const Integers<T> second = (whole - half + Integer(M::bias)) << M::mantissa;
  Vector<T> low, high;
  std::memcpy(&low, &first, sizeof low);
  std::memcpy(&high, &second, sizeof high);
  power = low * high;
}

// e^x, to about a rounding; 0 where the result would be subnormal, NaN stays.
template <class T>
inline Vector<T> exp(Vector<T> x) {
  Vector<T> power, rest;
  reduce<T>(x, power, rest);
  const Vector<T> value = power + power * rest;
  return x < Maths<T>::lowest    ? Vector<T>{}
         : x > Maths<T>::highest ? splat(std::numeric_limits<T>::infinity())
                                 : value;
}

// log(1 + x) for x >= 0.
template <class T>
inline Vector<T> log1p(Vector<T> x) {
  using M = Maths<T>;
  const Vector<T> u = x + T(1);
  Integers<T> bits;
  std::memcpy(&bits, &u, sizeof bits);
  using Integer = decltype(bits[0] + 0);
  // u = 2^n m with m within a factor of sqrt 2 of 1.
  const Vector<T> root = splat(T(0.70710678118654752440));
  Integers<T> root_bits;
  std::memcpy(&root_bits, &root, sizeof root_bits);
  const Integers<T> n = (bits - root_bits) >> M::mantissa;
  const Integers<T> scaled = bits - (n << M::mantissa);
  Vector<T> m;
  std::memcpy(&m, &scaled, sizeof m);
  const Vector<T> exponent = __builtin_convertvector(n, Vector<T>);
  const Vector<T> s = (m - T(1)) / (m + T(1));
  // What x lost when 1 was added to it.
  const Vector<T> lost = (x - (u - T(1))) / u;
  const Vector<T> log_m = T(2) * s * polynomial(M::atanh, s * s);
  const Vector<T> value = exponent * M::ln2_high + (log_m + (exponent * M::ln2_low + lost));
  // An infinity's bits are no number's.
  return bits >= (Integer(2 * M::bias + 1) << M::mantissa) ? u : value;
}

template <class T>
inline Vector<T> sigmoid(Vector<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

// By e^2x - 1, which loses nothing near 0.
template <class T>
inline Vector<T> tanh(Vector<T> x) {
  const Vector<T> size = x < T(0) ? -x : x;
  const Vector<T> twice = T(2) * (size > T(20) ? splat(T(20)) : size);
  Vector<T> power, rest;
  reduce<T>(twice, power, rest);
  const Vector<T> expm1 = power * rest + (power - T(1));
  const Vector<T> value = expm1 / (expm1 + T(2));
  return x < T(0) ? -value : value;
}

// x Phi(x), Phi the normal distribution function: the exact GELU (Hendrycks and Gimpel 2016).
template <class T>
inline Vector<T> gelu(Vector<T> x) {
  const Vector<T> size = (x < T(0) ? -x : x) * T(0.70710678118654752440);
  const Vector<T> t = T(1) / (T(1) + T(0.3) * size);
  const Vector<T> tail = T(0.5) * exp<T>(-size * size) * t * polynomial(Maths<T>::erfc, t);
  return x * (x < T(0) ? tail : T(1) - tail);
}

}  // namespace ocvtp::OCVTP_ISA
