// Every kernel of this folder that a binding launches, for the compile report.
#pragma once

#include "prune/bias_gelu.cuh"
#include "prune/layer_norm.cuh"
#include "prune/norm_slots.cuh"

#define OCVTP_ROWS(T, V)                                                                           \
  template __global__ void ocvtp::layer_norm_kernel<T, V>(const T*, T*, ocvtp::RowLayout, int,     \
                                                          float);                                  \
  template __global__ void ocvtp::bias_gelu_kernel<T, V>(T*, const T*, ocvtp::RowLayout, int);     \
  template __global__ void ocvtp::start_kernel<T, V>(const T*, T*, ocvtp::RowLayout, ocvtp::int64, \
                                                     const T*, const T*, T*,                       \
                                                     ocvtp::SlotStatistics*, int, float);
#define OCVTP_PRUNE(T, V)                                                                        \
  OCVTP_ROWS(T, 1)                                                                               \
  OCVTP_ROWS(T, V)                                                                               \
  template __global__ void ocvtp::norm_slots_kernel<T>(const float*, const T*, const T*, float*, \
                                                       T*, ocvtp::SlotStatistics*, ocvtp::int64, \
                                                       ocvtp::int64, int, float);

OCVTP_PRUNE(float, 4)
OCVTP_PRUNE(ocvtp::half, 8)
#if OCVTP_BF16
OCVTP_PRUNE(ocvtp::bfloat16, 8)
#endif

#undef OCVTP_PRUNE
#undef OCVTP_ROWS
