// Errors of common/maths.h over the functions' ranges, in units of epsilon, and special values.
// Compiled once for each instruction set, as the kernels are.
#include "common/maths.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

using namespace ocvtp::OCVTP_ISA;
using Real = long double;

static int failures = 0;

static void expect(bool holds, const char* what, Real got, Real wanted) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s: got %.17Lg, expected %.17Lg\n", what, got, wanted);
}

// One value through a function of vectors, in the last lane, the others being NaN.
template <class T, class Function>
static T lone(const Function& function, T x) {
  T lanes[width<T>];
  for (T& lane : lanes) lane = std::numeric_limits<T>::quiet_NaN();
  lanes[width<T> - 1] = x;
  store<T>(lanes, function(load(lanes)));
  return lanes[width<T> - 1];
}

// The largest error of `function` from `least` to `most` in epsilons of max(|value|, floor).
template <class T, class Function, class Oracle>
static void errors(const char* what, const Function& function, const Oracle& oracle, Real least,
                   Real most, Real floor, Real allowed) {
  constexpr int64_t steps = 100000;
  Real worst = 0, where = 0;
  for (int64_t step = 0; step < steps; step += width<T>) {
    T x[width<T>], got[width<T>];
    for (int64_t lane = 0; lane < width<T>; ++lane)
      x[lane] = static_cast<T>(least + (most - least) * Real(step + lane) / steps);
    store<T>(got, function(load(x)));
    for (int64_t lane = 0; lane < width<T>; ++lane) {
      const Real want = oracle(Real(x[lane]));
      const Real size = std::max(std::abs(want), floor);
      const Real error = std::abs(got[lane] - want) / size / std::numeric_limits<T>::epsilon();
      if (!(error <= worst)) worst = error, where = x[lane];
    }
  }
  std::printf("%-8s %-8s [%8.3Lg, %8.3Lg] %6.2Lf at %.6Lg\n", sizeof(T) == 4 ? "float" : "double",
              what, least, most, worst, where);
  expect(worst <= allowed, what, worst, allowed);
}

template <class T>
static void check() {
  using Limits = std::numeric_limits<T>;
  const T nan = Limits::quiet_NaN(), infinity = Limits::infinity();
  const auto exponential = [](Vector<T> x) { return exp<T>(x); };
  const auto decaying = [](Vector<T> x) { return decay<T>(x); };
  const auto logarithm = [](Vector<T> x) { return log1p<T>(x); };
  const auto tangent = [](Vector<T> x) { return tanh<T>(x); };
  const auto logistic = [](Vector<T> x) { return sigmoid<T>(x); };
  const auto gaussian = [](Vector<T> x) { return gelu<T>(x); };
  const auto true_exp = [](Real x) { return std::exp(x); };
  const auto true_log1p = [](Real x) { return std::log1p(x); };
  const auto true_tanh = [](Real x) { return std::tanh(x); };
  const auto true_sigmoid = [](Real x) { return 1 / (1 + std::exp(-x)); };
  const auto true_gelu = [](Real x) { return x * std::erfc(-x * std::sqrt(Real(0.5))) / 2; };
  constexpr bool single = sizeof(T) == sizeof(float);

  const Real low = Maths<T>::lowest, high = Maths<T>::highest;
  errors<T>("exp", exponential, true_exp, low, high, Limits::min(), 1.5);
  errors<T>("exp", exponential, true_exp, -1, 1, 0, 1.5);
  errors<T>("decay", decaying, true_exp, Maths<T>::smallest, 0, 0, 1.5);
  errors<T>("log1p", logarithm, true_log1p, 0, 1e-4, Limits::min(), 2.5);
  errors<T>("log1p", logarithm, true_log1p, 0, 4, Limits::min(), 2.5);
  errors<T>("log1p", logarithm, true_log1p, 0, single ? 1e38 : 1e300, Limits::min(), 2.5);
  errors<T>("tanh", tangent, true_tanh, -1e-3, 1e-3, Limits::min(), 3);
  errors<T>("tanh", tangent, true_tanh, -30, 30, Limits::min(), 3);
  errors<T>("sigmoid", logistic, true_sigmoid, -80, 40, 0, 4);
  errors<T>("gelu", gaussian, true_gelu, -1, 9, Limits::min(), 6);
  // The argument's own rounding grows with its square there.
  errors<T>("gelu", gaussian, true_gelu, -9, -1, 0, 80);
  errors<T>("gelu", gaussian, true_gelu, -20, 20, 1, 2);

  const struct {
    const char* what;
    T got, want;
  } specials[] = {
      {"exp(0)", lone<T>(exponential, T(0)), T(1)},
      {"exp(-inf)", lone<T>(exponential, -infinity), T(0)},
      {"exp(inf)", lone<T>(exponential, infinity), infinity},
      {"exp(lowest)", lone<T>(exponential, Limits::lowest()), T(0)},
      {"decay(-inf)", lone<T>(decaying, -infinity), T(0)},
      {"decay(0)", lone<T>(decaying, T(0)), T(1)},
      {"exp(max)", lone<T>(exponential, Limits::max()), infinity},
      {"exp(nan)", lone<T>(exponential, nan), nan},
      {"decay(nan)", lone<T>(decaying, nan), nan},
      {"log1p(0)", lone<T>(logarithm, T(0)), T(0)},
      {"log1p(min)", lone<T>(logarithm, Limits::min()), Limits::min()},
      {"log1p(inf)", lone<T>(logarithm, infinity), infinity},
      {"log1p(nan)", lone<T>(logarithm, nan), nan},
      {"log1p(-nan)", lone<T>(logarithm, -nan), nan},
      {"tanh(0)", lone<T>(tangent, T(0)), T(0)},
      {"tanh(inf)", lone<T>(tangent, infinity), T(1)},
      {"tanh(-inf)", lone<T>(tangent, -infinity), T(-1)},
      {"tanh(nan)", lone<T>(tangent, nan), nan},
      {"sigmoid(0)", lone<T>(logistic, T(0)), T(0.5)},
      {"sigmoid(inf)", lone<T>(logistic, infinity), T(1)},
      {"sigmoid(-inf)", lone<T>(logistic, -infinity), T(0)},
      {"sigmoid(nan)", lone<T>(logistic, nan), nan},
      {"gelu(0)", lone<T>(gaussian, T(0)), T(0)},
      {"gelu(inf)", lone<T>(gaussian, infinity), infinity},
      {"gelu(nan)", lone<T>(gaussian, nan), nan},
  };
  for (const auto& special : specials)
    expect(
        special.got == special.want || (special.got != special.got && special.want != special.want),
        special.what, special.got, special.want);

  T lanes[width<T>];
  Real sum = 0;
  for (int64_t lane = 0; lane < width<T>; ++lane) sum += lanes[lane] = T((lane * 5 + 3) % width<T>);
  expect(sum_lanes<T>(load(lanes)) == sum, "sum_lanes", sum_lanes<T>(load(lanes)), sum);
  expect(max_lanes<T>(load(lanes)) == T(width<T> - 1), "max_lanes", max_lanes<T>(load(lanes)),
         width<T> - 1);
}

int main() {
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512f")) return std::puts("not on this CPU, nothing run"), 0;
#elif defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2")) return std::puts("not on this CPU, nothing run"), 0;
#endif
  check<float>();
  check<double>();
  std::printf("%d failures\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
