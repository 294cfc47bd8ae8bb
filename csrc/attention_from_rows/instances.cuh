// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "attention_from_rows/attention_from_rows.cuh"

#define OCVTP_RECEIVED(T)                                               \
  template __global__ void ocvtp::attention_from_rows_kernel<false, T>( \
      ocvtp::ReceivedArguments<T>);                                     \
  template __global__ void ocvtp::attention_from_rows_kernel<true, T>(  \
      ocvtp::ReceivedArguments<T>);                                     \
  template __global__ void ocvtp::attention_row_kernel<T>(ocvtp::ReceivedArguments<T>);

OCVTP_RECEIVED(float)
OCVTP_RECEIVED(ocvtp::half)
#if OCVTP_BF16
OCVTP_RECEIVED(ocvtp::bfloat16)
#endif

#undef OCVTP_RECEIVED
