// What the tests of the emulator share: random numbers, element types in double, and the checks.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <type_traits>
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

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  int below(int n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    const std::uint64_t bits = state_ * 0x2545F4914F6CDD1Du;
    return static_cast<int>((bits >> 33) % static_cast<std::uint64_t>(n));
  }

 private:
  std::uint64_t state_;
};

template <class T>
const char* name() {
  return sizeof(T) == 4 ? "float" : std::is_same<T, half>::value ? "half" : "bfloat16";
}

template <class T>
double value(T x) {
  return static_cast<double>(to_float(x));
}

}  // namespace ocvtp::test
