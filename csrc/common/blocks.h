// Blocks of an image's tokens, which kernels of a column of slots take one by one.
#pragma once

#include "common/kernel.h"

namespace ocvtp {

// Tokens in a block: its column of K slots stays in cache.
inline constexpr int64_t token_block = 64;
inline int64_t token_blocks(int64_t tokens) { return (tokens + token_block - 1) / token_block; }

// Room for a row of tokens in whole vectors, of any dtype.
inline int64_t whole_vectors(int64_t tokens) { return (tokens + 15) / 16 * 16; }

namespace OCVTP_ISA {

// Calls body(image, first token, tokens) for each block of tokens in [begin, end).
template <class Body>
inline void for_each_block(int64_t tokens, int64_t begin, int64_t end, const Body& body) {
  const int64_t blocks = token_blocks(tokens);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block % blocks * token_block;
    body(block / blocks, first, tokens - first < token_block ? tokens - first : token_block);
  }
}

}  // namespace OCVTP_ISA
}  // namespace ocvtp
