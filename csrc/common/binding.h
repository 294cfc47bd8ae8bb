// What the CPU bindings share: dtypes, torch's threads, ATen's products.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/blocks.h"
#include "common/checks.h"
#include "common/kernel.h"
#include "common/tensors.h"

namespace ocvtp {

inline constexpr Dtypes kernel_dtypes{ScalarType::Float, ScalarType::Double};
// Ops beside products take bfloat16 too.
inline constexpr Dtypes pipeline_dtypes{ScalarType::BFloat16, ScalarType::Float,
                                        ScalarType::Double};

// Runs body(float{}) or body(double{}) by the tensor's dtype.
template <class Body>
auto by_dtype(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::Float) return body(float{});
  if (tensor.scalar_type() == ScalarType::Double) return body(double{});
  throw std::invalid_argument("ocvtp_native on the CPU takes float32 and float64");
}

// The same, or body(BFloat16{}): one of `pipeline_dtypes`.
template <class Body>
auto by_pipeline_dtype(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return body(BFloat16{});
  return by_dtype(tensor, body);
}

// The same, or body(Float16{}).
template <class Body>
auto by_floating_dtype(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::Half) return body(Float16{});
  return by_pipeline_dtype(tensor, body);
}

// Checks the values of dense ids, which the CPU can read without a synchronization.
inline void require_ids(const char* name, const Tensor& ids, int64_t num_tokens) {
  const int64_t* id = data<int64_t>(ids);
  const int64_t* const end = id + ids.numel();
  for (; id < end; ++id)
    if (*id < 0 || *id >= num_tokens)
      refuse(name, "ids of tokens, 0 to " + std::to_string(num_tokens - 1), std::to_string(*id));
}

// Elements below which another thread costs more than it saves.
inline constexpr int64_t grain_elements = 16384;

// Divides `count` parts of about `elements` elements each among the threads.
template <class Kernel, class Arguments>
void run(const Kernel& kernel, const Arguments& arguments, int64_t count, int64_t elements) {
  if (count == 0) return;
  const int64_t grain = std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

// For ops whose steps depend on each other: body(image) does the steps of an image, each by
// `run_step`. Threads take images of about `elements` elements, or, where there are fewer images
// than threads, split each step.
template <class Body>
void each_image(int64_t batch, int64_t elements, const Body& body) {
  const auto images = [](const Body& each, int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) each(image);
  };
  if (batch < static_cast<int64_t>(torch::stable::get_num_threads()))
    images(body, 0, batch);
  else
    run(images, body, batch, elements);
}

// As `run`, on the parts of one image; nested in a thread of `each_image` it stays in that thread.
template <class Kernel, class Arguments>
void run_step(const Kernel& kernel, const Arguments& arguments, int64_t image, int64_t count,
              int64_t elements) {
  const int64_t first = image * count;
  run([&](const Arguments& a, int64_t begin,
          int64_t end) { kernel(a, first + begin, first + end); },
      arguments, count, elements);
}

// Rows of a tensor [B, N, width] with unit stride.
template <class T>
Rows<T> rows(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

// [B, n, m] x [B, m, l] -> [B, n, l], dense.
inline Tensor product(const Tensor& left, const Tensor& right) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(left),
                                    torch::stable::detail::from(right)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "", stack.data(), TORCH_ABI_VERSION));
  return dense(torch::stable::detail::to<Tensor>(stack[0]));
}

// The same tensor in another dtype, which it may be in already.
inline Tensor in_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

inline Tensor upcast(const Tensor& tensor) {
  return in_dtype(tensor, acc_dtype(tensor.scalar_type()));
}

// In the dtype of sums, and dense.
inline Tensor upcast_dense(const Tensor& tensor) { return dense(upcast(tensor)); }

inline std::optional<Tensor> upcast_dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(upcast_dense(*tensor)) : std::nullopt;
}

inline Tensor transposed(const Tensor& tensor) { return torch::stable::transpose(tensor, 1, 2); }

}  // namespace ocvtp
