// Stands in for the intrinsics of 64-bit Arm, so that csrc/conv_int8_*.cpp for Arm run on other processors, also under
// AddressSanitizer and UBSan. Each is what Arm's reference says of it, lane by lane.
#pragma once

#include <sys/auxv.h>

#include <cstdint>
#include <cstring>

typedef std::int8_t int8x8_t __attribute__((vector_size(8)));
typedef std::int8_t int8x16_t __attribute__((vector_size(16)));
typedef std::uint8_t uint8x8_t __attribute__((vector_size(8)));
typedef std::uint8_t uint8x16_t __attribute__((vector_size(16)));
typedef std::uint16_t uint16x4_t __attribute__((vector_size(8)));
typedef std::uint16_t uint16x8_t __attribute__((vector_size(16)));
typedef std::int32_t int32x2_t __attribute__((vector_size(8)));
typedef std::int32_t int32x4_t __attribute__((vector_size(16)));
typedef std::uint32_t uint32x4_t __attribute__((vector_size(16)));

#define getauxval(what) (~0UL)  // what is played here, every processor has

namespace played {

template <class Vector>
inline Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class Whole, class Half>
inline Whole joined(Half low, Half high) {
  Whole v;
  std::memcpy(&v, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&v) + sizeof low, &high, sizeof high);
  return v;
}

template <class Narrow, class Wide>
inline Narrow narrowed(Wide v) {
  return __builtin_convertvector(v, Narrow);
}

}  // namespace played

inline int8x16_t vld1q_s8(const std::int8_t* p) { return played::load<int8x16_t>(p); }
inline uint8x8_t vld1_u8(const std::uint8_t* p) { return played::load<uint8x8_t>(p); }
inline int32x2_t vld1_s32(const std::int32_t* p) { return played::load<int32x2_t>(p); }
inline int32x4_t vld1q_s32(const std::int32_t* p) { return played::load<int32x4_t>(p); }
inline void vst1_s32(std::int32_t* p, int32x2_t v) { std::memcpy(p, &v, sizeof v); }
inline void vst1q_s32(std::int32_t* p, int32x4_t v) { std::memcpy(p, &v, sizeof v); }

inline uint8x8_t vdup_n_u8(std::uint8_t x) { return uint8x8_t{x, x, x, x, x, x, x, x}; }
inline uint8x8_t veor_u8(uint8x8_t a, uint8x8_t b) { return a ^ b; }
inline int8x8_t vreinterpret_s8_u8(uint8x8_t v) { return played::load<int8x8_t>(&v); }
inline uint8x16_t vcombine_u8(uint8x8_t low, uint8x8_t high) { return played::joined<uint8x16_t>(low, high); }
inline uint16x8_t vcombine_u16(uint16x4_t low, uint16x4_t high) { return played::joined<uint16x8_t>(low, high); }
inline int32x4_t vcombine_s32(int32x2_t low, int32x2_t high) { return played::joined<int32x4_t>(low, high); }
inline int32x2_t vget_low_s32(int32x4_t v) { return int32x2_t{v[0], v[1]}; }
inline int32x2_t vget_high_s32(int32x4_t v) { return int32x2_t{v[2], v[3]}; }
inline uint16x4_t vmovn_u32(uint32x4_t v) { return played::narrowed<uint16x4_t>(v); }
inline uint8x8_t vmovn_u16(uint16x8_t v) { return played::narrowed<uint8x8_t>(v); }

// SDOT by element: each sum gets four products of its own bytes with those of one lane.
inline int32x4_t vdotq_lane_s32(int32x4_t sum, int8x16_t a, int8x8_t b, int lane) {
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 4; ++k) sum[i] += a[4 * i + k] * b[4 * lane + k];
  return sum;
}

// USMMLA: a matrix [2][2] of sums gets the products of unsigned rows [2][8] with signed rows [2][8].
inline int32x4_t vusmmlaq_s32(int32x4_t sum, uint8x16_t a, int8x16_t b) {
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 8; ++k) sum[2 * i + j] += a[8 * i + k] * b[8 * j + k];
  return sum;
}
