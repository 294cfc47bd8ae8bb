// gru_gates, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // x_gates [R,3D], h_gates [S,3D] and h [S,D] of that dtype or acc, with row r % S of S for row
  // r. shift [3D] and acc mass [R]: x_gates + mass / (mass + eps) * shift. statistics [S,3] of h,
  // sums [3D] and bias [3D]: h_gates are of layer_norm(h), those of h being
  // deviation * h_gates + mean * sums + bias. -> state [R,D] in the dtype of h, and, if asked for,
  // its layer_norm in the dtype of x_gates, else [0]; with it the state is acc.
  m.def(
      "gru_gates(Tensor x_gates, Tensor h_gates, Tensor h, Tensor? shift, Tensor? mass,"
      " Tensor? statistics, Tensor? sums, Tensor? bias, float eps, bool with_norm)"
      " -> (Tensor state, Tensor normed)");
}
