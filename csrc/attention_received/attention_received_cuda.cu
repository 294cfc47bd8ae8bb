// ocvtp_native::attention_received on CUDA.
#include <torch/csrc/stable/library.h>

#include "attention_received/attention_received.cuh"
#include "attention_received/checks.h"
#include "common/cuda_binding.cuh"

namespace ocvtp {
namespace {

template <class T>
HeadRows<T> head_rows(const Tensor& x, int64 first_row, int64 rows) {
  constexpr int64 kPack = 16 / sizeof(T);
  const T* const start = data<T>(x) + first_row * x.stride(2);
  const bool wide = divides(kPack, {x.stride(0), x.stride(1), x.stride(2), x.size(3)}) &&
                    reinterpret_cast<std::uintptr_t>(start) % 16 == 0;
  return {start, x.stride(0), x.stride(1), x.stride(2), static_cast<int>(rows), wide};
}

Tensor attention_received(Tensor q, Tensor k, int64_t row, double scale) {
  check_attention_received(q, k, row, kernel_dtypes);
  q = with_unit_stride(q);
  k = with_unit_stride(k);
  const int64 batch = q.size(0), heads = q.size(1);
  const int queries = int_size(q, 2), keys = int_size(k, 2), width = int_size(q, 3);
  const Tensor received = empty(q, {batch, keys}, ScalarType::Float);
  if (received.numel() == 0) return received;
  const bool all = row == -1;
  const int tiles = all ? ceil_div(queries, kReceivedTile) : 1;
  const int64 parts = heads * tiles;
  const Tensor partial = empty(q, {batch, parts, keys}, ScalarType::Float);
  const Launcher launch(q);
  by_cuda_dtype(q, [&](auto kind) {
    using T = decltype(kind);
    const ReceivedArguments<T> arguments{head_rows<T>(q, all ? 0 : row, all ? queries : 1),
                                         head_rows<T>(k, 0, keys),
                                         out<float>(partial),
                                         static_cast<int>(heads),
                                         tiles,
                                         width,
                                         static_cast<float>(scale)};
    if (all)
      launch(attention_received_kernel<T>, batch * parts, kReceivedThreads,
             received_shared_bytes<T>(), arguments);
    else
      launch(attention_row_kernel<T>, batch * parts, kSumThreads, 0, arguments);
  });
  const double count = static_cast<double>(heads) * (all ? queries : 1);
  launch(sum_parts_kernel<float>, batch * ceil_div(keys, kWarpSize), kSumThreads, 0,
         data<float>(partial), out<float>(received), static_cast<int>(parts), keys,
         static_cast<float>(1.0 / count));
  return received;
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("attention_received", TORCH_BOX(&attention_received));
}

}  // namespace
}  // namespace ocvtp
