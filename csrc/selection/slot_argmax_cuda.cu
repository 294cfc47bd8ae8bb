// ocvtp_native::slot_argmax on CUDA.
#include <torch/csrc/stable/library.h>

#include "selection/checks.h"
#include "selection/slot_argmax_launch.cuh"
#include "slots/cuda_competition.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor> slot_argmax(Tensor q, Tensor k, std::optional<Tensor> constant,
                                               double scale, int64_t top_k, bool with_evidence) {
  check_slot_argmax(q, k, constant, top_k, kernel_dtypes);
  const Launcher launch(q);
  check_competition(launch, q, k);
  const int64 batch = q.size(0), slots = q.size(1), tokens = k.size(1);
  const int depth = int_size(q, 2);
  const Tensor picks = empty(q, {batch, slots, top_k}, ScalarType::Long);
  const Tensor peak = empty(q, {batch, slots}, ScalarType::Float);
  const Tensor evidence = with_evidence ? empty(q, {batch, tokens}, ScalarType::Float)
                                        : empty(q, {0}, ScalarType::Float);
  if (batch == 0) return {picks, peak, evidence};
  q = packed(q);
  k = packed(k);
  constant = dense(constant);
  const Tensor tile_picks =
      empty(q, {batch, ceil_div<int64>(tokens, kTokens), slots}, ScalarType::Long);
  const Tensor best = empty(q, {batch, slots}, ScalarType::Long);
  const Tensor standings = empty(q, {slots > kOneTile ? batch * tokens : 0, 2}, ScalarType::Float);
  by_cuda_dtype(q, [&](auto kind) {
    using T = decltype(kind);
    const SlotArgmaxJob<T> job{competition_of<T>(q, k, depth, constant, std::nullopt, scale),
                               batch,
                               static_cast<int>(top_k),
                               out<int64>(picks),
                               out<float>(peak),
                               with_evidence ? out<float>(evidence) : nullptr,
                               out<uint64>(tile_picks),
                               out<uint64>(best),
                               out<Standing>(standings)};
    launch_slot_argmax(launch, job);
  });
  return {picks, peak, evidence};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("slot_argmax", TORCH_BOX(&slot_argmax));
}

}  // namespace
}  // namespace ocvtp
