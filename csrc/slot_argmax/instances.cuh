// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "slot_argmax/slot_argmax.cuh"

namespace ocvtp {

template __global__ void best_kernel<128>(const uint64*, int64, int, int, int, int, uint64*, int64*,
                                          float*);
template __global__ void argmax_kernel<half, 64, false>(Competition<half>, const Standing*,
                                                        const uint64*, uint64*, float*);
template __global__ void argmax_kernel<half, 128, false>(Competition<half>, const Standing*,
                                                         const uint64*, uint64*, float*);
template __global__ void argmax_kernel<half, 128, true>(Competition<half>, const Standing*,
                                                        const uint64*, uint64*, float*);
template __global__ void argmax_kernel<float, 64, false>(Competition<float>, const Standing*,
                                                         const uint64*, uint64*, float*);
template __global__ void argmax_kernel<float, 128, false>(Competition<float>, const Standing*,
                                                          const uint64*, uint64*, float*);
template __global__ void argmax_kernel<float, 128, true>(Competition<float>, const Standing*,
                                                         const uint64*, uint64*, float*);

#if OCVTP_BF16
template __global__ void argmax_kernel<bfloat16, 64, false>(Competition<bfloat16>, const Standing*,
                                                            const uint64*, uint64*, float*);
template __global__ void argmax_kernel<bfloat16, 128, false>(Competition<bfloat16>, const Standing*,
                                                             const uint64*, uint64*, float*);
template __global__ void argmax_kernel<bfloat16, 128, true>(Competition<bfloat16>, const Standing*,
                                                            const uint64*, uint64*, float*);
#endif

}  // namespace ocvtp
