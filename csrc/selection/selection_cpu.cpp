// ocvtp_native's selection parts on the CPU.
#include <limits>

#include "common/binding.h"
#include "greedy/merge_tensor.h"
#include "selection/checks.h"
#include "selection/resolve_picks.h"
#include "slots/attention_tensor.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor, Tensor> slot_argmax(Tensor q, Tensor k, std::optional<Tensor> constant,
                                               double scale, int64_t top_k, bool with_evidence) {
  check_slot_argmax(q, k, constant, chain_dtypes);
  require_range("top_k", top_k, 1, k.size(1));
  constant = dense(constant);
  // In float32 at least: logits of bfloat16 would tie.
  const Tensor dots = product(widened(q), transposed(widened(k)));
  const int64_t batch = dots.size(0), slots = dots.size(1), tokens = dots.size(2);
  const Tensor picks = empty(dots, {batch, slots, top_k}, ScalarType::Long);
  const Tensor peak = empty(dots, {batch, slots});
  const Tensor evidence = with_evidence ? empty(dots, {batch, tokens}) : empty(dots, {0});
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
                                  with_evidence ? out<T>(evidence) : nullptr,
                                  out<int64_t>(picks),
                                  out<T>(peak)};
    run(kernels<T>().slot_scores, arguments, batch * token_blocks(tokens), 8 * slots * token_block);
    run(kernels<T>().slot_best, arguments, batch * slots, top_k == 1 ? token_block : tokens);
  });
  return {picks, peak, evidence};
}

// Any floating dtype, exactly.
std::optional<Tensor> in_double(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return dense(torch::stable::to(*tensor, ScalarType::Double));
}

Tensor resolve_picks(Tensor picks, Tensor peak, std::optional<Tensor> importance, int64_t budget,
                     int64_t num_tokens) {
  check_resolve_picks(picks, peak, importance, budget, num_tokens);
  picks = dense(picks);
  require_ids("picks", picks, num_tokens);
  const std::optional<Tensor> peaks = in_double(peak), scores = in_double(importance);
  const int64_t batch = picks.size(0), slots = picks.size(1), top_k = picks.size(2);
  const Tensor kept = empty(picks, {batch, num_tokens}, ScalarType::Bool);
  const Tensor spare = empty(*peaks, {scores ? batch : 0, num_tokens});
  const Tensor order = empty(picks, {batch, slots * top_k}), ids = empty(picks, {batch, budget});
  const ResolvePicks arguments{data<int64_t>(picks),
                               data<double>(peaks),
                               data<double>(scores),
                               slots,
                               top_k,
                               num_tokens,
                               budget,
                               out<bool>(kept),
                               out<double>(spare),
                               out<int64_t>(order),
                               out<int64_t>(ids)};
  run(ocvtp::resolve_picks, arguments, batch, 8 * (num_tokens + slots * top_k));
  return ids;
}

std::tuple<Tensor, Tensor> resolve_gather(Tensor picks, Tensor peak,
                                          std::optional<Tensor> importance, Tensor final,
                                          int64_t budget) {
  check_resolve_gather(picks, peak, importance, final, budget);
  const int64_t batch = final.size(0), width = final.size(2);
  const Tensor ids = resolve_picks(picks, peak, importance, budget, final.size(1));
  if (final.stride(2) != 1) final = dense(final);
  const int64_t bytes = static_cast<int64_t>(final.element_size());
  const Tensor tokens = empty(final, {batch, budget, width});
  const GatherRows arguments{data<char>(final), final.stride(0) * bytes, final.stride(1) * bytes,
                             width * bytes,     data<int64_t>(ids),      budget,
                             out<char>(tokens)};
  run(gather_rows, arguments, width ? batch * budget : 0, width);
  return {tokens, ids};
}

std::tuple<Tensor, Tensor> merge(Tensor q, Tensor k, Tensor final, double scale) {
  check_merge(q, k, final);
  const Tensor attention = attention_of(widened(q), widened(k), std::nullopt, std::nullopt, scale);
  const int64_t batch = attention.size(0), slots = attention.size(1), tokens = attention.size(2);
  const Tensor share = empty(attention, {batch, tokens});
  const Tensor owner = empty(attention, {batch, tokens}, ScalarType::Long);
  by_dtype(attention, [&](auto kind) {
    using T = decltype(kind);
    const SlotOwners<T> arguments{data<T>(attention), slots, tokens, out<T>(share),
                                  out<int64_t>(owner)};
    run(kernels<T>().slot_owners, arguments, batch * token_blocks(tokens), slots * token_block);
  });
  // The wider of both.
  const ScalarType dtype =
      final.scalar_type() == ScalarType::Double ? ScalarType::Double : share.scalar_type();
  const auto [sums, mass] = sums_of_owners(with_unit_stride(in_dtype(final, dtype)),
                                           in_dtype(share, dtype), owner, slots);
  // A share is no less than 1 / K: this changes the division by 0 alone, whose result is 0.
  per_mass(sums, nullptr, mass, std::numeric_limits<float>::min(), sums, nullptr);
  return {in_dtype(sums, final.scalar_type()), in_dtype(mass, q.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("slot_argmax", TORCH_BOX(&slot_argmax));
  m.impl("resolve_picks", TORCH_BOX(&resolve_picks));
  m.impl("resolve_gather", TORCH_BOX(&resolve_gather));
  m.impl("merge", TORCH_BOX(&merge));
}

}  // namespace
}  // namespace ocvtp
