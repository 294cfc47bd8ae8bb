// ocvtp_native's encode parts on the CPU.
#include "encode/norm_tensor.h"

namespace ocvtp {
namespace {

void bias_gelu_(Tensor x, Tensor bias) {
  check_bias_gelu(x, bias, kernel_dtypes);
  if (!x.is_contiguous()) refuse("x", "a dense tensor", "strides " + text_of(x.strides()));
  bias = dense(bias);
  const int64_t width = x.size(x.dim() - 1);
  by_dtype(x, [&](auto kind) {
    using T = decltype(kind);
    const BiasGelu<T> arguments{out<T>(x), data<T>(bias), width};
    run(kernels<T>().bias_gelu, arguments, width ? x.numel() / width : 0, 4 * width);
  });
}

std::string isa_name(std::string wanted) {
  if (!wanted.empty() && !use_isa(wanted.c_str()))
    refuse("wanted", "an instruction set of this CPU and this build", wanted);
  return isa().name;
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("bias_gelu_", TORCH_BOX(&bias_gelu_));
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_name));
}

}  // namespace
}  // namespace ocvtp
