// What the encode ops take, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_layer_norm(const Tensor& x, Dtypes taken) { require_rows("x", x, taken); }

inline void check_bias_gelu(const Tensor& x, const Tensor& bias, Dtypes taken) {
  require_rows("x", x, taken);
  require("bias", bias, {x.size(x.dim() - 1)}, x.scalar_type(), x);
}

}  // namespace ocvtp
