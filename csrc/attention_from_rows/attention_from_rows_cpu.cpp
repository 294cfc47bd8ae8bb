// ocvtp_native::attention_from_rows on the CPU.
#include "attention_from_rows/attention_from_rows.h"
#include "attention_from_rows/checks.h"
#include "common/binding.h"

namespace ocvtp {
namespace {

Tensor attention_from_rows(Tensor q, Tensor k, std::optional<Tensor> last,
                           std::optional<Tensor> valid, double scale) {
  check_attention_from_rows(q, k, last, valid, floating);
  q = with_unit_stride(q);
  k = with_unit_stride(k);
  last = dense(last);
  valid = dense(valid);
  const SeenKeys seen{data<int64_t>(last), data<bool>(valid)};
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), width = q.size(3),
                keys = k.size(2);
  const int64_t parts = heads * query_blocks(queries), units = batch * parts;
  // Each thread has its own scratch and consecutive parts: those of a head share packed keys.
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), units);
  const int64_t scratch_size = attention_scratch(queries, keys, width);
  const ScalarType sums = acc_dtype(q.scalar_type());
  const Tensor scratch = empty(q, {threads * scratch_size}, sums),
               received = empty(q, {units * keys}, sums);
  const Tensor mean = empty(q, {batch, keys}, sums);
  by_floating_dtype(q, [&](auto kind) {
    using E = decltype(kind);
    using T = Acc<E>;
    const AttentionFromRows<E> arguments{data<E>(q),
                                         data<E>(k),
                                         seen,
                                         {q.stride(0), q.stride(1), q.stride(2)},
                                         {k.stride(0), k.stride(1), k.stride(2)},
                                         heads,
                                         queries,
                                         keys,
                                         width,
                                         T(scale),
                                         out<T>(scratch),
                                         out<T>(received)};
    const auto run_of_parts = [&](const AttentionFromRows<E>& shared, int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        AttentionFromRows<E> own = shared;
        own.scratch += thread * scratch_size;
        kernels::attention_from_rows<E>(own, units * thread / threads,
                                        units * (thread + 1) / threads);
      }
    };
    run(run_of_parts, arguments, threads, units / std::max<int64_t>(1, threads) * keys * width);
    run(kernels::attention_mean<T>,
        AttentionMean<T>{data<T>(received), seen, parts, keys, heads, queries, out<T>(mean)},
        batch * token_blocks(keys), parts * token_block);
  });
  return mean;
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("attention_from_rows", TORCH_BOX(&attention_from_rows));
}

}  // namespace
}  // namespace ocvtp
