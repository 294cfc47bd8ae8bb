// Every kernel of this op that the binding launches, for the compile report.
#pragma once

#include "gru_cell/gru_gates.cuh"

#define OCVTP_GRU(T, Old, State, NORM)                                   \
  template __global__ void ocvtp::gru_gates_kernel<T, Old, State, NORM>( \
      ocvtp::GruArguments<T, Old, State>);
#define OCVTP_GRU_OF_HALF(T)        \
  OCVTP_GRU(T, T, T, false)         \
  OCVTP_GRU(T, float, float, false) \
  OCVTP_GRU(T, T, float, true)      \
  OCVTP_GRU(T, float, float, true)

OCVTP_GRU(float, float, float, false)
OCVTP_GRU(float, float, float, true)
OCVTP_GRU_OF_HALF(ocvtp::half)
#if OCVTP_BF16
OCVTP_GRU_OF_HALF(ocvtp::bfloat16)
#endif

#undef OCVTP_GRU_OF_HALF
#undef OCVTP_GRU
