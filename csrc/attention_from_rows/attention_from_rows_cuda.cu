// ocvtp_native::attention_from_rows on CUDA.
#include <torch/csrc/stable/library.h>

#include "attention_from_rows/attention_from_rows.cuh"
#include "attention_from_rows/checks.h"
#include "common/cuda_binding.cuh"

namespace ocvtp {
namespace {

template <class T>
HeadRows<T> head_rows(const Tensor& x) {
  constexpr int64 kPack = 16 / sizeof(T);
  const bool wide =
      divides(kPack, {x.stride(0), x.stride(1), x.stride(2), x.size(3)}) && address(x) % 16 == 0;
  return {data<T>(x), x.stride(0), x.stride(1), x.stride(2), int_size(x, 2), wide};
}

Tensor attention_from_rows(Tensor q, Tensor k, std::optional<Tensor> last,
                           std::optional<Tensor> valid, double scale) {
  check_attention_from_rows(q, k, last, valid, kernel_dtypes);
  q = with_unit_stride(q);
  k = with_unit_stride(k);
  last = dense(last);
  valid = dense(valid);
  const int64 batch = q.size(0);
  const int heads = int_size(q, 1), queries = int_size(q, 2), keys = int_size(k, 2);
  const Tensor received = empty(q, {batch, keys}, ScalarType::Float);
  if (received.numel() == 0) return received;
  const bool few = queries <= kFewQueries, masked = last || valid;
  const int tiles = few ? queries : ceil_div(queries, kReceivedTile);
  const int64 parts = static_cast<int64>(heads) * tiles;
  const Tensor partial = empty(q, {batch, parts, keys}, ScalarType::Float);
  const SeenKeys seen{data<int64>(last), data<bool>(valid)};
  const Launcher launch(q);
  by_cuda_dtype(q, [&](auto kind) {
    using T = decltype(kind);
    const ReceivedArguments<T> arguments{
        head_rows<T>(q), head_rows<T>(k), seen,           out<float>(partial),
        heads,           tiles,           int_size(q, 3), static_cast<float>(scale)};
    if (few)
      launch(attention_row_kernel<T>, batch * parts, kSumThreads, 0, arguments);
    else
      launch(masked ? attention_from_rows_kernel<true, T> : attention_from_rows_kernel<false, T>,
             batch * parts, kReceivedThreads, received_shared_bytes<T>(), arguments);
  });
  launch(sum_parts_kernel, batch * ceil_div(keys, kWarpSize), kSumThreads, 0, data<float>(partial),
         out<float>(received), seen, static_cast<int>(parts), keys, heads, queries);
  return received;
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("attention_from_rows", TORCH_BOX(&attention_from_rows));
}

}  // namespace
}  // namespace ocvtp
