// ocvtp_native::farthest_select.
#include "common/binding.h"
#include "farthest_select/farthest_select.h"

namespace ocvtp {
namespace {

Tensor farthest_select(Tensor distances, std::optional<Tensor> first, int64_t budget,
                       bool distinct) {
  require_square("distances", distances, kernel_dtypes);
  require("first", first, {distances.size(0)}, ScalarType::Long, distances);
  // The first pick is made whatever the budget.
  require_range("budget", budget, 1, distances.size(1));
  distances = with_unit_stride(distances);
  first = dense(first);
  const int64_t batch = distances.size(0), tokens = distances.size(1);
  if (first) require_ids("first", *first, tokens);
  const Tensor running = empty(distances, {batch, tokens});
  const Tensor order = empty(distances, {batch, budget}, ScalarType::Long);
  by_dtype(distances, [&](auto kind) {
    using T = decltype(kind);
    const FarthestSelect<T> arguments{
        rows<T>(distances), data<int64_t>(first), tokens, budget, distinct,
        out<T>(running),    out<int64_t>(order)};
    if (!first)
      run(kernels::farthest_nearest<T>, arguments, batch * token_blocks(tokens),
          tokens * token_block);
    run(kernels::farthest_select<T>, arguments, batch, budget * tokens);
  });
  return order;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // distances [B,N,N], first int64 [B] -> the picks in order, int64 [B,budget].
  m.def("farthest_select(Tensor distances, Tensor? first, int budget, bool distinct) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("farthest_select", TORCH_BOX(&farthest_select));
}

}  // namespace
}  // namespace ocvtp
