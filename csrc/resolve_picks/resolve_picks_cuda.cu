// ocvtp_native::resolve_picks and resolve_gather on CUDA.
#include <torch/csrc/stable/library.h>

#include "common/cuda_binding.cuh"
#include "resolve_picks/checks.h"
#include "resolve_picks/resolve_picks.cuh"

namespace ocvtp {
namespace {

// Rows that a block copies: enough for its warps, few enough for shared memory without a request.
constexpr int kMinRows = 4, kMaxRows = 2048;

Scores scores_of(const Tensor& tensor, const char* name) {
  const int64 stride = tensor.stride(0);
  const void* const data = tensor.data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return {data, stride, 2, 0x7c00u};
    case ScalarType::BFloat16:
      return {data, stride, 2, 0x7f80u};
    case ScalarType::Float:
      return {data, stride, 4, 0x7f800000u};
    case ScalarType::Double:
      return {data, stride, 8, 0x7ff0000000000000u};
    default:
      break;
  }
  throw std::invalid_argument(std::string("ocvtp_native: ") + name + " has no floating dtype");
}

// The inputs, which the ops share.
struct Selection {
  Tensor picks;
  std::optional<Tensor> peak, importance;
  ResolveArguments arguments{};

  // Packed picks [B,P,K].
  Selection(const Tensor& packed, const std::optional<Tensor>& given_importance, int64 budget,
            int64 num_tokens)
      : picks(dense(packed)) {
    if (picks.size(2) > kPackedSlots)
      refuse("packed", "at most " + std::to_string(kPackedSlots) + " slots",
             std::to_string(picks.size(2)));
    arguments.packed = data<uint64>(picks);
    arguments.tiles = int_size(picks, 1);
    arguments.num_slots = static_cast<int>(picks.size(2));
    arguments.top_k = 1;
    take(given_importance, budget, num_tokens);
  }

  Selection(const Tensor& given_picks, const Tensor& given_peak,
            const std::optional<Tensor>& given_importance, int64 budget, int64 num_tokens)
      : picks(dense(given_picks)), peak(with_unit_stride(given_peak)) {
    const int64 num_picks = picks.size(1) * picks.size(2);
    if (num_picks > kResolvePicks)
      refuse("picks", "at most " + std::to_string(kResolvePicks) + " an image",
             std::to_string(num_picks));
    arguments.picks = data<int64>(picks);
    arguments.peak = scores_of(*peak, "peak");
    arguments.num_slots = static_cast<int>(picks.size(1));
    arguments.top_k = static_cast<int>(picks.size(2));
    take(given_importance, budget, num_tokens);
  }

 private:
  void take(const std::optional<Tensor>& given_importance, int64 budget, int64 num_tokens) {
    require_range("num_tokens", num_tokens, 0, kResolveTokens);
    if (given_importance) {
      importance = with_unit_stride(*given_importance);
      arguments.importance = scores_of(*importance, "importance");
    }
    arguments.num_tokens = static_cast<int>(num_tokens);
    arguments.budget = static_cast<int>(budget);
    arguments.parts = 1;
  }
};

Tensor resolve_picks(Tensor picks, Tensor peak, std::optional<Tensor> importance, int64_t budget,
                     int64_t num_tokens) {
  check_resolve_picks(picks, peak, importance, budget, num_tokens);
  Selection selection(picks, peak, importance, budget, num_tokens);
  const Tensor ids = empty(picks, {picks.size(0), budget}, ScalarType::Long);
  if (ids.numel() == 0) return ids;
  const Launcher launch(picks);
  selection.arguments.ids = out<int64>(ids);
  launch(resolve_kernel<false>, picks.size(0), kResolveThreads,
         resolve_shared_bytes(selection.arguments.num_tokens, 0), selection.arguments);
  return ids;
}

// `final` has unit stride within a row.
template <bool PACKED>
std::tuple<Tensor, Tensor> gather(const Selection& selection, const Tensor& final) {
  ResolveArguments a = selection.arguments;
  const int64 batch = selection.picks.size(0), width = final.size(2);
  const Tensor tokens = empty(final, {batch, a.budget, width});
  const Tensor ids = empty(selection.picks, {batch, a.budget}, ScalarType::Long);
  if (ids.numel() == 0) return {tokens, ids};
  const Launcher launch(final);
  const int64 element = final.element_size();
  a.ids = out<int64>(ids);
  a.final = data<unsigned char>(final);
  a.tokens = out<unsigned char>(tokens);
  a.final_image_stride = final.stride(0) * element;
  a.final_row_stride = final.stride(1) * element;
  a.row_bytes = width * element;
  a.unit = 16;
  while (!divides(a.unit, {address(final), a.final_image_stride, a.final_row_stride, a.row_bytes,
                           address(tokens)}))
    a.unit /= 2;
  const int spread = static_cast<int>(ceil_div<int64>(launch.multiprocessors(), batch));
  a.parts = std::max(ceil_div(a.budget, kMaxRows), std::min(ceil_div(a.budget, kMinRows), spread));
  launch(resolve_kernel<true, PACKED>, batch * a.parts, kResolveThreads,
         resolve_shared_bytes(a.num_tokens, rows_per_part(a.budget, a.parts),
                              PACKED ? a.num_slots : 0),
         a);
  return {tokens, ids};
}

std::tuple<Tensor, Tensor> resolve_gather(Tensor picks, Tensor peak,
                                          std::optional<Tensor> importance, Tensor final,
                                          int64_t budget) {
  check_resolve_gather(picks, peak, importance, final, budget);
  final = with_unit_stride(final);
  return gather<false>(Selection(picks, peak, importance, budget, final.size(1)), final);
}

std::tuple<Tensor, Tensor> resolve_gather_packed(Tensor packed, std::optional<Tensor> importance,
                                                 Tensor final, int64_t budget) {
  check_resolve_gather_packed(packed, importance, final, budget);
  final = with_unit_stride(final);
  return gather<true>(Selection(packed, importance, budget, final.size(1)), final);
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("resolve_picks", TORCH_BOX(&resolve_picks));
  m.impl("resolve_gather", TORCH_BOX(&resolve_gather));
  m.impl("resolve_gather_packed", TORCH_BOX(&resolve_gather_packed));
}

}  // namespace
}  // namespace ocvtp
