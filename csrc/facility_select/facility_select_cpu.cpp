// ocvtp_native::facility_select.
#include "common/binding.h"
#include "facility_select/facility_select.h"

namespace ocvtp {
namespace {

Tensor facility_select(Tensor similarity, Tensor saliency, int64_t budget) {
  check_scored(similarity, "saliency", saliency, budget, kernel_dtypes);
  similarity = with_unit_stride(similarity);
  saliency = dense(saliency);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  const Tensor bound = empty(similarity, {batch, tokens});
  const Tensor covered = empty(similarity, {batch, tokens});
  const Tensor bound_step = empty(similarity, {batch, tokens}, ScalarType::Long);
  const Tensor guessed = empty(bound_step, {batch, tokens}),
               order = empty(bound_step, {batch, budget});
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    const FacilitySelect<T> arguments{rows<T>(similarity),
                                      data<T>(saliency),
                                      tokens,
                                      budget,
                                      out<T>(bound),
                                      out<T>(covered),
                                      out<int64_t>(bound_step),
                                      out<int64_t>(guessed),
                                      out<int64_t>(order)};
    run(kernels::facility_gains<T>, arguments, batch * tokens, tokens);
    run(kernels::facility_select<T>, arguments, batch, budget * tokens);
  });
  return order;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // similarity [B,N,N], saliency [B,N] -> the picks in order, int64 [B,budget].
  m.def("facility_select(Tensor similarity, Tensor saliency, int budget) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("facility_select", TORCH_BOX(&facility_select));
}

}  // namespace
}  // namespace ocvtp
