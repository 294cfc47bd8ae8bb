// The first pass over more slots than a tile holds.
#pragma once

#include "common/slot_logits.cuh"

namespace ocvtp {

// Each token's standing over all slots, [B, N]: a block takes a tile of tokens and all slots.
template <class T, int SLOTS>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    standings_kernel(const Competition<T> c, Standing* standings) {
  using Shape = LogitsShape<T, SLOTS>;
  OCVTP_SHARED(float, logits);
  float* const scratch = logits + Shape::kLogits;
  float* const bias = scratch + Shape::kScratch;
  T* const stage = reinterpret_cast<T*>(bias + Shape::kBias);
  const int tiles = ceil_div(c.num_tokens, kTokens);
  const int image = static_cast<int>(blockIdx.x / tiles);
  const int first_token = static_cast<int>(blockIdx.x % tiles) * kTokens;
  Standing whole = {-infinity(), 0.0f};
  for (int first_slot = 0; first_slot < c.num_slots; first_slot += SLOTS) {
    __syncthreads();
    load_bias<T, SLOTS>(c, image, first_slot, bias);
    dot_products<T, SLOTS>(c, image, first_slot, first_token, logits, stage);
    make_logits<SLOTS>(bias, c.scale, logits);
    whole = join(whole, standing<SLOTS>(logits, reinterpret_cast<float*>(stage), scratch));
  }
  const int token = first_token + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kTokens && token < c.num_tokens)
    standings[static_cast<int64>(image) * c.num_tokens + token] = whole;
}

}  // namespace ocvtp
