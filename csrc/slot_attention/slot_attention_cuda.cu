// ocvtp_native::slot_attention on CUDA.
#include <torch/csrc/stable/library.h>

#include "common/slot_logits_cuda.h"
#include "slot_attention/checks.h"
#include "slot_attention/slot_attention_launch.cuh"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor> slot_attention(Tensor q, Tensor k, Tensor v,
                                                  std::optional<Tensor> constant,
                                                  std::optional<Tensor> slot_mask, double scale,
                                                  double eps, bool with_attention) {
  check_slot_attention(q, k, v, constant, slot_mask, kernel_dtypes);
  const Launcher launch(q);
  check_slot_logits(launch, q, k);
  require_nonempty("v", v);
  const int64 batch = q.size(0), slots = q.size(1), tokens = k.size(1);
  const int depth = int_size(q, 2), width = int_size(v, 2);
  const Tensor updates = empty(q, {batch, slots, width});
  const Tensor mass = empty(q, {batch, slots}, ScalarType::Float);
  const Tensor attention = with_attention ? empty(q, {batch, slots, tokens}) : empty(q, {0});
  if (batch == 0) return {updates, mass, attention};
  q = packed(q);
  k = packed(k);
  v = packed(v);
  slot_mask = dense(slot_mask);
  by_cuda_dtype(q, [&](auto kind) {
    using T = decltype(kind);
    const SlotAttentionJob<T> job{slot_logits_args<T>(q, k, depth, constant, slot_mask, scale),
                                  rows<T>(v),
                                  batch,
                                  width,
                                  static_cast<float>(eps),
                                  out<T>(updates),
                                  out<float>(mass),
                                  with_attention ? out<T>(attention) : nullptr};
    const SplitPlan plan = split_plan(job, launch.multiprocessors());
    const Workspace sizes = workspace_of(job, plan);
    const Tensor partial_acc = empty(q, {sizes.partial_acc}, ScalarType::Float);
    const Tensor partial_mass = empty(q, {sizes.mass}, ScalarType::Float);
    const Tensor stats = empty(q, {2 * sizes.stats}, ScalarType::Float);
    launch_slot_attention(launch, job, plan, out<float>(partial_acc), out<float>(partial_mass),
                          out<SoftmaxStats>(stats));
  });
  return {updates, mass, attention};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("slot_attention", TORCH_BOX(&slot_attention));
}

}  // namespace
}  // namespace ocvtp
