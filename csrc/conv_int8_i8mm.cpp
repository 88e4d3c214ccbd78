// Compiled for products of matrices of bytes on 64-bit Arm (setup.py): server processors since Armv8.6, among others.
#include "conv_int8.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#include <sys/auxv.h>

#include "conv_int8_layers.h"

namespace trtseg::conv_int8 {
namespace {

constexpr int kPairs = kColumns / 2;

// A register holds eight channels of two pixels, or of two outputs, or the sums of both outputs for one pixel and for the
// next: one instruction adds the products of all.
template <int N>
void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights, const std::int32_t* start,
             std::int32_t* sums) {
  constexpr int M = N * kLanes / 2;
  const std::ptrdiff_t step = src.pixel;
  for (int y = 0; y < kRows; ++y, corner += src.row) {
    const std::int8_t* weight = weights;
    int32x4_t sum[kPairs][M];
#pragma GCC unroll 2
    for (int x = 0; x < kPairs; ++x)
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) sum[x][m] = vcombine_s32(vld1_s32(start + m * 2), vld1_s32(start + m * 2));
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        const Byte* pixel = corner + i * src.row + j * step;
        for (int c = 0; c < src.channels; c += kLanes, pixel += kLanes) {
          const uint8x16_t left = vcombine_u8(vld1_u8(pixel), vld1_u8(pixel + step));
          const uint8x16_t right = vcombine_u8(vld1_u8(pixel + 2 * step), vld1_u8(pixel + 3 * step));
#pragma GCC unroll 12
          for (int m = 0; m < M; ++m, weight += 2 * kLanes) {
            const int8x16_t both = vld1q_s8(weight);
            sum[0][m] = vusmmlaq_s32(sum[0][m], left, both);
            sum[1][m] = vusmmlaq_s32(sum[1][m], right, both);
            asm volatile("" ::: "memory");  // the compiler would load all weights first, and put sums on the stack
          }
        }
      }
#pragma GCC unroll 2
    for (int x = 0; x < kPairs; ++x, sums += 2 * N * kLanes)
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        vst1_s32(sums + m * 2, vget_low_s32(sum[x][m]));
        vst1_s32(sums + N * kLanes + m * 2, vget_high_s32(sum[x][m]));
      }
  }
}

bool is_supported() { return (getauxval(AT_HWCAP2) & 1UL << 13) != 0; }  // HWCAP2_I8MM, which older headers lack

}  // namespace

const Layers kI8mm{"i8mm", kLanes, 0, is_supported, conv3x3, upsample, head, quantise};

}  // namespace trtseg::conv_int8

#else

const trtseg::conv_int8::Layers trtseg::conv_int8::kI8mm{
    "i8mm", 0, 0, [] { return false; }, nullptr, nullptr, nullptr, nullptr};

#endif
