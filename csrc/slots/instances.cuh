// Every kernel of this stage that the bindings launch, for the compile report.
#pragma once

#include "slot_attention.cuh"

namespace ocvtp {

template __global__ void standings_kernel<half, 128>(Competition<half>, Standing*);
template __global__ void standings_kernel<float, 128>(Competition<float>, Standing*);
template __global__ void compete_kernel<half, 64, false>(Competition<half>, Rows<half>, int, Cut,
                                                         const Standing*, float*, float*, half*);
template __global__ void compete_kernel<half, 128, false>(Competition<half>, Rows<half>, int, Cut,
                                                          const Standing*, float*, float*, half*);
template __global__ void compete_kernel<half, 128, true>(Competition<half>, Rows<half>, int, Cut,
                                                         const Standing*, float*, float*, half*);
template __global__ void compete_kernel<float, 64, false>(Competition<float>, Rows<float>, int, Cut,
                                                          const Standing*, float*, float*, float*);
template __global__ void compete_kernel<float, 128, false>(Competition<float>, Rows<float>, int,
                                                           Cut, const Standing*, float*, float*,
                                                           float*);
template __global__ void compete_kernel<float, 128, true>(Competition<float>, Rows<float>, int, Cut,
                                                          const Standing*, float*, float*, float*);
template __global__ void mean_kernel<half>(const float*, const float*, Cut, int, int, int, int,
                                           float, half*, float*);
template __global__ void mean_kernel<float>(const float*, const float*, Cut, int, int, int, int,
                                            float, float*, float*);

#if OCVTP_BF16
template __global__ void standings_kernel<bfloat16, 128>(Competition<bfloat16>, Standing*);
template __global__ void compete_kernel<bfloat16, 64, false>(Competition<bfloat16>, Rows<bfloat16>,
                                                             int, Cut, const Standing*, float*,
                                                             float*, bfloat16*);
template __global__ void compete_kernel<bfloat16, 128, false>(Competition<bfloat16>, Rows<bfloat16>,
                                                              int, Cut, const Standing*, float*,
                                                              float*, bfloat16*);
template __global__ void compete_kernel<bfloat16, 128, true>(Competition<bfloat16>, Rows<bfloat16>,
                                                             int, Cut, const Standing*, float*,
                                                             float*, bfloat16*);
template __global__ void mean_kernel<bfloat16>(const float*, const float*, Cut, int, int, int, int,
                                               float, bfloat16*, float*);
#endif

}  // namespace ocvtp
