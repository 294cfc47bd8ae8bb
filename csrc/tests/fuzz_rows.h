// The kernels of rows: encode, and the gates and means of slots.
#pragma once

#include "fuzz.h"

namespace ocvtp::test {

template <class T>
void check_normed(Run& run, const char* what, const T* x, int64_t width, Real eps,
                  const T* normed) {
  Real mean = 0, variance = 0;
  for (int64_t i = 0; i < width; ++i) mean += x[i];
  mean /= width;
  for (int64_t i = 0; i < width; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const Real scale = 1 / std::sqrt(variance / width + eps);
  // A row of almost equal numbers keeps only what its deviation leaves of their bits.
  const Real lost = (16 + Real(width) / 16) * epsilon<T>;
  for (int64_t i = 0; i < width; ++i) {
    const Real want = (x[i] - mean) * scale;
    run.near(what, normed[i], want, lost * (largest(x, width) * scale + 1) * (1 + std::abs(want)));
  }
}

template <class T>
void fuzz_layer_norm(Run& run) {
  Random& random = run.random;
  const int64_t rows = random.size(9), width = random.size(140);
  const int64_t stride = width + random.between(0, 3);
  auto x = random.numbers<T>((rows - 1) * stride + width, 2, 3),
       y = random.numbers<T>(rows * width);
  run.prepare(x, y);
  const auto normed = run.alike("layer_norm divided", rows, [&](const auto& divide) {
    std::vector<std::vector<T>> out{unwritten<T>(rows * width)};
    const LayerNorm<T> a{x.data(), stride, width, T(1e-5), out[0].data()};
    divide([&](int64_t begin, int64_t end) { kernels<T>().layer_norm(a, begin, end); });
    return out;
  });
  for (int64_t row = 0; row < rows; ++row)
    check_normed(run, "layer_norm", &x[row * stride], width, T(1e-5), &normed[0][row * width]);

  const std::vector<T> z = run.spoilt ? y : random.numbers<T>(rows * width);
  const auto added = run.alike("add_layer_norm divided", rows, [&](const auto& divide) {
    std::vector<std::vector<T>> out{unwritten<T>(rows * width), unwritten<T>(rows * width)};
    const AddLayerNorm<T> a{y.data(), z.data(), width, T(1e-5), out[0].data(), out[1].data()};
    divide([&](int64_t begin, int64_t end) { kernels<T>().add_layer_norm(a, begin, end); });
    return out;
  });
  for (int64_t i = 0; i < rows * width; ++i) {
    const T sum = y[i] + z[i];
    run.near("add_layer_norm sum", added[0][i], sum, 0);
  }
  for (int64_t row = 0; row < rows; ++row)
    check_normed(run, "add_layer_norm", &added[0][row * width], width, T(1e-5),
                 &added[1][row * width]);
}

template <class T>
void fuzz_bias_gelu(Run& run) {
  Random& random = run.random;
  const int64_t rows = random.size(9), width = random.size(140);
  auto x = random.numbers<T>(rows * width, 3), bias = random.numbers<T>(width);
  run.prepare(x, bias);
  const auto gelu = run.alike("bias_gelu divided", rows, [&](const auto& divide) {
    std::vector<std::vector<T>> out{x};
    const BiasGelu<T> a{out[0].data(), bias.data(), width};
    divide([&](int64_t begin, int64_t end) { kernels<T>().bias_gelu(a, begin, end); });
    return out;
  });
  for (int64_t i = 0; i < rows * width; ++i) {
    const Real sum = T(x[i] + bias[i % width]);
    const Real want = sum * std::erfc(-sum * std::sqrt(Real(0.5))) / 2;
    run.near("bias_gelu", gelu[0][i], want, 4 * epsilon<T> * (std::abs(want) + std::abs(sum)));
  }
}

template <class T>
void fuzz_mass(Run& run) {
  Random& random = run.random;
  const int64_t rows = random.size(20), width = random.size(140);
  const bool with_dot = random.chance(50);
  auto x = random.numbers<T>(rows * width), y = random.numbers<T>(rows * width);
  run.prepare(x, y);
  const auto sums = run.alike("slot_mass divided", rows, [&](const auto& divide) {
    std::vector<std::vector<T>> out{unwritten<T>(rows)};
    const SlotMass<T> a{x.data(), width, out[0].data()};
    divide([&](int64_t begin, int64_t end) { kernels<T>().slot_mass(a, begin, end); });
    return out;
  });
  std::vector<T> mass = random.numbers<T>(rows);
  for (T& value : mass) value = std::abs(value);
  run.prepare(mass);
  const auto scaled = run.alike("per_mass divided", rows, [&](const auto& divide) {
    std::vector<std::vector<T>> out{unwritten<T>(rows * width), unwritten<T>(with_dot ? rows : 0)};
    const PerMass<T> a{
        x.data(),      with_dot ? y.data() : nullptr,     mass.data(), width, T(1e-3),
        out[0].data(), with_dot ? out[1].data() : nullptr};
    divide([&](int64_t begin, int64_t end) { kernels<T>().per_mass(a, begin, end); });
    return out;
  });
  for (int64_t row = 0; row < rows; ++row) {
    Real sum = 0, size = 0, dot = 0, dot_size = 0;
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      const Real want = x[i] / (Real(mass[row]) + T(1e-3));
      run.near("per_mass", scaled[0][i], want, 4 * epsilon<T> * std::abs(want));
      sum += x[i], size += std::abs(x[i]);
      dot += want * y[i], dot_size += std::abs(want * y[i]);
    }
    run.near("slot_mass", sums[0][row], sum, 16 * epsilon<T> * size);
    if (with_dot) run.near("per_mass dot", scaled[1][row], dot, 32 * epsilon<T> * dot_size);
  }
}

inline Real logistic(Real x) { return 1 / (1 + std::exp(-x)); }

template <class T>
void fuzz_gru_gates(Run& run) {
  Random& random = run.random;
  const int64_t rows = random.size(9), width = random.size(140);
  const bool with_shift = random.chance(50), with_norm = random.chance(50);
  auto x = random.numbers<T>(rows * 3 * width, 2), gates = random.numbers<T>(rows * 3 * width, 2);
  auto h = random.numbers<T>(rows * width), shift = random.numbers<T>(3 * width);
  auto mass = random.numbers<T>(rows);
  for (T& value : mass) value = std::abs(value);
  run.prepare(x, gates, h, shift, mass);
  const auto out = run.alike("gru_gates divided", rows, [&](const auto& divide) {
    std::vector<std::vector<T>> made{unwritten<T>(rows * width),
                                     unwritten<T>(with_norm ? rows * width : 0)};
    const GruGates<T> a{x.data(),
                        gates.data(),
                        h.data(),
                        with_shift ? shift.data() : nullptr,
                        with_shift ? mass.data() : nullptr,
                        width,
                        T(1e-3),
                        T(1e-5),
                        made[0].data(),
                        with_norm ? made[1].data() : nullptr};
    divide([&](int64_t begin, int64_t end) { kernels<T>().gru_gates(a, begin, end); });
    return made;
  });
  for (int64_t row = 0; row < rows; ++row) {
    const Real share = with_shift ? mass[row] / (Real(mass[row]) + T(1e-3)) : 0;
    for (int64_t i = 0; i < width; ++i) {
      Real in[3], hidden[3], size = 1;
      for (int64_t gate = 0; gate < 3; ++gate) {
        const int64_t place = gate * width + i;
        in[gate] = x[row * 3 * width + place] + share * shift[place];
        hidden[gate] = gates[row * 3 * width + place];
        size += std::abs(in[gate]) + std::abs(hidden[gate]) + std::abs(shift[place]);
      }
      const Real reset = logistic(in[0] + hidden[0]), update = logistic(in[1] + hidden[1]);
      const Real fresh = std::tanh(in[2] + reset * hidden[2]), kept = h[row * width + i];
      const Real allowed = 8 * epsilon<T> * size * (1 + std::abs(kept));
      run.near("gru_gates", out[0][row * width + i], fresh + update * (kept - fresh), allowed);
    }
    if (with_norm)
      check_normed(run, "gru_gates normed", &out[0][row * width], width, T(1e-5),
                   &out[1][row * width]);
  }
}

}  // namespace ocvtp::test
