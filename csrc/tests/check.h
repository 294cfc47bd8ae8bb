// What the device tests share: random numbers, element types in double, and the checks.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "common/device.cuh"

namespace ocvtp::test {

inline int failures = 0;

#define EXPECT(condition, ...)                                             \
  do {                                                                     \
    if (!(condition) && ++ocvtp::test::failures <= 20) {                   \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fputc('\n', stderr);                                            \
    }                                                                      \
  } while (0)

inline int result(const char* name) {
  std::printf("%s: %s (%d failures)\n", name, failures ? "FAILED" : "passed", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  std::uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545F4914F6CDD1Du;
  }
  int below(int n) { return static_cast<int>((next() >> 33) % static_cast<std::uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double normal() {
    return std::sqrt(-2.0 * std::log(1.0 - uniform())) * std::cos(6.283185307179586 * uniform());
  }

 private:
  std::uint64_t state_;
};

// Half an ulp, relative: what one rounding costs.
template <class T>
double rounding();
template <>
inline double rounding<float>() {
  return 0x1p-24;
}
template <>
inline double rounding<half>() {
  return 0x1p-11;
}
template <>
inline double rounding<bfloat16>() {
  return 0x1p-8;
}

template <class T>
const char* name();
template <>
inline const char* name<float>() {
  return "float";
}
template <>
inline const char* name<half>() {
  return "half";
}
template <>
inline const char* name<bfloat16>() {
  return "bfloat16";
}

template <class T>
double value(T x) {
  return static_cast<double>(to_float(x));
}

// n values that no kernel may read or leave: NaN.
template <class T>
std::vector<T> poison(std::size_t n) {
  return std::vector<T>(n, from_float<T>(static_cast<float>(kNaN)));
}

// [rows, stride] normal numbers, NaN past `width`; every `outlier`-th channel 80 times the rest.
template <class T>
std::vector<T> random_rows(Random& random, int rows, int width, int stride, double mean = 0.0,
                           int outlier = 0, double deviation = 1.0) {
  std::vector<T> x = poison<T>(static_cast<std::size_t>(rows) * stride);
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < width; ++i) {
      const double size = outlier && i % outlier == outlier - 1 ? 80.0 : 1.0;
      x[static_cast<std::size_t>(row) * stride + i] =
          from_float<T>(static_cast<float>(mean + deviation * size * random.normal()));
    }
  return x;
}

// |got - expected| within one rounding to T and `slack` of float arithmetic; NaN only where
// expected.
template <class T>
bool near(T got, double expected, double slack) {
  const double x = value(got);
  if (std::isnan(expected)) return std::isnan(x);
  // A subnormal half rounds by 2^-25, however small.
  const double subnormal = sizeof(T) == 2 ? 0x1p-25 : 0.0;
  return std::abs(x - expected) <= 1.001 * rounding<T>() * std::abs(expected) + subnormal + slack;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace ocvtp::test
