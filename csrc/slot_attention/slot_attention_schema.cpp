// slot_attention, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // q [B,K,D], k [B,N,D], v [B,N,E], constant acc [B,K], slot_mask bool [B,K]
  // -> updates [B,K,E], acc mass [B,K], attention [B,K,N] or [0].
  m.def(
      "slot_attention(Tensor q, Tensor k, Tensor v, Tensor? constant, Tensor? slot_mask,"
      " float scale, float eps, bool with_attention)"
      " -> (Tensor updates, Tensor mass, Tensor attention)");
}
