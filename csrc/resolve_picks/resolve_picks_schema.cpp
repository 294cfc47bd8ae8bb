// resolve_picks and its gather, on every device.
#include "common/library.h"

OCVTP_LIBRARY(m) {
  // picks int64 [B,K,top_k], peak [B,K], importance [B,N] of any floating dtypes
  // -> ids int64 [B,budget].
  m.def(
      "resolve_picks(Tensor picks, Tensor peak, Tensor? importance, int budget, int num_tokens)"
      " -> Tensor");
  // The same and the gather: final [B,N,C] of any dtype -> tokens [B,budget,C], ids.
  m.def(
      "resolve_gather(Tensor picks, Tensor peak, Tensor? importance, Tensor final, int budget)"
      " -> (Tensor tokens, Tensor ids)");
  m.def(
      "resolve_gather_packed(Tensor packed, Tensor? importance, Tensor final, int budget)"
      " -> (Tensor tokens, Tensor ids)");
}
