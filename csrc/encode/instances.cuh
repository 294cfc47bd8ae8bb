// Every kernel of this stage that a binding launches, for the compile report.
#pragma once

#include "bias_gelu.cuh"

#define OCVTP_NORM(T, V)                                                                       \
  template __global__ void ocvtp::layer_norm_kernel<T, V>(const T*, T*, ocvtp::RowLayout, int, \
                                                          float);                              \
  template __global__ void ocvtp::bias_gelu_kernel<T, V>(T*, const T*, ocvtp::RowLayout, int);

OCVTP_NORM(float, 1)
OCVTP_NORM(float, 4)
OCVTP_NORM(ocvtp::half, 1)
OCVTP_NORM(ocvtp::half, 8)
#if OCVTP_BF16
OCVTP_NORM(ocvtp::bfloat16, 1)
OCVTP_NORM(ocvtp::bfloat16, 8)
#endif

#undef OCVTP_NORM
