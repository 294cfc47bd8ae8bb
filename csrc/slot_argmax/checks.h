// What slot_argmax takes, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_slot_argmax(const Tensor& q, const Tensor& k,
                              const std::optional<Tensor>& constant, Dtypes taken) {
  check_queries_and_keys(q, k, taken);
  require("constant", constant, {q.size(0), q.size(1)}, acc_dtype(q.scalar_type()), q);
  if (k.size(1) < 1) refuse("k", "at least one token", text_of(k));
}

}  // namespace ocvtp
