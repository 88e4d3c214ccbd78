// Host memory copied, rounded and cleared by several threads. One core copies some 10 GB/s, less than a GPU takes in.
// The threads also share the page faults of new memory, which each page costs at its first write.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "parallel.h"

namespace trtseg {

// Calls fn(first, count) for the pieces of an array of `size` bytes, or of as many elements.
template <typename Fn>
void in_pieces(std::size_t size, int threads, Fn fn) {
  constexpr std::size_t kPiece = 1 << 20;
  const auto pieces = static_cast<std::int64_t>((size + kPiece - 1) / kPiece);
  parallel_for(pieces, threads, static_cast<std::int64_t>(size), [&](std::int64_t piece) {
    const std::size_t first = static_cast<std::size_t>(piece) * kPiece;
    fn(first, std::min(kPiece, size - first));
  });
}

inline void host_copy(void* dst, const void* src, std::size_t bytes, int threads) {
  in_pieces(bytes, threads, [&](std::size_t first, std::size_t count) {
    std::memcpy(static_cast<char*>(dst) + first, static_cast<const char*>(src) + first, count);
  });
}

// FP32 to FP16, as the ops round; in ops_cpu.cpp.
void host_to_half(std::uint16_t* dst, const float* src, std::size_t count, int threads);

inline void host_clear(void* dst, std::size_t bytes, int threads) {
  in_pieces(bytes, threads, [&](std::size_t first, std::size_t count) {
    std::memset(static_cast<char*>(dst) + first, 0, count);
  });
}

}  // namespace trtseg
