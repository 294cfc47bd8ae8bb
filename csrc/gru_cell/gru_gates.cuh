// The element-wise part of the GRU, and the LayerNorm that follows it. One block a row.
#pragma once

#include "common/row_norm.cuh"

namespace ocvtp {

constexpr int kGruThreads = 128;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// r = sigmoid(i_r + h_r), z = sigmoid(i_z + h_z), n = tanh(i_n + r h_n), h' = (1 - z) n + z h, of
// input gates i and hidden ones in the order r, z, n.
// Source: Cho et al. 2014, in the order of torch.nn.GRUCell.
__device__ __forceinline__ float gru_state(const float (&input)[3], const float (&hidden)[3],
                                           float h) {
  const float update = sigmoid(input[1] + hidden[1]);
  const float fresh = tanhf(input[2] + sigmoid(input[0] + hidden[0]) * hidden[2]);
  return (1.0f - update) * fresh + update * h;
}

// `shift` and `mass` are both null or both given; so are `statistics`, `sums` and `bias`. Row r has
// state r % S.
template <class T, class Old, class State>
struct GruArguments {
  const T* x_gates;                  // [R,3D], row stride x_stride
  const T* h_gates;                  // [S,3D], row stride g_stride
  const Old* h;                      // [S,D], row stride h_stride
  const T* shift;                    // [3D]
  const float* mass;                 // [R]
  const SlotStatistics* statistics;  // [S], of h
  const T *sums, *bias;              // [3D]
  State* state;                      // [R,D]
  T* normed;                         // [R,D], with NORM only
  int64 states, x_stride, g_stride, h_stride;
  int width;
  float eps, norm_eps;
};

// x_gates + mass / (mass + eps) * shift are the input gates. With statistics h_gates are of
// layer_norm(h), those of h being deviation * h_gates + mean * sums + bias. See `gru_state` for the
// rest. Grid R, block kGruThreads; with NORM dynamic shared memory of D floats, from which the
// LayerNorm is taken before the state is rounded.
template <class T, class Old, class State, bool NORM>
__global__ void __launch_bounds__(kGruThreads) gru_gates_kernel(GruArguments<T, Old, State> a) {
  __shared__ float scratch[kGruThreads / kWarpSize];
  OCVTP_SHARED(float, unrounded);
  const int64 row = blockIdx.x, own = row % a.states;
  const int width = a.width;
  const T* x = a.x_gates + row * a.x_stride;
  const T* g = a.h_gates + own * a.g_stride;
  const Old* h = a.h + own * a.h_stride;
  float factor = 0.0f;
  if (a.shift) {
    const float mass = a.mass[row];
    factor = mass / (mass + a.eps);
  }
  SlotStatistics of = {0.0f, 1.0f, 0.0f};
  if (a.statistics) of = a.statistics[own];
  for (int i = threadIdx.x; i < width; i += kGruThreads) {
    float input[3], hidden[3];
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      const int at = gate * width + i;
      input[gate] = to_float(x[at]);
      if (a.shift) input[gate] = fmaf(factor, to_float(a.shift[at]), input[gate]);
      hidden[gate] = to_float(g[at]);
      if (a.statistics)
        hidden[gate] = fmaf(of.deviation, hidden[gate],
                            fmaf(of.mean, to_float(a.sums[at]), to_float(a.bias[at])));
    }
    const float state = gru_state(input, hidden, to_float(h[i]));
    a.state[row * width + i] = from_float<State>(state);
    if (NORM) unrounded[i] = state;
  }
  if (!NORM) return;
  // Each thread reads only what it wrote, so no barrier is needed.
  const auto read = [=](int i, float* values) { values[0] = unrounded[i]; };
  const RowStatistics statistics = row_statistics<1>(width, a.norm_eps, scratch, read);
  for (int i = threadIdx.x; i < width; i += kGruThreads)
    a.normed[row * width + i] = from_float<T>(statistics.normalise(unrounded[i]));
}

}  // namespace ocvtp
