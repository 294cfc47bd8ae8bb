// What attention_received takes, on every device; `taken` are the dtypes that its kernels have.
#pragma once

#include "common/checks.h"

namespace ocvtp {

inline void check_attention_received(const Tensor& q, const Tensor& k, int64_t row, Dtypes taken) {
  require("q", q, {any, any, any, any}, taken, q);
  require("k", k, {q.size(0), q.size(1), any, q.size(3)}, q.scalar_type(), q);
  require_range("row", row, -1, q.size(2) - 1);
}

}  // namespace ocvtp
