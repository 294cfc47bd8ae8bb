// attention_received, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // q [B,H,M,d], k [B,H,N,d]; row -1 is the mean over all queries, else that query's row alone
  // -> acc [B,N], averaged over heads.
  m.def("attention_received(Tensor q, Tensor k, int row, float scale) -> Tensor");
}
