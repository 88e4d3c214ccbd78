// Compiled for AVX-512 with VNNI on x86-64 (setup.py).
#include "conv_int8.h"

#if defined(__AVX512VNNI__)
#if !defined(__clang__)  // GCC 12 warns of its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "conv_int8_layers.h"

namespace trtseg::conv_int8 {
namespace {

// Registers by name: the compiler keeps an array of them in memory.
struct Three {
  __m512i a, b, c;
};

inline void add(__m512i& sum, __m512i channels, __m512i weight) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(channels), "v"(weight));  // the compiler would copy the sum
}

// Adds the products of eight channels of a pixel. A register holds the sums of eight outputs, two for each, of the first
// four of the channels and of the others.
template <int N>
inline void add(Three& sum, const Byte* pixel, const Three& weight) {
  const __m512i channels = _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel)));
  add(sum.a, channels, weight.a);
  if constexpr (N > 1) add(sum.b, channels, weight.b);
  if constexpr (N > 2) add(sum.c, channels, weight.c);
}

inline void store(__m512i twice, const std::int32_t* start, std::int32_t* to) {
  const __m256i sum = _mm512_cvtepi64_epi32(_mm512_add_epi32(twice, _mm512_srli_epi64(twice, 32)));
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(sum, first));
}

template <int N>
inline void store(const Three& sum, const std::int32_t* start, std::int32_t* to) {
  store(sum.a, start, to);
  if constexpr (N > 1) store(sum.b, start + kLanes, to + kLanes);
  if constexpr (N > 2) store(sum.c, start + 2 * kLanes, to + 2 * kLanes);
}

template <int N>
void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights, const std::int32_t* start,
             std::int32_t* sums) {
  constexpr int kMatrix = kLanes * kLanes, kApart = N * kLanes;
  const __m512i zero = _mm512_setzero_si512();
  const Three zeros{zero, zero, zero};
  Three a0 = zeros, a1 = zeros, a2 = zeros, a3 = zeros, b0 = zeros, b1 = zeros, b2 = zeros, b3 = zeros;
  const std::ptrdiff_t step = src.pixel;
  for (int i = 0; i < size; ++i, corner += src.row)
    for (int j = 0; j < size; ++j) {
      const Byte *a = corner + j * step, *b = a + src.row;
      for (int c = 0; c < src.channels; c += kLanes, a += kLanes, b += kLanes, weights += N * kMatrix) {
        const Three weight{_mm512_load_si512(weights), N > 1 ? _mm512_load_si512(weights + kMatrix) : zero,
                           N > 2 ? _mm512_load_si512(weights + 2 * kMatrix) : zero};
        add<N>(a0, a, weight);
        add<N>(a1, a + step, weight);
        add<N>(a2, a + 2 * step, weight);
        add<N>(a3, a + 3 * step, weight);
        add<N>(b0, b, weight);
        add<N>(b1, b + step, weight);
        add<N>(b2, b + 2 * step, weight);
        add<N>(b3, b + 3 * step, weight);
      }
    }
  store<N>(a0, start, sums);
  store<N>(a1, start, sums + kApart);
  store<N>(a2, start, sums + 2 * kApart);
  store<N>(a3, start, sums + 3 * kApart);
  store<N>(b0, start, sums + 4 * kApart);
  store<N>(b1, start, sums + 5 * kApart);
  store<N>(b2, start, sums + 6 * kApart);
  store<N>(b3, start, sums + 7 * kApart);
}

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace

const Layers kAvx512Vnni{"avx512_vnni", kLanes, 0, is_supported, conv3x3, upsample, head, quantise};

}  // namespace trtseg::conv_int8

#else

const trtseg::conv_int8::Layers trtseg::conv_int8::kAvx512Vnni{
    "avx512_vnni", 0, 0, [] { return false; }, nullptr, nullptr, nullptr, nullptr};

#endif
