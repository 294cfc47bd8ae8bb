// Every kernel of the slots' rows that a binding launches, for the compile report.
#pragma once

#include "gru_gates.cuh"
#include "norm_slots.cuh"

#define OCVTP_GRU(T, Old, State, NORM)                                   \
  template __global__ void ocvtp::gru_gates_kernel<T, Old, State, NORM>( \
      ocvtp::GruArguments<T, Old, State>);
#define OCVTP_START(T, V)                                                                          \
  template __global__ void ocvtp::start_kernel<T, V>(const T*, T*, ocvtp::RowLayout, ocvtp::int64, \
                                                     const T*, const T*, T*,                       \
                                                     ocvtp::SlotStatistics*, int, float);
#define OCVTP_NORM_SLOTS(T)                                                                      \
  template __global__ void ocvtp::norm_slots_kernel<T>(const float*, const T*, const T*, float*, \
                                                       T*, ocvtp::SlotStatistics*, ocvtp::int64, \
                                                       ocvtp::int64, int, float);
#define OCVTP_SLOT_ROWS(T, V)       \
  OCVTP_GRU(T, T, T, false)         \
  OCVTP_GRU(T, float, float, false) \
  OCVTP_GRU(T, T, float, true)      \
  OCVTP_GRU(T, float, float, true)  \
  OCVTP_START(T, 1)                 \
  OCVTP_START(T, V)                 \
  OCVTP_NORM_SLOTS(T)

OCVTP_GRU(float, float, float, false)
OCVTP_GRU(float, float, float, true)
OCVTP_START(float, 1)
OCVTP_START(float, 4)
OCVTP_NORM_SLOTS(float)
OCVTP_SLOT_ROWS(ocvtp::half, 8)
#if OCVTP_BF16
OCVTP_SLOT_ROWS(ocvtp::bfloat16, 8)
#endif

#undef OCVTP_SLOT_ROWS
#undef OCVTP_NORM_SLOTS
#undef OCVTP_START
#undef OCVTP_GRU
