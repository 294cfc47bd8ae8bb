// ocvtp_native::resolve_picks and resolve_gather on the CPU.
#include "common/binding.h"
#include "resolve_picks/checks.h"
#include "resolve_picks/resolve_picks.h"

namespace ocvtp {
namespace {

// Exact for every floating dtype.
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

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("resolve_picks", TORCH_BOX(&resolve_picks));
  m.impl("resolve_gather", TORCH_BOX(&resolve_gather));
}

}  // namespace
}  // namespace ocvtp
