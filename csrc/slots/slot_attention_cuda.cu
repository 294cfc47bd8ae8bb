// ocvtp_native::slot_attention on CUDA.
#include <torch/csrc/stable/library.h>

#include "slots/cuda_competition.h"
#include "slots/slot_attention_launch.cuh"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor> slot_attention(Tensor q, Tensor k, Tensor v,
                                                  std::optional<Tensor> constant,
                                                  std::optional<Tensor> slot_mask, double scale,
                                                  double eps, bool with_attention) {
  const Launcher launch(q);
  check_competition(launch, q, k);
  check_dtype(v, q.scalar_type(), "v");
  STD_TORCH_CHECK(v.dim() == 3 && v.size(0) == q.size(0) && v.size(1) == k.size(1) && v.size(2) > 0,
                  "ocvtp_native: v is not [B, N, E]");
  const int64 batch = q.size(0), slots = q.size(1), tokens = k.size(1);
  const int depth = int_size(q, 2), width = int_size(v, 2);
  const Tensor updates = empty(q, {batch, slots, width});
  const Tensor mass = empty(q, {batch, slots}, ScalarType::Float);
  const Tensor attention = with_attention ? empty(q, {batch, slots, tokens}) : empty(q, {0});
  if (batch == 0) return {updates, mass, attention};
  q = packed(q);
  k = packed(k);
  v = packed(v);
  constant = per_slot(constant, q, ScalarType::Float, "constant");
  slot_mask = dense(per_slot(slot_mask, q, ScalarType::Bool, "slot_mask"));
  by_cuda_dtype(q, [&](auto kind) {
    using T = decltype(kind);
    const SlotAttentionJob<T> job{competition_of<T>(q, k, depth, constant, slot_mask, scale),
                                  rows<T>(v),
                                  batch,
                                  width,
                                  static_cast<float>(eps),
                                  out<T>(updates),
                                  out<float>(mass),
                                  with_attention ? out<T>(attention) : nullptr};
    const Cut cut = cut_of(job, launch.multiprocessors());
    const Workspace sizes = workspace_of(job, cut);
    const Tensor partial = empty(q, {sizes.partial}, ScalarType::Float);
    const Tensor partial_mass = empty(q, {sizes.mass}, ScalarType::Float);
    const Tensor standings = empty(q, {2 * sizes.standings}, ScalarType::Float);
    launch_slot_attention(launch, job, cut, out<float>(partial), out<float>(partial_mass),
                          out<Standing>(standings));
  });
  return {updates, mass, attention};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("slot_attention", TORCH_BOX(&slot_attention));
}

}  // namespace
}  // namespace ocvtp
