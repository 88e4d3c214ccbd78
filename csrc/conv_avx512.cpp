// Compiled for AVX-512 on x86-64 (setup.py); what is said in conv.cpp holds here, too.
#include "conv.h"

#if defined(__AVX512F__)

namespace trtseg::conv {
namespace {

// A register of sixteen floats at any address, and its half.
typedef float Wide __attribute__((vector_size(2 * kLanes * sizeof(float)), aligned(alignof(float)), may_alias));
typedef float Half __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));

inline Wide wide(const float* p) { return *reinterpret_cast<const Wide*>(p); }
inline Half half(const float* p) { return *reinterpret_cast<const Half*>(p); }

// N eights of output channels: N / 2 registers a row, and of odd N a half.
template <int N>
inline void product(const float* a, std::ptrdiff_t apart, int in, const float* b, const float* bias, float* c,
                    std::ptrdiff_t c_apart) {
  constexpr int kWide = N / 2, kDone = kWide * 2 * kLanes;
  Wide sum[kRows][kWide + 1];
  Half last[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int n = 0; n < kWide; ++n) sum[r][n] = bias ? wide(bias + n * 2 * kLanes) : Wide{};
    last[r] = bias && N % 2 ? half(bias + kDone) : Half{};
  }
#pragma GCC unroll 2
  for (int i = 0; i < in; ++i, b += N * kLanes) {
    Wide weight[kWide + 1];
    for (int n = 0; n < kWide; ++n) {
      weight[n] = wide(b + n * 2 * kLanes);
      asm("" : "+v"(weight[n]));  // keeps it in its register: the compiler would load it again for each row
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      for (int n = 0; n < kWide; ++n) sum[r][n] += a[r * apart + i] * weight[n];
      if constexpr (N % 2) last[r] += a[r * apart + i] * half(b + kDone);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r, c += c_apart) {
    for (int n = 0; n < kWide; ++n) *reinterpret_cast<Wide*>(c + n * 2 * kLanes) = sum[r][n];
    if constexpr (N % 2) *reinterpret_cast<Half*>(c + kDone) = last[r];
  }
}

constexpr int kMost = 6;  // eights of output channels for which there are registers

void multiply(const float* a, std::ptrdiff_t apart, int in, const float* packed, const float* bias, float* c,
              std::ptrdiff_t c_apart, int out) {
  for (int done = 0; done < out; done += kMost * kLanes) {
    const float *b = packed + std::ptrdiff_t{in} * done, *own = bias ? bias + done : nullptr;
    switch ((out - done) / kLanes) {
      case 1: product<1>(a, apart, in, b, own, c + done, c_apart); break;
      case 2: product<2>(a, apart, in, b, own, c + done, c_apart); break;
      case 3: product<3>(a, apart, in, b, own, c + done, c_apart); break;
      case 4: product<4>(a, apart, in, b, own, c + done, c_apart); break;
      case 5: product<5>(a, apart, in, b, own, c + done, c_apart); break;
      default: product<kMost>(a, apart, in, b, own, c + done, c_apart);
    }
  }
}

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && kUsual.is_supported();
}

}  // namespace

const Products kAvx512{"avx512", kMost * kLanes, is_supported, multiply};

}  // namespace trtseg::conv

#else

const trtseg::conv::Products trtseg::conv::kAvx512{"avx512", kLanes, [] { return false; }, nullptr};

#endif
