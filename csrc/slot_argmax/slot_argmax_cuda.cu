// ocvtp_native::slot_argmax on CUDA.
#include <torch/csrc/stable/library.h>

#include "common/slot_logits_cuda.h"
#include "slot_argmax/checks.h"
#include "slot_argmax/slot_argmax_launch.cuh"

namespace ocvtp {
namespace {

struct Picks {
  Tensor ids, peak, packed, token_score;
};

// With `packed_only` neither ids nor peak.
Picks pick(Tensor q, Tensor k, std::optional<Tensor> constant, double scale, int64_t top_k,
           bool with_evidence, bool packed_only) {
  const Launcher launch(q);
  check_slot_logits(launch, q, k);
  const int64 batch = q.size(0), slots = q.size(1), tokens = k.size(1);
  const int depth = int_size(q, 2);
  const Tensor none = empty(q, {0}, ScalarType::Float);
  const Picks picks{
      packed_only ? none : empty(q, {batch, slots, top_k}, ScalarType::Long),
      packed_only ? none : empty(q, {batch, slots}, ScalarType::Float),
      empty(q, {batch, ceil_div<int64>(tokens, kTokens), slots}, ScalarType::Long),
      with_evidence ? empty(q, {batch, tokens}, ScalarType::Float) : none,
  };
  if (batch == 0) return picks;
  q = packed(q);
  k = packed(k);
  const Tensor best = packed_only ? none : empty(q, {batch, slots}, ScalarType::Long);
  const Tensor stats = empty(q, {slots > kMaxTileSlots ? batch * tokens : 0, 2}, ScalarType::Float);
  by_cuda_dtype(q, [&](auto kind) {
    using T = decltype(kind);
    const SlotArgmaxJob<T> job{slot_logits_args<T>(q, k, depth, constant, std::nullopt, scale),
                               batch,
                               static_cast<int>(top_k),
                               packed_only ? nullptr : out<int64>(picks.ids),
                               out<float>(picks.peak),
                               with_evidence ? out<float>(picks.token_score) : nullptr,
                               out<uint64>(picks.packed),
                               out<uint64>(best),
                               out<SoftmaxStats>(stats)};
    launch_slot_argmax(launch, job);
  });
  return picks;
}

std::tuple<Tensor, Tensor, Tensor> slot_argmax(Tensor q, Tensor k, std::optional<Tensor> constant,
                                               double scale, int64_t top_k, bool with_evidence) {
  check_slot_argmax(q, k, constant, kernel_dtypes);
  require_range("top_k", top_k, 1, k.size(1));
  const Picks picks = pick(q, k, constant, scale, top_k, with_evidence, false);
  return {picks.ids, picks.peak, picks.token_score};
}

std::tuple<Tensor, Tensor> slot_argmax_packed(Tensor q, Tensor k, std::optional<Tensor> constant,
                                              double scale, bool with_evidence) {
  check_slot_argmax(q, k, constant, kernel_dtypes);
  const Picks picks = pick(q, k, constant, scale, 1, with_evidence, true);
  return {picks.packed, picks.token_score};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("slot_argmax", TORCH_BOX(&slot_argmax));
  m.impl("slot_argmax_packed", TORCH_BOX(&slot_argmax_packed));
}

}  // namespace
}  // namespace ocvtp
