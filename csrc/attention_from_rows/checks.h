// What attention_from_rows takes, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_attention_from_rows(const Tensor& q, const Tensor& k,
                                      const std::optional<Tensor>& last,
                                      const std::optional<Tensor>& valid, Dtypes taken) {
  require("q", q, {any, any, any, any}, taken, q);
  require("k", k, {q.size(0), q.size(1), any, q.size(3)}, q.scalar_type(), q);
  require("last", last, {q.size(0), q.size(2)}, ScalarType::Long, q);
  require("valid", valid, {q.size(0), k.size(2)}, ScalarType::Bool, q);
}

}  // namespace ocvtp
