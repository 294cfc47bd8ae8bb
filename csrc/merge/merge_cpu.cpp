// ocvtp_native::merge.
#include <limits>

#include "merge/slot_assignment.h"
#include "scatter_merge/weighted_sums.h"
#include "slot_attention/slot_attention_tensor.h"

namespace ocvtp {
namespace {

std::tuple<Tensor, Tensor> merge(Tensor q, Tensor k, Tensor final, double scale) {
  // Of any floating dtypes: the sums are float32 or wider.
  check_queries_and_keys(q, k, floating);
  require("final", final, {q.size(0), k.size(1), any}, floating, q);
  const Tensor attention = attention_of(upcast(q), upcast(k), std::nullopt, std::nullopt, scale);
  const int64_t batch = attention.size(0), slots = attention.size(1), tokens = attention.size(2);
  const Tensor weight = empty(attention, {batch, tokens});
  const Tensor assignment = empty(attention, {batch, tokens}, ScalarType::Long);
  by_dtype(attention, [&](auto kind) {
    using T = decltype(kind);
    const SlotAssignment<T> arguments{data<T>(attention), slots, tokens, out<T>(weight),
                                      out<int64_t>(assignment)};
    run(kernels::slot_assignment<T>, arguments, batch * token_blocks(tokens), slots * token_block);
  });
  // The wider dtype of the two.
  const ScalarType dtype =
      final.scalar_type() == ScalarType::Double ? ScalarType::Double : weight.scalar_type();
  const auto [sums, mass] = weighted_sums(with_unit_stride(in_dtype(final, dtype)), assignment,
                                          in_dtype(weight, dtype), slots);
  // A weight is at least 1 / K, so eps only turns 0 / 0 into 0.
  per_mass(sums, nullptr, mass, std::numeric_limits<float>::min(), sums, nullptr);
  return {in_dtype(sums, final.scalar_type()), in_dtype(mass, q.scalar_type())};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // q [B,K,D] and k [B,N,D] of one floating dtype, final [B,N,C] of any -> merged [B,K,C] in the
  // dtype of final, mass [B,K] in that of q.
  m.def("merge(Tensor q, Tensor k, Tensor final, float scale) -> (Tensor merged, Tensor mass)");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) { m.impl("merge", TORCH_BOX(&merge)); }

}  // namespace
}  // namespace ocvtp
