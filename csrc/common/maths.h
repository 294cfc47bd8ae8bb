// exp, log1p, tanh and the like on whole vectors, without branches.
// Coefficients of polynomials are listed from the constant up. Series: Abramowitz and Stegun 4.2.1
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
  static constexpr float lowest = -104.0F, smallest = -87.0F, highest = 88.7F;
  static constexpr float ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
  static constexpr float expm1[] = {1.0F,          0.5F,           0.166665049F,
                                    0.0416664646F, 0.00836918438F, 0.00139336859F};
  static constexpr float atanh[] = {1.0F, 1.0F / 3, 1.0F / 5, 1.0F / 7, 1.0F / 9};
  static constexpr float erfc[] = {0.169284298F, 0.168624923F,  0.168102504F, 0.1077192F,
                                   0.27509299F,  -0.300283919F, 0.799145788F, -0.866662244F,
                                   0.761502307F, -0.339325034F, 0.056799185F};
};

template <>
struct Maths<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double lowest = -745.2, smallest = -708.0, highest = 709.7;
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

namespace parts {

template <class T>
inline Part<T> splat(T value) {
  return value - Part<T>{};
}

template <class T, int count>
inline Part<T> polynomial(const T (&coefficients)[count], Part<T> x) {
  Part<T> value = splat(coefficients[count - 1]);
  for (int i = count - 2; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

// 2^n = low * high and e^r - 1 with x = n ln 2 + r, |r| <= ln 2 / 2; x is clamped to the range of
// exp, whose upper end has n = 128 (1024 in double): low * high alone would be infinite.
template <class T>
inline void reduce(Part<T> x, Part<T>& low, Part<T>& high, Part<T>& rest) {
  using M = Maths<T>;
  x = x < M::lowest ? splat(M::lowest) : x;
  x = x > M::highest ? splat(M::highest) : x;
  const Part<T> shifted = x * T(1.44269504088896340736) + M::magic;
  const Part<T> n = shifted - M::magic;
  const Part<T> r = (x - n * M::ln2_high) - n * M::ln2_low;
  rest = r * polynomial(M::expm1, r);
  // The low bits of `shifted` are n.
  PartIntegers<T> bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  using Integer = decltype(bits[0] + 0);
  const PartIntegers<T> whole = (bits << (8 * sizeof(T) - 12)) >> (8 * sizeof(T) - 12);
  const PartIntegers<T> half = whole >> 1;
  const PartIntegers<T> first = (half + Integer(M::bias)) << M::mantissa;
  const PartIntegers<T> second = (whole - half + Integer(M::bias)) << M::mantissa;
  std::memcpy(&low, &first, sizeof low);
  std::memcpy(&high, &second, sizeof high);
}

// e^x, to about a rounding, subnormal results too; NaN stays.
template <class T>
inline Part<T> exp(Part<T> x) {
  Part<T> low, high, rest;
  reduce<T>(x, low, high, rest);
  const Part<T> value = (low + low * rest) * high;
  return x < Maths<T>::lowest    ? Part<T>{}
         : x > Maths<T>::highest ? splat(std::numeric_limits<T>::infinity())
                                 : value;
}

// e^x for x <= 0, as a softmax needs it: as exp, but 0 where the result would be subnormal.
template <class T>
inline Part<T> decay(Part<T> x) {
  using M = Maths<T>;
  const Part<T> shifted = x * T(1.44269504088896340736) + M::magic;
  const Part<T> n = shifted - M::magic;
  const Part<T> r = (x - n * M::ln2_high) - n * M::ln2_low;
  const Part<T> value = T(1) + r * polynomial(M::expm1, r);
  // The low bits of `shifted` are n.
  PartIntegers<T> bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + M::bias) << M::mantissa;
  Part<T> power;
  std::memcpy(&power, &bits, sizeof power);
  return x < M::smallest ? Part<T>{} : value * power;
}

// log(1 + x) for x >= 0.
template <class T>
inline Part<T> log1p(Part<T> x) {
  using M = Maths<T>;
  const Part<T> u = x + T(1);
  PartIntegers<T> bits;
  std::memcpy(&bits, &u, sizeof bits);
  using Integer = decltype(bits[0] + 0);
  // u = 2^n m with m within a factor of sqrt 2 of 1.
  const Part<T> root = splat(T(0.70710678118654752440));
  PartIntegers<T> root_bits;
  std::memcpy(&root_bits, &root, sizeof root_bits);
  const PartIntegers<T> n = (bits - root_bits) >> M::mantissa;
  const PartIntegers<T> scaled = bits - (n << M::mantissa);
  Part<T> m;
  std::memcpy(&m, &scaled, sizeof m);
  const Part<T> exponent = __builtin_convertvector(n, Part<T>);
  const Part<T> s = (m - T(1)) / (m + T(1));
  // What x lost when 1 was added to it.
  const Part<T> lost = (x - (u - T(1))) / u;
  const Part<T> log_m = T(2) * s * polynomial(M::atanh, s * s);
  const Part<T> value = exponent * M::ln2_high + (log_m + (exponent * M::ln2_low + lost));
  // For infinity the exponent above is wrong.
  return bits >= (Integer(2 * M::bias + 1) << M::mantissa) ? u : value;
}

template <class T>
inline Part<T> sigmoid(Part<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

// By e^2x - 1, which loses nothing near 0.
template <class T>
inline Part<T> tanh(Part<T> x) {
  const Part<T> size = x < T(0) ? -x : x;
  const Part<T> twice = T(2) * (size > T(20) ? splat(T(20)) : size);
  Part<T> low, high, rest;
  reduce<T>(twice, low, high, rest);
  const Part<T> power = low * high;
  const Part<T> expm1 = power * rest + (power - T(1));
  const Part<T> value = expm1 / (expm1 + T(2));
  return x < T(0) ? -value : value;
}

// x Phi(x), Phi the normal distribution function: the exact GELU (Hendrycks and Gimpel 2016).
template <class T>
inline Part<T> gelu(Part<T> x) {
  const Part<T> size = (x < T(0) ? -x : x) * T(0.70710678118654752440);
  const Part<T> t = T(1) / (T(1) + T(0.3) * size);
  const Part<T> tail = T(0.5) * exp<T>(-size * size) * t * polynomial(Maths<T>::erfc, t);
  return x * (x < T(0) ? tail : T(1) - tail);
}

}  // namespace parts

#define OCVTP_WHOLE(function)                                                     \
  template <class T>                                                              \
  inline Vector<T> function(const Vector<T>& x) {                                 \
    return by_parts<T>([](Part<T> part) { return parts::function<T>(part); }, x); \
  }
OCVTP_WHOLE(exp)
OCVTP_WHOLE(decay)
OCVTP_WHOLE(log1p)
OCVTP_WHOLE(sigmoid)
OCVTP_WHOLE(tanh)
OCVTP_WHOLE(gelu)
#undef OCVTP_WHOLE

}  // namespace ocvtp::OCVTP_ISA
