// Every kernel of the GRU gates that the binding launches, for the compile report.
#pragma once

#include "gru_gates.cuh"

#define OCVTP_GRU(T, State)                                          \
  template __global__ void ocvtp::gru_gates_kernel<T, State, false>( \
      ocvtp::GruArguments<T, State>);                                \
  template __global__ void ocvtp::gru_gates_kernel<T, State, true>(ocvtp::GruArguments<T, State>);

OCVTP_GRU(float, float)
OCVTP_GRU(ocvtp::half, ocvtp::half)
OCVTP_GRU(ocvtp::half, float)
#if OCVTP_BF16
OCVTP_GRU(ocvtp::bfloat16, ocvtp::bfloat16)
OCVTP_GRU(ocvtp::bfloat16, float)
#endif

#undef OCVTP_GRU
