// slot_argmax, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // -> picks int64 [B,K,top_k] best first, acc log-attention of the best [B,K], and, if asked
  // for, each token's largest log-attention over slots, acc [B,N], else [0].
  m.def(
      "slot_argmax(Tensor q, Tensor k, Tensor? constant, float scale, int top_k,"
      " bool with_evidence) -> (Tensor picks, Tensor peak, Tensor evidence)");
  // On a GPU. -> packed int64 [B,P,K], each slot's best pick of each of P tiles of tokens, as
  // resolve_gather_packed takes it, and the evidence.
  m.def(
      "slot_argmax_packed(Tensor q, Tensor k, Tensor? constant, float scale, bool with_evidence)"
      " -> (Tensor packed, Tensor evidence)");
}
