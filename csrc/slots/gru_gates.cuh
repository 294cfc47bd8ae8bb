// The element-wise part of the GRU, and the LayerNorm that follows it. One block a row.
#pragma once

#include "../encode/layer_norm.cuh"

namespace ocvtp {

constexpr int kGruThreads = 128;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// r = sigmoid(i_r + h_r), z = sigmoid(i_z + h_z), n = tanh(i_n + r h_n), h' = (1 - z) n + z h.
// Source: Cho et al. 2014, in the order of torch.nn.GRUCell.
__device__ __forceinline__ float gru_state(float i_r, float i_z, float i_n, float h_r, float h_z,
                                           float h_n, float h) {
  const float update = sigmoid(i_z + h_z);
  const float fresh = tanhf(i_n + sigmoid(i_r + h_r) * h_n);
  return (1.0f - update) * fresh + update * h;
}

// Inputs of one launch; `shift` and `mass` are null or both given.
template <class T, class State>
struct GruArguments {
  const T* x_gates;   // [R,3D], row stride x_stride
  const T* h_gates;   // [R,3D], row stride g_stride
  const State* h;     // [R,D], row stride h_stride
  const T* shift;     // [3D]
  const float* mass;  // [R]
  State* state;       // [R,D]
  T* normed;          // [R,D], with NORM only
  int64 x_stride, g_stride, h_stride;
  int width;
  float eps, norm_eps;
};

// x_gates + mass / (mass + eps) * shift are the input gates; see `gru_state` for the rest.
// Grid R, block kGruThreads; with NORM dynamic shared memory of D floats, from which the
// LayerNorm is taken before the state is rounded.
template <class T, class State, bool NORM>
__global__ void __launch_bounds__(kGruThreads) gru_gates_kernel(GruArguments<T, State> a) {
  __shared__ float scratch[kGruThreads / kWarpSize];
  OCVTP_SHARED(float, unrounded);
  const int64 row = blockIdx.x;
  const int width = a.width;
  const T* x = a.x_gates + row * a.x_stride;
  const T* g = a.h_gates + row * a.g_stride;
  const State* h = a.h + row * a.h_stride;
  float share = 0.0f;
  if (a.shift) {
    const float mass = a.mass[row];
    share = mass / (mass + a.eps);
  }
  for (int i = threadIdx.x; i < width; i += kGruThreads) {
    float i_r = to_float(x[i]), i_z = to_float(x[width + i]), i_n = to_float(x[2 * width + i]);
    if (a.shift) {
      i_r = fmaf(share, to_float(a.shift[i]), i_r);
      i_z = fmaf(share, to_float(a.shift[width + i]), i_z);
      i_n = fmaf(share, to_float(a.shift[2 * width + i]), i_n);
    }
    const float state = gru_state(i_r, i_z, i_n, to_float(g[i]), to_float(g[width + i]),
                                  to_float(g[2 * width + i]), to_float(h[i]));
    a.state[row * width + i] = from_float<State>(state);
    if (NORM) unrounded[i] = state;
  }
  if (!NORM) return;
  // Each thread reads back what it wrote itself, so no barrier is needed.
  const auto read = [=](int i, float* values) { values[0] = unrounded[i]; };
  const RowStatistics statistics = row_statistics<1>(width, a.norm_eps, scratch, read);
  for (int i = threadIdx.x; i < width; i += kGruThreads)
    a.normed[row * width + i] = from_float<T>(statistics.normalise(unrounded[i]));
}

}  // namespace ocvtp
