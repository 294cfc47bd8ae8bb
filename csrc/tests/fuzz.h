// What the tests of the CPU kernels share: random numbers in buffers of exactly their size, so that
// AddressSanitizer sees a step past them, divisions of the work, and comparisons with an oracle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/kernels.h"

namespace ocvtp::test {

using Real = long double;

template <class T>
inline constexpr Real epsilon = std::numeric_limits<T>::epsilon();

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}

  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(bits_() % static_cast<uint64_t>(most - least + 1));
  }
  bool chance(int percent) { return between(1, 100) <= percent; }
  double normal() { return normal_(bits_); }
  // Sizes around whole vectors and blocks more often than others.
  int64_t size(int64_t most) {
    static const int64_t edges[] = {1,  2,  7,  8,  9,  15,  16,  17, 31,
                                    32, 33, 63, 64, 65, 127, 128, 129};
    const int64_t edge = edges[between(0, 16)];
    return chance(50) && edge <= most ? edge : between(1, most);
  }

  template <class T>
  std::vector<T> numbers(int64_t count, double deviation = 1.0, double mean = 0.0) {
    std::vector<T> x(static_cast<size_t>(count));
    for (T& value : x) value = static_cast<T>(mean + deviation * normal());
    return x;
  }

  // A tenth NaN, infinite, zero or huge.
  template <class T>
  void spoil(std::vector<T>& x) {
    using Limits = std::numeric_limits<T>;
    const T odd[] = {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), T(0), T(-0.0),
                     Limits::max(),       Limits::lowest(),   Limits::denorm_min()};
    for (T& value : x)
      if (chance(10)) value = odd[between(0, 7)];
  }

 private:
  std::mt19937_64 bits_;
  std::normal_distribution<double> normal_;
};

// The same bits; of NaN the bits are the compiler's choice, which may swap the terms of a sum.
template <class T>
bool is_alike(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

struct Run {
  Random& random;
  bool spoilt;  // inputs hold NaN and the like: only memory and bits are checked
  int64_t failures = 0;

  template <class... Vectors>
  void prepare(Vectors&... inputs) {
    if (spoilt) (random.spoil(inputs), ...);
  }

  void expect(bool holds, const char* what, Real got = 0, Real want = 0, Real allowed = 0) {
    if (holds) return;
    if (++failures <= 20)
      std::fprintf(stderr, "%s: %s: got %.17Lg, expected %.17Lg within %.3Lg\n", isa().name, what,
                   got, want, allowed);
  }

  void near(const char* what, Real got, Real want, Real allowed) {
    expect(spoilt || std::abs(got - want) <= allowed, what, got, want, allowed);
  }

  // Calls body(divide) twice; `divide(part)` runs part(begin, end) over the work, first as a whole,
  // then in random pieces from the last to the first. The outputs that body returns must be alike
  // to the bit; the first are returned.
  template <class Body>
  auto alike(const char* what, int64_t count, const Body& body) {
    const auto whole = body([&](const auto& part) { part(int64_t{0}, count); });
    const auto divided = body([&](const auto& part) {
      for (int64_t end = count; end > 0;) {
        const int64_t begin = random.chance(40) ? end - 1 : random.between(0, end - 1);
        part(begin, end);
        end = begin;
      }
    });
    for (size_t i = 0; i < whole.size(); ++i) {
      bool same = true;
      for (size_t j = 0; j < whole[i].size(); ++j)
        same = same && is_alike(whole[i][j], divided[i][j]);
      expect(same, what, 0, 0, 0);
    }
    return whole;
  }
};

template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count), std::numeric_limits<T>::quiet_NaN());
}

template <class T>
Real largest(const T* x, int64_t count) {
  Real most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(Real(x[i])));
  return most;
}

}  // namespace ocvtp::test
