// ocvtp_native::mmr_select.
#include "common/binding.h"
#include "mmr_select/mmr_select.h"

namespace ocvtp {
namespace {

Tensor mmr_select(Tensor relevance, Tensor similarity, int64_t budget, double trade_off) {
  check_scored(similarity, "relevance", relevance, budget, kernel_dtypes);
  // The first pick is made whatever the budget.
  require_range("budget", budget, 1, similarity.size(1));
  relevance = dense(relevance);
  similarity = with_unit_stride(similarity);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  const Tensor running = empty(similarity, {batch, tokens});
  const Tensor order = empty(similarity, {batch, budget}, ScalarType::Long);
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    const MmrSelect<T> arguments{
        data<T>(relevance), rows<T>(similarity), tokens,          budget,
        T(trade_off),       T(1 - trade_off),    out<T>(running), out<int64_t>(order)};
    run(kernels::mmr_select<T>, arguments, batch, budget * tokens);
  });
  return order;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // relevance [B,N], similarity [B,N,N] -> the picks in order, int64 [B,budget].
  m.def("mmr_select(Tensor relevance, Tensor similarity, int budget, float trade_off) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) { m.impl("mmr_select", TORCH_BOX(&mmr_select)); }

}  // namespace
}  // namespace ocvtp
