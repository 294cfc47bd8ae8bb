// Every kernel with every dtype and tile that the bindings launch, and nothing of torch: what the
// compile report reads, for chips that nvcc still knows and, through NVRTC, for those it does not.
#include "attention_received/instances.cuh"
#include "gru_cell/instances.cuh"
#include "prune/instances.cuh"
#include "resolve_picks/instances.cuh"
#include "slot_argmax/instances.cuh"
#include "slot_attention/instances.cuh"
