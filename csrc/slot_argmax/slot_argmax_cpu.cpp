// ocvtp_native::slot_argmax on the CPU: the product is ATen's.
#include "common/binding.h"
#include "slot_argmax/checks.h"
#include "slot_argmax/slot_argmax.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor> slot_argmax(Tensor q, Tensor k, std::optional<Tensor> constant,
                                               double scale, int64_t top_k, bool with_evidence) {
  check_slot_argmax(q, k, constant, pipeline_dtypes);
  require_range("top_k", top_k, 1, k.size(1));
  constant = dense(constant);
  // In float32 at least: in bfloat16 logits would tie.
  const Tensor dots = product(upcast(q), transposed(upcast(k)));
  const int64_t batch = dots.size(0), slots = dots.size(1), tokens = dots.size(2);
  const Tensor picks = empty(dots, {batch, slots, top_k}, ScalarType::Long);
  const Tensor peak = empty(dots, {batch, slots});
  const Tensor token_score = with_evidence ? empty(dots, {batch, tokens}) : empty(dots, {0});
  const Tensor top = empty(dots, {batch, tokens}), rest = empty(dots, {batch, tokens});
  const Tensor best = empty(dots, {top_k == 1 ? batch * slots * token_blocks(tokens) : 0});
  by_dtype(dots, [&](auto kind) {
    using T = decltype(kind);
    const SlotArgmax<T> arguments{out<T>(dots),
                                  data<T>(constant),
                                  slots,
                                  tokens,
                                  top_k,
                                  T(scale),
                                  out<T>(top),
                                  out<T>(rest),
                                  top_k == 1 ? out<T>(best) : nullptr,
                                  with_evidence ? out<T>(token_score) : nullptr,
                                  out<int64_t>(picks),
                                  out<T>(peak)};
    run(kernels::slot_scores<T>, arguments, batch * token_blocks(tokens), 8 * slots * token_block);
    run(kernels::slot_best<T>, arguments, batch * slots, top_k == 1 ? token_block : tokens);
  });
  return {picks, peak, token_score};
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) { m.impl("slot_argmax", TORCH_BOX(&slot_argmax)); }

}  // namespace
}  // namespace ocvtp
