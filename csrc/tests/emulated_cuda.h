// What the CUDA bindings call of the CUDA runtime and of torch's streams, where the emulator is the
// device. Tensors are on the CPU, and a launch returns when its kernel has run.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

// torch's own asks a CUDA build of torch for the error's name.
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) \
  STD_TORCH_CHECK((call) == cudaSuccess, "the emulated device refuses " #call)

namespace ocvtp {

// What every supported architecture grants a block: as sm_75.
constexpr int kEmulatedSharedBytes = 64 * 1024;

// So few that one small image leaves some idle and four do not: bindings that split the work by
// this number do it in both ways.
constexpr int kEmulatedMultiprocessors = 4;

constexpr int kEmulatedCapability = 8;

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? kEmulatedMultiprocessors : kEmulatedCapability;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int shared_bytes) {
  return shared_bytes <= kEmulatedSharedBytes ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t, void** stream) {
  *stream = nullptr;
  return TORCH_SUCCESS;
}

// torch's wants an accelerator.
struct DeviceGuard {
  explicit DeviceGuard(torch::stable::accelerator::DeviceIndex) {}
};

}  // namespace ocvtp
