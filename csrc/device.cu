// Every kernel with every dtype and tile that the bindings launch, without torch: the source of the
// compile report, which nvcc compiles, and NVRTC for architectures that nvcc has dropped.
#include "attention_from_rows/instances.cuh"
#include "gru_cell/instances.cuh"
#include "prune/instances.cuh"
#include "resolve_picks/instances.cuh"
#include "slot_argmax/instances.cuh"
#include "slot_attention/instances.cuh"
