// What slot_attention takes, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_slot_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const std::optional<Tensor>& constant,
                                 const std::optional<Tensor>& slot_mask, Dtypes taken) {
  check_queries_and_keys(q, k, taken);
  require("v", v, {q.size(0), k.size(1), any}, q.scalar_type(), q);
  require("constant", constant, {q.size(0), q.size(1)}, acc_dtype(q.scalar_type()), q);
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
  require("grad_mass", grad_mass, {batch, slots}, acc_dtype(dtype), q);
  require("grad_attention", grad_attention, {batch, slots, tokens}, dtype, q);
  require("attention", attention, {batch, slots, tokens}, dtype, q);
}

}  // namespace ocvtp
