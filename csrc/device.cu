// Every kernel with every dtype and tile that the bindings launch, and nothing of torch: what the
// compile report reads, for chips that nvcc still knows and, through NVRTC, for those it does not.
#include "encode/instances.cuh"
#include "importance/instances.cuh"
#include "selection/instances.cuh"
#include "selection/resolve_instances.cuh"
#include "slots/instances.cuh"
#include "slots/row_instances.cuh"
