// Compiled for dot products on 64-bit Arm (setup.py): most processors since Armv8.2.
#include "conv_int8.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#include <sys/auxv.h>

#include "conv_int8_layers.h"

namespace trtseg::conv_int8 {
namespace {

constexpr int kTogether = 4;  // channels whose products an instruction adds to a sum

// Adds the products of four of eight channels of each pixel of a row: the first four, or the others. A register holds the
// sums of four outputs.
template <int kHalf, int M>
inline void add(int32x4_t (&sum)[kColumns][M], const int8x8_t (&channels)[kColumns], const std::int8_t* weights) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const int8x16_t weight = vld1q_s8(weights + m * 16);
#pragma GCC unroll 4
    for (int x = 0; x < kColumns; ++x) sum[x][m] = vdotq_lane_s32(sum[x][m], weight, channels[x], kHalf);
    asm volatile("" ::: "memory");  // the compiler would load all weights first, and put sums on the stack
  }
}

// The instruction takes signed bytes alone: a byte less 128 is the same bits with another sign, and `start` knows of it.
template <int N>
void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights, const std::int32_t* start,
             std::int32_t* sums) {
  constexpr int M = N * kLanes / 4;
  const std::ptrdiff_t step = src.pixel;
  for (int y = 0; y < kRows; ++y, corner += src.row) {
    const std::int8_t* weight = weights;
    int32x4_t sum[kColumns][M];
#pragma GCC unroll 4
    for (int x = 0; x < kColumns; ++x)
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) sum[x][m] = vld1q_s32(start + m * 4);
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        const Byte* pixel = corner + i * src.row + j * step;
        for (int c = 0; c < src.channels; c += kLanes, pixel += kLanes, weight += N * kLanes * kLanes) {
          int8x8_t channels[kColumns];
#pragma GCC unroll 4
          for (int x = 0; x < kColumns; ++x)
            channels[x] = vreinterpret_s8_u8(veor_u8(vld1_u8(pixel + x * step), vdup_n_u8(128)));
          add<0>(sum, channels, weight);
          add<1>(sum, channels, weight + N * kLanes * kTogether);
        }
      }
#pragma GCC unroll 4
    for (int x = 0; x < kColumns; ++x)
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m, sums += 4) vst1q_s32(sums, sum[x][m]);
  }
}

bool is_supported() { return (getauxval(AT_HWCAP) & 1UL << 20) != 0; }  // HWCAP_ASIMDDP, which older headers lack

}  // namespace

const Layers kAsimddp{"asimddp", kTogether, 128, is_supported, conv3x3, upsample, head, quantise};

}  // namespace trtseg::conv_int8

#else

const trtseg::conv_int8::Layers trtseg::conv_int8::kAsimddp{
    "asimddp", 0, 0, [] { return false; }, nullptr, nullptr, nullptr, nullptr};

#endif
