// What gru_gates takes, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_gru_gates(const Tensor& x_gates, const Tensor& h_gates, const Tensor& h,
                            const std::optional<Tensor>& shift, const std::optional<Tensor>& mass,
                            const std::optional<Tensor>& statistics,
                            const std::optional<Tensor>& sums, const std::optional<Tensor>& bias,
                            Dtypes taken) {
  require_rows("x_gates", x_gates, taken);
  const ScalarType dtype = x_gates.scalar_type();
  require_rows("h", h, {dtype, acc_dtype(dtype)});
  const int64_t width = h.size(h.dim() - 1), gates = 3 * width;
  require("x_gates", x_gates, leading(x_gates, {gates}), dtype, h);
  std::vector<int64_t> of_h = leading(x_gates, {width});
  // Images may share the states of one.
  if (h.dim() > 1 && h.size(0) == 1) of_h[0] = 1;
  require("h", h, {of_h.data(), of_h.size()}, {dtype, acc_dtype(dtype)}, h);
  require("h_gates", h_gates, leading(h, {gates}), dtype, h);
  require("shift", shift, {gates}, dtype, h);
  require("mass", mass, leading(x_gates, {}), acc_dtype(dtype), h);
  require("statistics", statistics, leading(h, {3}), acc_dtype(dtype), h);
  require("sums", sums, {gates}, dtype, h);
  require("bias", bias, {gates}, dtype, h);
  if (shift.has_value() != mass.has_value()) refuse("shift, mass", "both or neither", "one");
  if (statistics.has_value() != sums.has_value() || sums.has_value() != bias.has_value())
    refuse("statistics, sums, bias", "all or none", "some");
}

}  // namespace ocvtp
