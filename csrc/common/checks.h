// Checks of arguments, for the bindings of every device. They read shapes, dtypes and devices,
// never values, so that none synchronizes. What they throw is ValueError in Python with every
// torch, where STD_TORCH_CHECK's is RuntimeError.
#pragma once

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/tensors.h"

namespace ocvtp {

using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

// A size that is the argument's own.
inline constexpr int64_t any = -1;

// A set of dtypes.
class Dtypes {
 public:
  constexpr Dtypes(ScalarType one) : bits_(bit(one)) {}
  constexpr Dtypes(std::initializer_list<ScalarType> some) {
    for (ScalarType each : some) bits_ |= bit(each);
  }
  static constexpr Dtypes all() { return Dtypes(~uint64_t{0}); }

  constexpr bool has(ScalarType dtype) const { return bits_ & bit(dtype); }

  std::string names() const {
    std::string text;
    for (int i = 0; bits_ != all().bits_ && i < 64; ++i)
      if (const auto each = static_cast<ScalarType>(i); has(each))
        text += (text.empty() ? " " : " or ") + name(each);
    return text;
  }

  // As Python has it.
  static std::string name(ScalarType dtype) {
    switch (dtype) {
      case ScalarType::Half:
        return "float16";
      case ScalarType::BFloat16:
        return "bfloat16";
      case ScalarType::Float:
        return "float32";
      case ScalarType::Double:
        return "float64";
      case ScalarType::Int:
        return "int32";
      case ScalarType::Long:
        return "int64";
      case ScalarType::Bool:
        return "bool";
      default:
        return torch::headeronly::toString(dtype);
    }
  }

 private:
  constexpr explicit Dtypes(uint64_t bits) : bits_(bits) {}
  static constexpr uint64_t bit(ScalarType dtype) { return uint64_t{1} << static_cast<int>(dtype); }

  uint64_t bits_ = 0;
};

inline constexpr Dtypes floating{ScalarType::Half, ScalarType::BFloat16, ScalarType::Float,
                                 ScalarType::Double};

// The dtype of sums: float64 for float64, else float32.
inline ScalarType acc_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? dtype : ScalarType::Float;
}

// Errors are made out of line, so that checks stay short where they are inlined.
#define OCVTP_COLD [[noreturn]] __attribute__((noinline, cold)) inline

OCVTP_COLD void refuse(const std::string& name, const std::string& expected,
                       const std::string& got) {
  throw std::invalid_argument(name + ": expected " + expected + ", got " + got);
}

inline std::string text_of(Shape sizes) {
  std::string text;
  for (int64_t size : sizes)
    text += (text.empty() ? "" : ", ") + (size == any ? "any" : std::to_string(size));
  return "[" + text + "]";
}

inline std::string text_of(const Tensor& tensor) {
  return text_of(tensor.sizes()) + " " + Dtypes::name(tensor.scalar_type());
}

inline std::string device_of(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

OCVTP_COLD void refuse_shape(const char* name, const Tensor& tensor, Shape sizes, Dtypes dtypes) {
  refuse(name, text_of(sizes) + dtypes.names(), text_of(tensor));
}

OCVTP_COLD void refuse_device(const char* name, const Tensor& tensor, const Tensor& first) {
  refuse(name, "a tensor on " + device_of(first), "one on " + device_of(tensor));
}

OCVTP_COLD void refuse_range(const char* name, int64_t value, int64_t min, int64_t max) {
  refuse(name, std::to_string(min) + " to " + std::to_string(max), std::to_string(value));
}

// `tensor` has these sizes, one of these dtypes and the device of `first`, an argument too.
inline void require(const char* name, const Tensor& tensor, Shape sizes, Dtypes dtypes,
                    const Tensor& first) {
  const Shape own = tensor.sizes();
  bool fits = own.size() == sizes.size() && dtypes.has(tensor.scalar_type());
  for (std::size_t i = 0; fits && i < sizes.size(); ++i)
    fits = sizes[i] == any || sizes[i] == own[i];
  if (!fits) refuse_shape(name, tensor, sizes, dtypes);
  if (tensor.is_cuda() != first.is_cuda() || tensor.get_device_index() != first.get_device_index())
    refuse_device(name, tensor, first);
}

inline void require(const char* name, const std::optional<Tensor>& tensor, Shape sizes,
                    Dtypes dtypes, const Tensor& first) {
  if (tensor) require(name, *tensor, sizes, dtypes, first);
}

// Rows [..., width] of any width.
inline void require_rows(const char* name, const Tensor& tensor, Dtypes dtypes) {
  if (tensor.dim() < 1 || !dtypes.has(tensor.scalar_type()))
    refuse(name, "[..., any]" + dtypes.names(), text_of(tensor));
}

// The sizes of rows [..., width], with other widths, or none, in the place of width.
inline std::vector<int64_t> leading(const Tensor& rows, std::initializer_list<int64_t> widths) {
  const Shape sizes = rows.sizes();
  std::vector<int64_t> found(sizes.begin(), sizes.end() - 1);
  found.insert(found.end(), widths);
  return found;
}

inline void require_range(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value < min || value > max) refuse_range(name, value, min, max);
}

inline void require_at_least(const char* name, int64_t value, int64_t min) {
  if (value < min) refuse(name, "at least " + std::to_string(min), std::to_string(value));
}

// A matrix [B, N, N].
inline void require_square(const char* name, const Tensor& matrix, Dtypes taken) {
  require(name, matrix, {any, any, any}, taken, matrix);
  require(name, matrix, {any, matrix.size(1), matrix.size(1)}, taken, matrix);
}

// A score a token, called `name`, beside similarity.
inline void check_scored(const Tensor& similarity, const char* name, const Tensor& scores,
                         int64_t budget, Dtypes taken) {
  require_square("similarity", similarity, taken);
  require(name, scores, {similarity.size(0), similarity.size(1)}, similarity.scalar_type(),
          similarity);
  require_range("budget", budget, 0, similarity.size(1));
}

inline void check_queries_and_keys(const Tensor& q, const Tensor& k, Dtypes taken) {
  require("q", q, {any, any, any}, taken, q);
  require("k", k, {q.size(0), any, q.size(2)}, q.scalar_type(), q);
}

}  // namespace ocvtp
