// The ops that only ocvtp::prune calls, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // Rows to mean 0 and deviation 1: [..., C] -> [..., C].
  m.def("layer_norm(Tensor x, float eps) -> Tensor");
  // gelu(x + bias) in place, the exact (erf) GELU: [..., F], [F].
  m.def("bias_gelu_(Tensor(a!) x, Tensor bias) -> ()");
  // tokens [B,N,D] and initial slots [S,K,D] -> their layer_norms, and the statistics of the slots,
  // acc [S,K,3]: mean, deviation and the dot product of layer_norm(slots) and weight [D].
  m.def(
      "start(Tensor tokens, Tensor slots, Tensor weight, float eps)"
      " -> (Tensor x, Tensor normed, Tensor statistics)");
  // acc x [R,D], y [R,D] -> x + y, acc; its layer_norm in the dtype of y; its statistics [R,3].
  m.def(
      "norm_slots(Tensor x, Tensor y, Tensor weight, float eps)"
      " -> (Tensor sum, Tensor normed, Tensor statistics)");
}
