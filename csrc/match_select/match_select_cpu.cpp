// ocvtp_native::match_select.
#include "common/binding.h"
#include "match_select/match_select.h"

namespace ocvtp {
namespace {

Tensor match_select(Tensor similarity, Tensor ranked, int64_t budget, int64_t drop) {
  require_square("similarity", similarity, kernel_dtypes);
  require("ranked", ranked, {similarity.size(0), any}, ScalarType::Long, similarity);
  require_range("budget", budget, 0, ranked.size(1));
  require_at_least("drop", drop, 1);
  similarity = with_unit_stride(similarity);
  ranked = dense(ranked);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1),
                num_ranked = ranked.size(1);
  require_ids("ranked", ranked, tokens);
  const Tensor mask = empty(similarity, {batch, tokens});
  const Tensor best_similarity = empty(similarity, {batch, num_ranked});
  const Tensor lists = empty(ranked, {3, batch, num_ranked}),
               order = empty(ranked, {batch, budget});
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    int64_t* list = out<int64_t>(lists);
    const MatchSelect<T> arguments{rows<T>(similarity),
                                   data<int64_t>(ranked),
                                   tokens,
                                   num_ranked,
                                   budget,
                                   drop,
                                   out<T>(mask),
                                   out<T>(best_similarity),
                                   list,
                                   list + batch * num_ranked,
                                   list + 2 * batch * num_ranked,
                                   out<int64_t>(order)};
    run(kernels::match_select<T>, arguments, batch, num_ranked * tokens);
  });
  return order;
}

STABLE_TORCH_LIBRARY_FRAGMENT(ocvtp_native, m) {
  // similarity [B,N,N], ranked int64 [B,M] -> the ids kept, int64 [B,budget].
  m.def("match_select(Tensor similarity, Tensor ranked, int budget, int drop) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("match_select", TORCH_BOX(&match_select));
}

}  // namespace
}  // namespace ocvtp
