// Compiled for AVX2 on x86-64 (setup.py).
#include "conv_int8.h"

#if defined(__AVX2__)
#include <immintrin.h>

#include "conv_int8_layers.h"

namespace trtseg::conv_int8 {
namespace {

// Sixteen bits for each byte at an even place, or at an odd one: products of bytes summed in sixteen bits overflow.
struct Halves {
  __m256i even, odd;
};

inline Halves halves(const std::int8_t* weights) {
  const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
  return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
}

// Eight channels of a pixel, for each of the four outputs of a register.
inline Halves eight(const Byte* pixel) {
  const __m256i a = _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel)));
  return {_mm256_and_si256(a, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16(a, 8)};
}

inline __m256i added(__m256i sum, Halves a, Halves w) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a.even, w.even));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a.odd, w.odd));
}

// Eight outputs of a row of pixels. A register holds the sums of four, two for each, of the first four of eight channels
// and of the others.
inline void product_row(const Byte* corner, const Map& src, int size, const std::int8_t* weights, int apart,
                        const std::int32_t* start, std::int32_t* sums, int sums_apart) {
  __m256i sum[kColumns][2];
  for (auto& pixel : sum) pixel[0] = pixel[1] = _mm256_setzero_si256();
  for (int i = 0; i < size; ++i, corner += src.row)
    for (int j = 0; j < size; ++j)
      for (int c = 0; c < src.channels; c += kLanes, weights += apart) {
        const Halves low = halves(weights), high = halves(weights + kLanes * kLanes / 2);
        const Byte* pixel = corner + j * src.pixel + c;
#pragma GCC unroll 4
        for (int x = 0; x < kColumns; ++x, pixel += src.pixel) {
          const Halves a = eight(pixel);
          sum[x][0] = added(sum[x][0], a, low);
          sum[x][1] = added(sum[x][1], a, high);
        }
      }
  for (int x = 0; x < kColumns; ++x, sums += sums_apart) {
    const __m256i both = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[x][0], sum[x][1]), 0xD8);
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start));
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), _mm256_add_epi32(both, first));
  }
}

template <int N>
void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights, const std::int32_t* start,
             std::int32_t* sums) {
  for (int y = 0; y < kRows; ++y)
    for (int n = 0; n < N; ++n) {
      product_row(corner + y * src.row, src, size, weights + n * kLanes * kLanes, N * kLanes * kLanes, start + n * kLanes,
                  sums + (y * kColumns * N + n) * kLanes, N * kLanes);
    }
}

bool is_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Layers kAvx2{"avx2", kLanes, 0, is_supported, conv3x3, upsample, head, quantise};

}  // namespace trtseg::conv_int8

#else

const trtseg::conv_int8::Layers trtseg::conv_int8::kAvx2{
    "avx2", 0, 0, [] { return false; }, nullptr, nullptr, nullptr, nullptr};

#endif
