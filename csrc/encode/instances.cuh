// Every kernel of this stage that a binding launches, for the compile report.
#pragma once

#include "bias_gelu.cuh"

#define OCVTP_NORM(T, V)                                                                       \
  template __global__ void ocvtp::layer_norm_kernel<T, V>(const T*, T*, ocvtp::RowLayout, int, \
                                                          float);                              \
  template __global__ void ocvtp::bias_gelu_kernel<T, V>(T*, const T*, ocvtp::RowLayout, int);
#define OCVTP_ADD_NORM(Wide, T, V)                                   \
  template __global__ void ocvtp::add_layer_norm_kernel<Wide, T, V>( \
      const Wide*, const T*, Wide*, T*, ocvtp::int64, ocvtp::int64, int, float);

OCVTP_NORM(float, 1)
OCVTP_NORM(float, 4)
OCVTP_NORM(ocvtp::half, 1)
OCVTP_NORM(ocvtp::half, 8)
OCVTP_ADD_NORM(float, float, 1)
OCVTP_ADD_NORM(float, float, 4)
OCVTP_ADD_NORM(float, ocvtp::half, 1)
OCVTP_ADD_NORM(float, ocvtp::half, 4)
OCVTP_ADD_NORM(ocvtp::half, ocvtp::half, 1)
OCVTP_ADD_NORM(ocvtp::half, ocvtp::half, 8)
#if OCVTP_BF16
OCVTP_NORM(ocvtp::bfloat16, 1)
OCVTP_NORM(ocvtp::bfloat16, 8)
OCVTP_ADD_NORM(float, ocvtp::bfloat16, 1)
OCVTP_ADD_NORM(float, ocvtp::bfloat16, 4)
OCVTP_ADD_NORM(ocvtp::bfloat16, ocvtp::bfloat16, 1)
OCVTP_ADD_NORM(ocvtp::bfloat16, ocvtp::bfloat16, 8)
#endif

#undef OCVTP_NORM
#undef OCVTP_ADD_NORM
