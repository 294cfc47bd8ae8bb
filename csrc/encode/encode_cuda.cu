// ocvtp_native's encode parts on CUDA: what surrounds the GEMMs, which are torch's.
#include <torch/csrc/stable/library.h>

#include "common/cuda_rows.h"
#include "encode/bias_gelu.cuh"
#include "encode/checks.h"

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
    constexpr int kPack = kMostElements<T>;
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
    constexpr int kPack = kMostElements<T>;
    const bool packs =
        rows.in_packs_of(kPack, sizeof(T)) && divides(sizeof(T) * kPack, {address(bias)});
    launch(packs ? bias_gelu_kernel<T, kPack> : bias_gelu_kernel<T, 1>, rows.count, kGeluThreads, 0,
           out<T>(rows.tensor), data<T>(bias), rows.layout, rows.width);
  });
  if (rows.copied) torch::stable::copy_(x, rows.tensor);
}

STABLE_TORCH_LIBRARY_IMPL(OCVTP_NAMESPACE, OCVTP_CUDA_KEY, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("bias_gelu_", TORCH_BOX(&bias_gelu_));
}

}  // namespace
}  // namespace ocvtp
