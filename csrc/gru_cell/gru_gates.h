// The gates of the GRU (Cho et al. 2014) after its two products, and the LayerNorm before the FFN.
#pragma once

#include "common/maths.h"
#include "common/row_norm.h"

namespace ocvtp {

// Part: rows. The gates of the GRU, and, where wanted, the layer_norm of the new state. Row r has
// the state number r % states. With statistics h_gates are of layer_norm(h), those of h being
// deviation * h_gates + mean * sums + bias.
template <class T>
struct GruGates {
  const T* x_gates;  // [rows, 3 * width]
  const T* h_gates;  // [states, 3 * width], rows `stride` apart
  const T* h;        // [states, width]
  int64_t states, stride;
  const T* shift;        // [3 * width] or null: x_gates + mass / (mass + eps) * shift
  const T* mass;         // [rows]
  const T* statistics;   // [states, 3], as NormSlots has them, or null
  const T *sums, *bias;  // [3 * width]
  int64_t width;
  T eps, norm_eps;
  T* state;   // [rows, width]
  T* normed;  // [rows, width] or null
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void gru_gates(const GruGates<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* i = a.x_gates + row * 3 * a.width;
    const int64_t own = row % a.states;
    const T* h = a.h_gates + own * a.stride;
    const T* old = a.h + own * a.width;
    const T* statistics = a.statistics ? a.statistics + 3 * own : nullptr;
    T* state = a.state + row * a.width;
    const T factor = a.shift ? a.mass[row] / (a.mass[row] + a.eps) : T(0);
    for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
      Vector<T> input[3], hidden[3];
      for (int gate = 0; gate < 3; ++gate) {
        const int64_t index = gate * a.width + at;
        input[gate] = load_lanes(i + index, lanes);
        if (a.shift) input[gate] += load_lanes(a.shift + index, lanes) * factor;
        hidden[gate] = load_lanes(h + index, lanes);
        if (statistics)
          hidden[gate] = hidden[gate] * statistics[1] +
                         load_lanes(a.sums + index, lanes) * statistics[0] +
                         load_lanes(a.bias + index, lanes);
      }
      const Vector<T> reset = sigmoid<T>(input[0] + hidden[0]);
      const Vector<T> update = sigmoid<T>(input[1] + hidden[1]);
      const Vector<T> fresh = tanh<T>(input[2] + reset * hidden[2]);
      const Vector<T> kept = load_lanes(old + at, lanes);
      store_lanes<T>(state + at, fresh + update * (kept - fresh), lanes);
    });
    if (a.normed) normalize_row(state, a.width, a.norm_eps, a.normed + row * a.width);
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(gru_gates, GruGates)
