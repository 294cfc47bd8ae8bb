// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "attention_received/attention_received.cuh"

#define OCVTP_RECEIVED(T)                                                                    \
  template __global__ void ocvtp::attention_received_kernel<T>(ocvtp::ReceivedArguments<T>); \
  template __global__ void ocvtp::attention_row_kernel<T>(ocvtp::ReceivedArguments<T>);

OCVTP_RECEIVED(float)
OCVTP_RECEIVED(ocvtp::half)
#if OCVTP_BF16
OCVTP_RECEIVED(ocvtp::bfloat16)
#endif
template __global__ void ocvtp::sum_parts_kernel<float>(const float*, float*, int, int, float);

#undef OCVTP_RECEIVED
