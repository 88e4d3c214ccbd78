// Compiled for AVX2 with VNNI on x86-64 (setup.py): processors of today that have no AVX-512.
#include "conv_int8.h"

#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#include <cpuid.h>
#include <immintrin.h>

#include "conv_int8_layers.h"

namespace trtseg::conv_int8 {
namespace {

// Registers by name: the compiler keeps an array of them in memory.
struct Three {
  __m256i a, b, c;
};

#if defined(__AVXVNNI__)
#define TRTSEG_DOT "%{vex%} vpdpbusd %2, %1, %0"
#else  // the same instruction of AVX-512, with which tests run this file on more processors
#define TRTSEG_DOT "vpdpbusd %2, %1, %0"
#endif

inline void add(__m256i& sum, __m256i channels, __m256i weight) {
  asm(TRTSEG_DOT : "+x"(sum) : "x"(channels), "x"(weight));  // the compiler would copy the sum
}

// Adds the products of eight channels of a pixel. A register holds the sums of four outputs, two for each, of the first
// four of the channels and of the others.
template <int M>
inline void add(Three& sum, const Byte* pixel, const Three& weight) {
  const __m256i channels = _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel)));
  add(sum.a, channels, weight.a);
  add(sum.b, channels, weight.b);
  if constexpr (M > 2) add(sum.c, channels, weight.c);
}

inline void store(__m256i twice, const std::int32_t* start, std::int32_t* to) {
  const __m256i sum = _mm256_add_epi32(twice, _mm256_srli_epi64(twice, 32));
  const __m256i even = _mm256_permutevar8x32_epi32(sum, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(start));
  _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_add_epi32(_mm256_castsi256_si128(even), first));
}

template <int M>
inline void store(const Three& sum, const std::int32_t* start, std::int32_t* to) {
  store(sum.a, start, to);
  store(sum.b, start + 4, to + 4);
  if constexpr (M > 2) store(sum.c, start + 8, to + 8);
}

// M times four outputs of a row of pixels.
template <int M>
inline void product_row(const Byte* corner, const Map& src, int size, const std::int8_t* weights, int apart,
                        const std::int32_t* start, std::int32_t* sums, int sums_apart) {
  const __m256i zero = _mm256_setzero_si256();
  Three s0{zero, zero, zero}, s1 = s0, s2 = s0, s3 = s0;
  const std::ptrdiff_t step = src.pixel;
  for (int i = 0; i < size; ++i, corner += src.row)
    for (int j = 0; j < size; ++j) {
      const Byte* pixel = corner + j * step;
      for (int c = 0; c < src.channels; c += kLanes, pixel += kLanes, weights += apart) {
        const __m256i* from = reinterpret_cast<const __m256i*>(weights);
        const Three weight{_mm256_load_si256(from), _mm256_load_si256(from + 1), M > 2 ? _mm256_load_si256(from + 2) : zero};
        add<M>(s0, pixel, weight);
        add<M>(s1, pixel + step, weight);
        add<M>(s2, pixel + 2 * step, weight);
        add<M>(s3, pixel + 3 * step, weight);
      }
    }
  store<M>(s0, start, sums);
  store<M>(s1, start, sums + sums_apart);
  store<M>(s2, start, sums + 2 * sums_apart);
  store<M>(s3, start, sums + 3 * sums_apart);
}

bool is_supported() {
#if defined(__AVXVNNI__)
  unsigned a = 0, b = 0, c = 0, d = 0;  // not every compiler's __builtin_cpu_supports knows of it
  const bool has_vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
#else
  const bool has_vnni = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
  return has_vnni && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

template <int N>
void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights, const std::int32_t* start,
             std::int32_t* sums) {
  constexpr int kFours = N == 1 ? 2 : N, kOutputs = 4 * kFours;  // at a time, so that all sums have registers
  for (int y = 0; y < kRows; ++y)
    for (int o = 0; o < N * kLanes; o += kOutputs) {
      product_row<kFours>(corner + y * src.row, src, size, weights + o * kLanes, N * kLanes * kLanes, start + o,
                          sums + y * kColumns * N * kLanes + o, N * kLanes);
    }
}

}  // namespace

const Layers kAvxVnni{"avx_vnni", kLanes, 0, is_supported, conv3x3, upsample, head, quantise};

}  // namespace trtseg::conv_int8

#else

const trtseg::conv_int8::Layers trtseg::conv_int8::kAvxVnni{
    "avx_vnni", 0, 0, [] { return false; }, nullptr, nullptr, nullptr, nullptr};

#endif
