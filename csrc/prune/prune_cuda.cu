// The ops that only ocvtp::prune calls, on CUDA; the GEMMs between them are torch's.
#include <torch/csrc/stable/library.h>

#include "common/cuda_rows.h"
#include "prune/bias_gelu.cuh"
#include "prune/checks.h"
#include "prune/layer_norm.cuh"
#include "prune/norm_slots.cuh"

namespace ocvtp {
namespace {

Tensor layer_norm(Tensor x, double eps) {
  check_layer_norm(x, kernel_dtypes);
  const Tensor y = empty_sized(x, x.scalar_type());
  const Rows2 rows = rows_of(x, 2);
  if (rows.count == 0) return y;
  const Launcher launch(x);
  by_cuda_dtype(x, [&](auto kind) {
    using T = decltype(kind);
    constexpr int kPack = kMaxElements<T>;
    launch(
        rows.in_packs_of(kPack, sizeof(T)) ? layer_norm_kernel<T, kPack> : layer_norm_kernel<T, 1>,
        rows.count, kNormThreads, 0, data<T>(rows.tensor), out<T>(y), rows.layout, rows.width,
        static_cast<float>(eps));
  });
  return y;
}

void bias_gelu_(Tensor x, Tensor bias) {
  check_bias_gelu(x, bias, kernel_dtypes);
  bias = dense(bias);
  const Rows2 rows = rows_of(x, 2);
  if (rows.count == 0) return;
  const Launcher launch(x);
  by_cuda_dtype(x, [&](auto kind) {
    using T = decltype(kind);
    constexpr int kPack = kMaxElements<T>;
    const bool packs =
        rows.in_packs_of(kPack, sizeof(T)) && divides(sizeof(T) * kPack, {address(bias)});
    launch(packs ? bias_gelu_kernel<T, kPack> : bias_gelu_kernel<T, 1>, rows.count, kGeluThreads, 0,
           out<T>(rows.tensor), data<T>(bias), rows.layout, rows.width);
  });
  if (rows.copied) torch::stable::copy_(x, rows.tensor);
}

std::tuple<Tensor, Tensor, Tensor> start(Tensor tokens, Tensor slots, Tensor weight, double eps) {
  check_start(tokens, slots, weight, kernel_dtypes);
  slots = dense(slots);
  weight = dense(weight);
  const Tensor x = empty_sized(tokens, tokens.scalar_type());
  const Tensor normed = empty_sized(slots, tokens.scalar_type());
  const Tensor statistics = empty_rows(slots, 3, ScalarType::Float);
  const Rows2 rows = rows_of(tokens, 2);
  if (rows.count + num_rows(slots) == 0) return {x, normed, statistics};
  const Launcher launch(tokens);
  by_cuda_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    constexpr int kPack = kMaxElements<T>;
    const bool packs =
        rows.in_packs_of(kPack, sizeof(T)) && divides(sizeof(T) * kPack, {address(slots)});
    launch(packs ? start_kernel<T, kPack> : start_kernel<T, 1>, rows.count + num_rows(slots),
           kNormThreads, 0, data<T>(rows.tensor), out<T>(x), rows.layout, rows.count,
           data<T>(slots), data<T>(weight), out<T>(normed), out<SlotStatistics>(statistics),
           rows.width, static_cast<float>(eps));
  });
  return {x, normed, statistics};
}

std::tuple<Tensor, Tensor, Tensor> norm_slots(Tensor x, Tensor y, Tensor weight, double eps) {
  check_norm_slots(x, y, weight, kernel_dtypes);
  weight = dense(weight);
  const Tensor sum = empty_sized(x, ScalarType::Float);
  const Tensor normed = empty_sized(y, y.scalar_type());
  const Tensor statistics = empty_rows(x, 3, ScalarType::Float);
  const Rows2 x_rows = rows_of(x, 1), y_rows = rows_of(y, 1);
  check_width(x_rows.width);
  if (x_rows.count == 0) return {sum, normed, statistics};
  const Launcher launch(x);
  by_cuda_dtype(y, [&](auto kind) {
    using T = decltype(kind);
    launch(norm_slots_kernel<T>, x_rows.count, kNormThreads,
           x_rows.width * static_cast<int>(sizeof(float)), data<float>(x_rows.tensor),
           data<T>(y_rows.tensor), data<T>(weight), out<float>(sum), out<T>(normed),
           out<SlotStatistics>(statistics), x_rows.layout.inner_stride, y_rows.layout.inner_stride,
           x_rows.width, static_cast<float>(eps));
  });
  return {sum, normed, statistics};
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("bias_gelu_", TORCH_BOX(&bias_gelu_));
  m.impl("start", TORCH_BOX(&start));
  m.impl("norm_slots", TORCH_BOX(&norm_slots));
}

}  // namespace
}  // namespace ocvtp
