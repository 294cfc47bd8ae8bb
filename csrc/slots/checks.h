// What the slots ops take, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_queries_and_keys(const Tensor& q, const Tensor& k, Dtypes taken) {
  require("q", q, {any, any, any}, taken, q);
  require("k", k, {q.size(0), any, q.size(2)}, q.scalar_type(), q);
}

inline void check_slot_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const std::optional<Tensor>& constant,
                                 const std::optional<Tensor>& slot_mask, Dtypes taken) {
  check_queries_and_keys(q, k, taken);
  require("v", v, {q.size(0), k.size(1), any}, q.scalar_type(), q);
  require("constant", constant, {q.size(0), q.size(1)}, wide(q.scalar_type()), q);
  require("slot_mask", slot_mask, {q.size(0), q.size(1)}, ScalarType::Bool, q);
}

inline void check_slot_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const std::optional<Tensor>& slot_mask,
                                          const Tensor& updates, const Tensor& grad_updates,
                                          const Tensor& grad_mass,
                                          const std::optional<Tensor>& grad_attention,
                                          const std::optional<Tensor>& attention, Dtypes taken) {
  check_slot_attention(q, k, v, std::nullopt, slot_mask, taken);
  const int64_t batch = q.size(0), slots = q.size(1), tokens = k.size(1), width = v.size(2);
  const ScalarType dtype = q.scalar_type();
  require("updates", updates, {batch, slots, width}, dtype, q);
  require("grad_updates", grad_updates, {batch, slots, width}, dtype, q);
  require("grad_mass", grad_mass, {batch, slots}, wide(dtype), q);
  require("grad_attention", grad_attention, {batch, slots, tokens}, dtype, q);
  require("attention", attention, {batch, slots, tokens}, dtype, q);
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
  require("x", x, y.sizes(), wide(y.scalar_type()), y);
  require("weight", weight, {y.size(y.dim() - 1)}, y.scalar_type(), y);
}

inline void check_gru_gates(const Tensor& x_gates, const Tensor& h_gates, const Tensor& h,
                            const std::optional<Tensor>& shift, const std::optional<Tensor>& mass,
                            const std::optional<Tensor>& statistics,
                            const std::optional<Tensor>& sums, const std::optional<Tensor>& bias,
                            Dtypes taken) {
  require_rows("x_gates", x_gates, taken);
  const ScalarType dtype = x_gates.scalar_type();
  require_rows("h", h, {dtype, wide(dtype)});
  const int64_t width = h.size(h.dim() - 1), gates = 3 * width;
  require("x_gates", x_gates, leading(x_gates, {gates}), dtype, h);
  std::vector<int64_t> of_h = leading(x_gates, {width});
  // Images may share the states of one.
  if (h.dim() > 1 && h.size(0) == 1) of_h[0] = 1;
  require("h", h, {of_h.data(), of_h.size()}, {dtype, wide(dtype)}, h);
  require("h_gates", h_gates, leading(h, {gates}), dtype, h);
  require("shift", shift, {gates}, dtype, h);
  require("mass", mass, leading(x_gates, {}), wide(dtype), h);
  require("statistics", statistics, leading(h, {3}), wide(dtype), h);
  require("sums", sums, {gates}, dtype, h);
  require("bias", bias, {gates}, dtype, h);
  if (shift.has_value() != mass.has_value()) refuse("shift, mass", "both or neither", "one");
  if (statistics.has_value() != sums.has_value() || sums.has_value() != bias.has_value())
    refuse("statistics, sums, bias", "all or none", "some");
}

}  // namespace ocvtp
