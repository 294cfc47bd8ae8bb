// What the ops of this folder take, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_layer_norm(const Tensor& x, Dtypes taken) { require_rows("x", x, taken); }

inline void check_bias_gelu(const Tensor& x, const Tensor& bias, Dtypes taken) {
  require_rows("x", x, taken);
  require("bias", bias, {x.size(x.dim() - 1)}, x.scalar_type(), x);
}

inline void check_start(const Tensor& tokens, const Tensor& slots, const Tensor& weight,
                        Dtypes taken) {
  require_rows("tokens", tokens, taken);
  require_rows("slots", slots, tokens.scalar_type());
  const int64_t width = tokens.size(tokens.dim() - 1);
  require("slots", slots, leading(slots, {width}), tokens.scalar_type(), tokens);
  require("weight", weight, {width}, tokens.scalar_type(), tokens);
}

inline void check_norm_slots(const Tensor& x, const Tensor& y, const Tensor& weight, Dtypes taken) {
  require_rows("y", y, taken);
  require("x", x, y.sizes(), acc_dtype(y.scalar_type()), y);
  require("weight", weight, {y.size(y.dim() - 1)}, y.scalar_type(), y);
}

}  // namespace ocvtp
