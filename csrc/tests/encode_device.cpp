// layer_norm, add_layer_norm and bias_gelu on the emulator, against the formulas in double.
#include "check.h"
#include "encode/bias_gelu.cuh"

namespace ocvtp::test {
namespace {

constexpr double kEps = 1e-5;

struct Moments {
  double mean, inverse, largest;
};

Moments moments(const std::vector<double>& row) {
  Moments m{0.0, 0.0, 0.0};
  for (double x : row) m.mean += x / row.size();
  double variance = 0.0;
  for (double x : row) {
    variance += (x - m.mean) * (x - m.mean) / row.size();
    m.largest = std::max(m.largest, std::abs(x - m.mean));
  }
  m.inverse = 1.0 / std::sqrt(variance + kEps);
  return m;
}

// What float32 arithmetic may add to a normalised value of a row: a few ulp of the largest, and
// of an ulp of the mean, which the float sum x + y already has.
double slack(const Moments& m, bool rounded_sum) {
  return 0x1p-21 * m.largest * m.inverse +
         (rounded_sum ? 0x1p-23 * (std::abs(m.mean) + m.largest) * m.inverse : 0.0);
}

template <class T, int V>
void layer_norm_case(int outer, int inner, int width, double mean, int outlier) {
  Random random(outer * 7 + inner * 31 + width);
  const int stride = width + 2 * V, outer_stride = (inner + 3) * stride;
  const int rows = outer * inner;
  const auto x = random_rows<T>(random, outer * (inner + 3), width, stride, mean, outlier);
  auto y = poison<T>(static_cast<std::size_t>(rows) * width);
  const RowLayout layout{inner, outer_stride, stride};
  const auto launch = [&](T* out, const T* in, unsigned grid) {
    emulate(grid, kNormThreads, 0,
            [&] { layer_norm_kernel<T, V>(in, out, layout, width, static_cast<float>(kEps)); });
  };
  launch(y.data(), x.data(), rows);
  for (int row = 0; row < rows; ++row) {
    std::vector<double> expected(width);
    for (int i = 0; i < width; ++i)
      expected[i] = value(x[row / inner * outer_stride + row % inner * stride + i]);
    const Moments m = moments(expected);
    for (int i = 0; i < width; ++i)
      EXPECT(near(y[row * width + i], (expected[i] - m.mean) * m.inverse, slack(m, false)),
             "%s V %d width %d mean %g row %d column %d: %.9g, expected %.9g", name<T>(), V, width,
             mean, row, i, value(y[row * width + i]), (expected[i] - m.mean) * m.inverse);
  }
  auto alone = poison<T>(width);
  launch(alone.data(), x.data(), 1);
  EXPECT(same_bits(alone, std::vector<T>(y.begin(), y.begin() + width)), "width %d", width);
}

template <class Wide, class T, int V>
void add_layer_norm_case(int rows, int width, double mean, int outlier) {
  Random random(rows * 5 + width);
  const int x_stride = width + V, y_stride = width + 3 * V;
  const auto x = random_rows<Wide>(random, rows, width, x_stride, mean, outlier);
  const auto y = random_rows<T>(random, rows, width, y_stride, 0.0, outlier);
  auto sum = poison<Wide>(rows * width);
  auto normed = poison<T>(rows * width);
  emulate(rows, kNormThreads, 0, [&] {
    add_layer_norm_kernel<Wide, T, V>(x.data(), y.data(), sum.data(), normed.data(), x_stride,
                                      y_stride, width, static_cast<float>(kEps));
  });
  for (int row = 0; row < rows; ++row) {
    std::vector<double> exact(width);
    for (int i = 0; i < width; ++i)
      exact[i] = value(x[row * x_stride + i]) + value(y[row * y_stride + i]);
    const Moments m = moments(exact);
    for (int i = 0; i < width; ++i) {
      const double expected = (exact[i] - m.mean) * m.inverse;
      EXPECT(near(sum[row * width + i], exact[i], 0x1p-23 * std::abs(exact[i])),
             "%s %s width %d: %.9g", name<Wide>(), name<T>(), width, exact[i]);
      EXPECT(near(normed[row * width + i], expected, slack(m, true)),
             "%s %s width %d mean %g: %.9g, expected %.9g", name<Wide>(), name<T>(), width, mean,
             value(normed[row * width + i]), expected);
    }
  }
}

template <class T, int V>
void gelu_case(int rows, int width) {
  Random random(rows * 3 + width);
  const int stride = width + V;
  auto x = random_rows<T>(random, rows, width, stride, 0.0, 0, 4.0);
  const auto before = x;
  const auto bias = random_rows<T>(random, 1, width, width);
  emulate(rows, kGeluThreads, 0, [&] {
    bias_gelu_kernel<T, V>(x.data(), bias.data(), RowLayout{rows, 0, stride}, width);
  });
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < stride; ++i) {
      const std::size_t at = static_cast<std::size_t>(row) * stride + i;
      if (i >= width) {
        EXPECT(std::memcmp(&x[at], &before[at], sizeof(T)) == 0, "wrote past the row");
        continue;
      }
      const double z = value(before[at]) + value(bias[i]);
      const double expected = 0.5 * z * std::erfc(-z * 0.70710678118654752440);
      EXPECT(near(x[at], expected, 0x1p-22 * (1.0 + std::abs(z))),
             "%s width %d at %.9g: %.9g, expected %.9g", name<T>(), width, z, value(x[at]),
             expected);
    }
}

template <class T>
void special_rows() {
  const int width = 40;
  std::vector<T> x(3 * width, from_float<T>(7.0f)), y = poison<T>(3 * width);
  x[width + 5] = from_float<T>(static_cast<float>(kNaN));
  x[2 * width + 5] = from_float<T>(static_cast<float>(kInfinity));
  emulate(3, kNormThreads, 0, [&] {
    layer_norm_kernel<T, 1>(x.data(), y.data(), RowLayout{3, 0, width}, width, 1e-5f);
  });
  for (int i = 0; i < width; ++i) {
    EXPECT(value(y[i]) == 0.0, "a constant row gives %g", value(y[i]));
    EXPECT(std::isnan(value(y[width + i])), "a NaN in the row is hidden");
    EXPECT(std::isnan(value(y[2 * width + i])), "an infinity in the row is hidden");
  }
}

template <class T, int V>
void all_of() {
  for (double mean : {0.0, 1000.0, 1e6}) {
    // Half overflows there, and bfloat16 has no two numbers so close.
    if (mean == 1e6 && sizeof(T) == 2) continue;
    layer_norm_case<T, V>(1, 1, V, mean, 0);
    layer_norm_case<T, V>(2, 3, 33 * V, mean, 0);
    layer_norm_case<T, V>(3, 2, 1024, mean, 100);
    layer_norm_case<T, V>(1, 2, 131 * V, mean, 50);
  }
  gelu_case<T, V>(1, V);
  gelu_case<T, V>(3, 37 * V);
  gelu_case<T, V>(2, 2048);
}

template <class Wide, class T, int V>
void all_sums() {
  for (double mean : {0.0, 300.0}) {
    add_layer_norm_case<Wide, T, V>(1, V, mean, 0);
    add_layer_norm_case<Wide, T, V>(3, 512, mean, 64);
    add_layer_norm_case<Wide, T, V>(2, 129 * V, mean, 0);
  }
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  using namespace ocvtp;
  test::all_of<float, 1>();
  test::all_of<float, 4>();
  test::all_of<half, 1>();
  test::all_of<half, 8>();
  test::all_of<bfloat16, 1>();
  test::all_of<bfloat16, 8>();
  test::all_sums<float, float, 1>();
  test::all_sums<float, float, 4>();
  test::all_sums<float, half, 1>();
  test::all_sums<float, half, 4>();
  test::all_sums<float, bfloat16, 4>();
  test::all_sums<half, half, 1>();
  test::all_sums<half, half, 8>();
  test::all_sums<bfloat16, bfloat16, 8>();
  test::special_rows<float>();
  test::special_rows<half>();
  return test::result("encode_device");
}
