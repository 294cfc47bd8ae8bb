// Every kernel of this op that a binding launches, for the compile report.
#pragma once

#include "slot_argmax/slot_argmax.cuh"

namespace ocvtp {

template __global__ void best_kernel<128>(const uint64*, int64, int, int, int, int, uint64*, int64*,
                                          float*);
template __global__ void argmax_kernel<half, 64, false>(SlotLogitsArgs<half>, const SoftmaxStats*,
                                                        const uint64*, uint64*, float*);
template __global__ void argmax_kernel<half, 128, false>(SlotLogitsArgs<half>, const SoftmaxStats*,
                                                         const uint64*, uint64*, float*);
template __global__ void argmax_kernel<half, 128, true>(SlotLogitsArgs<half>, const SoftmaxStats*,
                                                        const uint64*, uint64*, float*);
template __global__ void argmax_kernel<float, 64, false>(SlotLogitsArgs<float>, const SoftmaxStats*,
                                                         const uint64*, uint64*, float*);
template __global__ void argmax_kernel<float, 128, false>(SlotLogitsArgs<float>,
                                                          const SoftmaxStats*, const uint64*,
                                                          uint64*, float*);
template __global__ void argmax_kernel<float, 128, true>(SlotLogitsArgs<float>, const SoftmaxStats*,
                                                         const uint64*, uint64*, float*);

#if OCVTP_BF16
template __global__ void argmax_kernel<bfloat16, 64, false>(SlotLogitsArgs<bfloat16>,
                                                            const SoftmaxStats*, const uint64*,
                                                            uint64*, float*);
template __global__ void argmax_kernel<bfloat16, 128, false>(SlotLogitsArgs<bfloat16>,
                                                             const SoftmaxStats*, const uint64*,
                                                             uint64*, float*);
template __global__ void argmax_kernel<bfloat16, 128, true>(SlotLogitsArgs<bfloat16>,
                                                            const SoftmaxStats*, const uint64*,
                                                            uint64*, float*);
#endif

}  // namespace ocvtp
