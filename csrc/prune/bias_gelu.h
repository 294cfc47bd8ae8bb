// The bias and the exact GELU after the product of a Linear, in one pass.
#pragma once

#include "common/maths.h"

namespace ocvtp {

// Part: rows. x = gelu(x + bias).
template <class T>
struct BiasGelu {
  T* x;  // [rows, width]
  const T* bias;
  int64_t width;
};

}  // namespace ocvtp

namespace ocvtp::OCVTP_ISA {

template <class T>
void bias_gelu(const BiasGelu<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* x = a.x + row * a.width;
    for_each_vector<T>(a.width, [&](int64_t at, int64_t lanes) {
      const Vector<T> sum = load_lanes(x + at, lanes) + load_lanes(a.bias + at, lanes);
      store_lanes<T>(x + at, gelu<T>(sum), lanes);
    });
  }
}

}  // namespace ocvtp::OCVTP_ISA

OCVTP_KERNEL(bias_gelu, BiasGelu)
