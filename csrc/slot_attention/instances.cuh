// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "common/softmax_stats.cuh"
#include "slot_attention/slot_attention.cuh"

#define OCVTP_SLOT_ATTENTION(T, SLOTS, GIVEN_STATS)                                                \
  template __global__ void ocvtp::slot_attention_kernel<T, SLOTS, GIVEN_STATS, false>(             \
      ocvtp::SlotLogitsArgs<T>, ocvtp::Rows<T>, int, ocvtp::SplitPlan, const ocvtp::SoftmaxStats*, \
      ocvtp::SlotAttentionOutputs<T>);                                                             \
  template __global__ void ocvtp::slot_attention_kernel<T, SLOTS, GIVEN_STATS, true>(              \
      ocvtp::SlotLogitsArgs<T>, ocvtp::Rows<T>, int, ocvtp::SplitPlan, const ocvtp::SoftmaxStats*, \
      ocvtp::SlotAttentionOutputs<T>);

#define OCVTP_SLOTS(T)                                                                         \
  template __global__ void ocvtp::softmax_stats_kernel<T, 128>(ocvtp::SlotLogitsArgs<T>,       \
                                                               ocvtp::SoftmaxStats*);          \
  OCVTP_SLOT_ATTENTION(T, 64, false)                                                           \
  OCVTP_SLOT_ATTENTION(T, 128, false)                                                          \
  OCVTP_SLOT_ATTENTION(T, 128, true)                                                           \
  template __global__ void ocvtp::mean_kernel<T>(const float*, const float*, ocvtp::SplitPlan, \
                                                 int, int, int, int, float, T*, float*);

OCVTP_SLOTS(float)
OCVTP_SLOTS(ocvtp::half)
#if OCVTP_BF16
OCVTP_SLOTS(ocvtp::bfloat16)
#endif

#undef OCVTP_SLOTS
#undef OCVTP_SLOT_ATTENTION
