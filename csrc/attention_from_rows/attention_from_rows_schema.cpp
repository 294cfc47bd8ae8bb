// attention_from_rows, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // q [B,H,M,d], k [B,H,N,d], last int64 [B,M], -1 in rows that see no key, valid bool [B,N]
  // -> acc [B,N], the mean over heads and over the rows whose last is not -1.
  m.def(
      "attention_from_rows(Tensor q, Tensor k, Tensor? last, Tensor? valid, float scale) -> "
      "Tensor");
}
