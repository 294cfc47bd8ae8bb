// What the CUDA bindings share: launches on the current stream, dtypes, rows of strided tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/device.cuh"
#include "common/library.h"
#include "common/tensors.h"

#ifdef OCVTP_EMULATED
#include "tests/emulated_cuda.h"
#else
#include <cuda_runtime.h>
#endif

namespace ocvtp {

#ifndef OCVTP_EMULATED
using torch::stable::accelerator::DeviceGuard;
#endif

// Launches kernels on the device of a tensor, which it makes the current one, on its current
// stream.
class Launcher {
 public:
  explicit Launcher(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64 blocks, int threads, int shared_bytes,
                  Arguments... arguments) const {
    if (blocks == 0) return;
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "ocvtp_native: ", blocks,
                    " blocks are more than one launch takes");
    // More than this needs a request.
    if (shared_bytes > 48 * 1024)
      STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          shared_bytes));
    const dim3 grid(static_cast<unsigned>(blocks));
#ifdef OCVTP_EMULATED
    emulate(grid, threads, shared_bytes, [&] { kernel(arguments...); });
#else
    kernel<<<grid, threads, shared_bytes, stream_>>>(arguments...);
#endif
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceIndex device_;
  DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

#if OCVTP_BF16
inline constexpr Dtypes kernel_dtypes{ScalarType::Float, ScalarType::Half, ScalarType::BFloat16};
#else
inline constexpr Dtypes kernel_dtypes{ScalarType::Float, ScalarType::Half};
#endif

// Runs body(float{}), body(half{}) or body(bfloat16{}) by the tensor's dtype.
template <class Body>
auto by_cuda_dtype(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Half:
      return body(half{});
#if OCVTP_BF16
    case ScalarType::BFloat16:
      return body(bfloat16{});
#endif
    default:
      break;
  }
  throw std::invalid_argument("ocvtp_native on CUDA takes float32, float16 and bfloat16");
}

inline Tensor empty_sized(const Tensor& sized, ScalarType dtype) {
  return torch::stable::new_empty(sized, sized.sizes(), dtype);
}

inline bool divides(int64 unit, std::initializer_list<int64> values) {
  for (int64 value : values)
    if (value % unit != 0) return false;
  return true;
}

inline int64 address(const Tensor& tensor) {
  return static_cast<int64>(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()));
}

inline int int_size(const Tensor& tensor, int64 dim) {
  const int64 size = tensor.size(dim);
  STD_TORCH_CHECK(size <= std::numeric_limits<int>::max() / 4, "ocvtp_native: a size of ", size);
  return static_cast<int>(size);
}

}  // namespace ocvtp
