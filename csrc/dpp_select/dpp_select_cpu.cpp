// ocvtp_native::dpp_select.
#include "common/binding.h"
#include "dpp_select/dpp_select.h"

namespace ocvtp {
namespace {

Tensor dpp_select(Tensor similarity, Tensor quality, int64_t budget) {
  check_scored(similarity, "quality", quality, budget, kernel_dtypes);
  similarity = with_unit_stride(similarity);
  quality = dense(quality);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  const Tensor variance = empty(similarity, {batch, tokens}),
               pick_components = empty(similarity, {batch, budget});
  const Tensor components = empty(similarity, {batch, budget, whole_vectors(tokens)});
  const Tensor min_variance = empty(similarity, {batch}), pick_root = empty(similarity, {batch});
  const Tensor order = empty(similarity, {batch, budget}, ScalarType::Long);
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    each_image(batch, budget * budget * tokens / 8, [&](int64_t image) {
      DppSelect<T> a{rows<T>(similarity),
                     data<T>(quality),
                     tokens,
                     budget,
                     0,
                     out<T>(variance),
                     out<T>(components),
                     out<T>(pick_components),
                     out<T>(min_variance),
                     out<T>(pick_root),
                     out<int64_t>(order)};
      for (; a.step < budget; ++a.step) {
        kernels::dpp_pick<T>(a, image, image + 1);
        // Components are in cache: a sixteenth of the usual cost.
        if (a.step + 1 < budget)
          run_step(kernels::dpp_explain<T>, a, image, token_blocks(tokens),
                   (a.step + 1) * token_block / 16);
      }
    });
  });
  return order;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // similarity [B,N,N], quality [B,N] -> the picks in order, int64 [B,budget].
  m.def("dpp_select(Tensor similarity, Tensor quality, int budget) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) { m.impl("dpp_select", TORCH_BOX(&dpp_select)); }

}  // namespace
}  // namespace ocvtp
