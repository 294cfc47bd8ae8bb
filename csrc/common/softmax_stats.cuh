// The softmax statistics of tokens over more slots than a tile holds.
#pragma once

#include "common/slot_logits.cuh"

namespace ocvtp {

// The statistics of each token over all slots, [B, N]. A block takes a tile of tokens and all
// slots.
template <class T, int SLOTS>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    softmax_stats_kernel(const SlotLogitsArgs<T> args, SoftmaxStats* stats) {
  using Shape = LogitsShape<T, SLOTS>;
  OCVTP_SHARED(float, logits);
  float* const scratch = logits + Shape::kLogits;
  float* const bias = scratch + Shape::kScratch;
  T* const stage = reinterpret_cast<T*>(bias + Shape::kBias);
  const int tiles = ceil_div(args.num_tokens, kTokens);
  const int image = static_cast<int>(blockIdx.x / tiles);
  const int first_token = static_cast<int>(blockIdx.x % tiles) * kTokens;
  SoftmaxStats total = {-infinity(), 0.0f};
  for (int first_slot = 0; first_slot < args.num_slots; first_slot += SLOTS) {
    __syncthreads();
    load_bias<T, SLOTS>(args, image, first_slot, bias);
    dot_products<T, SLOTS>(args, image, first_slot, first_token, logits, stage);
    make_logits<SLOTS>(bias, args.scale, logits);
    total = combine(total, tile_stats<SLOTS>(logits, reinterpret_cast<float*>(stage), scratch));
  }
  const int token = first_token + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kTokens && token < args.num_tokens)
    stats[static_cast<int64>(image) * args.num_tokens + token] = total;
}

}  // namespace ocvtp
