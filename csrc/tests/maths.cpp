// The functions of common/maths.h, and folds of lanes, by name; compiled once for each instruction
// set, as the kernels are.
#include "common/maths.h"

namespace ocvtp::OCVTP_ISA {

// On `count` elements in whole vectors; a fold is in every lane.
template <class T>
static void apply(const char* name, const T* x, T* out, int64_t count) {
  const auto by_name = [&](const char* other, const auto& function) {
    if (std::strcmp(name, other) != 0) return;
    for (int64_t i = 0; i < count; i += width<T>) store<T>(out + i, function(load(x + i)));
  };
  using V = Vector<T>;
  by_name("exp", [](const V& v) { return exp<T>(v); });
  by_name("decay", [](const V& v) { return decay<T>(v); });
  by_name("log1p", [](const V& v) { return log1p<T>(v); });
  by_name("tanh", [](const V& v) { return tanh<T>(v); });
  by_name("sigmoid", [](const V& v) { return sigmoid<T>(v); });
  by_name("gelu", [](const V& v) { return gelu<T>(v); });
  by_name("sum_lanes", [](const V& v) { return splat(sum_lanes<T>(v)); });
  by_name("max_lanes", [](const V& v) { return splat(max_lanes<T>(v)); });
}

void maths(const char* name, const float* x, float* out, int64_t count) {
  apply(name, x, out, count);
}
void maths(const char* name, const double* x, double* out, int64_t count) {
  apply(name, x, out, count);
}

}  // namespace ocvtp::OCVTP_ISA
