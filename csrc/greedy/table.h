// The greedy selections of one instruction set. They are a file of their own,
// csrc/greedy/table.cpp, which the build compiles without fused multiply-adds.
#pragma once

#include "common/kernels.h"
#include "common/simd.h"

namespace ocvtp::OCVTP_ISA {

template <class T>
struct GreedyTable {
  static const GreedyKernels<T> kernels;
};

}  // namespace ocvtp::OCVTP_ISA
