// gru_gates on the emulator, against the formula in double.
#include "check.h"
#include "slots/gru_gates.cuh"

namespace ocvtp::test {
namespace {

constexpr double kMassEps = 1e-5, kNormEps = 1e-5;

double logistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Inputs {
  int rows, width;
  bool shift;
  double size;  // of the gates
};

template <class T, class State>
struct Case {
  Inputs in;
  std::vector<T> x, g, shift, normed;
  std::vector<State> h, state;
  std::vector<float> mass;
  GruArguments<T, State> a;

  explicit Case(Inputs inputs) : in(inputs) {
    Random random(in.rows * 13 + in.width);
    const int gates = 3 * in.width;
    x = random_rows<T>(random, in.rows, gates, gates + 5, 0.0, 0, in.size);
    g = random_rows<T>(random, in.rows, gates, gates + 2, 0.0, 0, in.size);
    h = random_rows<State>(random, in.rows, in.width, in.width + 1, 0.0, in.width > 64 ? 50 : 0);
    shift = random_rows<T>(random, 1, gates, gates);
    for (int row = 0; row < in.rows; ++row)
      mass.push_back(row == 0 ? 0.0f : static_cast<float>(random.uniform() * 20.0));
    state = poison<State>(in.rows * in.width);
    normed = poison<T>(in.rows * in.width);
    a = {x.data(),
         g.data(),
         h.data(),
         in.shift ? shift.data() : nullptr,
         mass.data(),
         state.data(),
         normed.data(),
         gates + 5,
         gates + 2,
         in.width + 1,
         in.width,
         static_cast<float>(kMassEps),
         static_cast<float>(kNormEps)};
  }

  template <bool NORM>
  void launch(int rows) {
    emulate(rows, kGruThreads, NORM ? in.width * sizeof(float) : 0,
            [&] { gru_gates_kernel<T, State, NORM>(a); });
  }

  double expected(int row, int i) const {
    double input[3], hidden[3];
    const double share = mass[row] / (mass[row] + kMassEps);
    for (int gate = 0; gate < 3; ++gate) {
      const int at = gate * in.width + i;
      input[gate] = value(x[row * a.x_stride + at]) + (in.shift ? share * value(shift[at]) : 0.0);
      hidden[gate] = value(g[row * a.g_stride + at]);
    }
    const double z = logistic(input[1] + hidden[1]);
    const double n = std::tanh(input[2] + logistic(input[0] + hidden[0]) * hidden[2]);
    return (1.0 - z) * n + z * value(h[row * a.h_stride + i]);
  }
};

template <class T, class State>
void gates_case(const Inputs& in) {
  Case<T, State> c(in);
  c.template launch<true>(in.rows);
  for (int row = 0; row < in.rows; ++row) {
    std::vector<double> exact(in.width);
    double mean = 0.0, variance = 0.0, largest = 0.0;
    for (int i = 0; i < in.width; ++i) mean += (exact[i] = c.expected(row, i)) / in.width;
    for (double x : exact) {
      variance += (x - mean) * (x - mean) / in.width;
      largest = std::max(largest, std::abs(x) + std::abs(mean));
    }
    const double inverse = 1.0 / std::sqrt(variance + kNormEps);
    // A gate's argument of size s is known to s ulp, and slopes are at most 1 but for z (n - h).
    const double slack = 0x1p-22 * (1.0 + in.size) * (1.0 + largest);
    for (int i = 0; i < in.width; ++i) {
      const int at = row * in.width + i;
      EXPECT(near(c.state[at], exact[i], slack), "%s %s width %d row %d: %.9g, expected %.9g",
             name<T>(), name<State>(), in.width, row, value(c.state[at]), exact[i]);
      const double normed = (exact[i] - mean) * inverse;
      EXPECT(near(c.normed[at], normed, 2 * slack * inverse * (1.0 + std::abs(normed))),
             "%s %s width %d row %d: %.9g, expected %.9g", name<T>(), name<State>(), in.width, row,
             value(c.normed[at]), normed);
    }
  }
  const auto with_norm = c.state;
  c.state = poison<State>(c.state.size());
  c.normed = poison<T>(c.normed.size());
  c.a.state = c.state.data();
  c.a.normed = nullptr;
  c.template launch<false>(in.rows);
  EXPECT(same_bits(c.state, with_norm), "the norm changes the state");
  c.state = poison<State>(c.state.size());
  c.a.state = c.state.data();
  c.template launch<false>(1);
  EXPECT(std::memcmp(c.state.data(), with_norm.data(), in.width * sizeof(State)) == 0,
         "a row alone differs");
}

// Far out the gates saturate and nothing becomes NaN.
void saturated_gates() {
  const float far = 1e4f;
  for (float update : {-far, far})
    for (float fresh : {-far, far}) {
      const float state = gru_state(-far, update, fresh, 0.0f, 0.0f, 3.0f, 0.25f);
      EXPECT(state == (update > 0 ? 0.25f : fresh > 0 ? 1.0f : -1.0f), "%g", state);
    }
}

template <class T, class State>
void all_of() {
  for (const Inputs& in :
       {Inputs{1, 1, true, 1.0}, Inputs{5, 7, false, 1.0}, Inputs{3, 64, true, 8.0},
        Inputs{2, 129, true, 1.0}, Inputs{4, 512, true, 2.0}, Inputs{1, 8192, true, 1.0}})
    gates_case<T, State>(in);
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  using namespace ocvtp;
  test::all_of<float, float>();
  test::all_of<half, half>();
  test::all_of<half, float>();
  test::all_of<bfloat16, bfloat16>();
  test::all_of<bfloat16, float>();
  test::saturated_gates();
  return test::result("gru_device");
}
