// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "common/softmax_stats.cuh"
#include "slot_attention/slot_attention.cuh"

#define OCVTP_COMPETE(T, SLOTS, STANDINGS)                                            \
  template __global__ void ocvtp::compete_kernel<T, SLOTS, STANDINGS, false>(         \
      ocvtp::Competition<T>, ocvtp::Rows<T>, int, ocvtp::Cut, const ocvtp::Standing*, \
      ocvtp::CompeteOutputs<T>);                                                      \
  template __global__ void ocvtp::compete_kernel<T, SLOTS, STANDINGS, true>(          \
      ocvtp::Competition<T>, ocvtp::Rows<T>, int, ocvtp::Cut, const ocvtp::Standing*, \
      ocvtp::CompeteOutputs<T>);

#define OCVTP_SLOTS(T)                                                                             \
  template __global__ void ocvtp::standings_kernel<T, 128>(ocvtp::Competition<T>,                  \
                                                           ocvtp::Standing*);                      \
  OCVTP_COMPETE(T, 64, false)                                                                      \
  OCVTP_COMPETE(T, 128, false)                                                                     \
  OCVTP_COMPETE(T, 128, true)                                                                      \
  template __global__ void ocvtp::mean_kernel<T>(const float*, const float*, ocvtp::Cut, int, int, \
                                                 int, int, float, T*, float*);

OCVTP_SLOTS(float)
OCVTP_SLOTS(ocvtp::half)
#if OCVTP_BF16
OCVTP_SLOTS(ocvtp::bfloat16)
#endif

#undef OCVTP_SLOTS
#undef OCVTP_COMPETE
