// The layers of conv_int8.h, included by a file for each instruction set, which defines the inner loop, `product`.
//
// Everything here is in a namespace without a name, and nothing is of the standard library: these files are compiled for
// processors of which others know nothing.
#include "conv_int8.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace trtseg::conv_int8 {
namespace {

using conv::Area;
using conv::area_of;
using conv::kTile;

// Sums `[kRows][kColumns][N * kLanes]` of pixels; the size x size pixels on which the first depends begin at `corner`.
// A function of its own has all registers to itself.
template <int N>
__attribute__((noinline)) void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights,
                                       const std::int32_t* start, std::int32_t* sums);

// Floats and integers that have a register, at any address: of others g++ computes one by one. A pixel's channels take
// kParts of them.
#if defined(__ARM_NEON)
constexpr int kParts = 2;
#else
constexpr int kParts = 1;
#endif
typedef float Floats __attribute__((vector_size(kLanes / kParts * sizeof(float)), aligned(alignof(float)), may_alias));
typedef std::int32_t Ints __attribute__((vector_size(kLanes / kParts * sizeof(std::int32_t)), aligned(4), may_alias));
typedef Byte Bytes8 __attribute__((vector_size(kLanes), aligned(1), may_alias));

struct Floats8 {
  Floats part[kParts];
};

inline Floats8 load(const float* p) {
  Floats8 v;
  for (int i = 0; i < kParts; ++i) v.part[i] = reinterpret_cast<const Floats*>(p)[i];
  return v;
}

inline Floats8 load(const std::int32_t* p) {
  Floats8 v;
  for (int i = 0; i < kParts; ++i) v.part[i] = __builtin_convertvector(reinterpret_cast<const Ints*>(p)[i], Floats);
  return v;
}

inline Floats8 scaled(Floats8 v, const Floats8& scale, const Floats8& bias) {
  for (int i = 0; i < kParts; ++i) v.part[i] = v.part[i] * scale.part[i] + bias.part[i];
  return v;
}

#if defined(__ARM_NEON)
inline Bytes8 bytes(const Ints* part) {
  const uint16x4_t low = vmovn_u32((uint32x4_t)part[0]), high = vmovn_u32((uint32x4_t)part[1]);
  return (Bytes8)vmovn_u16(vcombine_u16(low, high));
}
#else
inline Bytes8 bytes(const Ints* part) { return __builtin_convertvector(*part, Bytes8); }
#endif

inline void store(Byte* p, Bytes8 v) { *reinterpret_cast<Bytes8*>(p) = v; }

inline Byte* at(const Map& map, std::ptrdiff_t y, std::ptrdiff_t x) { return map.data + y * map.row + x * map.pixel; }

inline std::ptrdiff_t matrix(int in, int out) { return std::ptrdiff_t{in} * out; }

// Makes bytes of values: the nearest ones, from `least` on. Its own copy of numbers: a byte that is stored could be any
// number elsewhere, which the compiler would load again.
class Rounder {
 public:
  Rounder(int zero, int least)
      : low_(all(static_cast<float>(least - zero))), high_(all(static_cast<float>(255 - zero))), offset_(kBits - zero) {}

  Bytes8 operator()(const Floats8& values) const {
    Ints bits[kParts];
    for (int i = 0; i < kParts; ++i) {
      Floats value = values.part[i];
      value = value > low_ ? value : low_;
      value = value < high_ ? value : high_;
      value += kWhole;
      __builtin_memcpy(&bits[i], &value, sizeof value);
      bits[i] -= offset_;
    }
    return bytes(bits);
  }

 private:
  static constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to the nearest even integer
  static constexpr std::int32_t kBits = 0x4B400000;  // of kWhole

  static Floats all(float x) { return x - Floats{}; }

  Floats low_, high_;
  std::int32_t offset_;
};

// `work(o, groups, weights)` for every block of so many eights of output channels, the first of which is `o`.
template <class Work>
inline void for_blocks(int points, int in, int out, const std::int8_t* packed, Work work) {
  for (int o = 0; o < out;) {
    const int groups = (out - o) / kLanes;
    const int width = (groups < kGroups ? groups : kGroups) * kLanes;
    work(o, width / kLanes, packed);
    packed += points * matrix(in, width);
    o += width;
  }
}

inline void product(int groups, const Byte* corner, const Map& src, int size, const std::int8_t* weights,
                    const std::int32_t* start, std::int32_t* sums) {
  switch (groups) {
    case 3: product<3>(corner, src, size, weights, start, sums); break;
    case 2: product<2>(corner, src, size, weights, start, sums); break;
    default: product<1>(corner, src, size, weights, start, sums);
  }
}

inline Bytes8 larger(Bytes8 a, Bytes8 b) { return a > b ? a : b; }

void conv3x3(const Map& src, Weights weights, Rounding rounding, const Map& dst, const Map* pool, const int* tile,
             int count) {
  for_blocks(9, src.channels, dst.channels, weights.packed, [&](int first, int groups, const std::int8_t* packed) {
    const Rounder rounded(rounding.zero, rounding.least);
    const std::ptrdiff_t row = dst.row, pixel = dst.pixel, pool_pixel = pool ? pool->pixel : 0;
    alignas(64) std::int32_t sums[kPixels * kGroups * kLanes];
    for (int t = 0; t < count; ++t) {
      const Area area = area_of(dst, tile[t]);
      for (int y = 0; y < area.rows; y += kRows) {
        product(groups, at(src, area.y + y - 1, area.x - 1), src, 3, packed, weights.start + first, sums);
        const int rows = area.rows - y, columns = area.columns;
        Byte* to = at(dst, area.y + y, area.x) + first;
        Byte* maxima = pool && rows > 1 ? at(*pool, (area.y + y) / 2, area.x / 2) + first : nullptr;
        for (int g = 0; g < groups; ++g, to += kLanes) {
          const int o = first + g * kLanes;
          const Floats8 scale = load(rounding.scale + o), bias = load(rounding.bias + o);
          Bytes8 value[kPixels];
#pragma GCC unroll 8
          for (int x = 0; x < kPixels; ++x) {
            value[x] = rounded(scaled(load(sums + (x * groups + g) * kLanes), scale, bias));
            const int v = x / kColumns, h = x % kColumns;
            if (v < rows && h < columns) store(to + v * row + h * pixel, value[x]);
          }
          if (maxima == nullptr) continue;
#pragma GCC unroll 2
          for (int x = 0; x < kColumns; x += 2) {
            const Bytes8 left = larger(value[x], value[x + kColumns]), right = larger(value[x + 1], value[x + 1 + kColumns]);
            if (x + 1 < columns) store(maxima + x / 2 * pool_pixel, larger(left, right));
          }
          maxima += kLanes;
        }
      }
    }
  });
}

void upsample(const Map& src, Weights weights, Rounding rounding, const Map& dst, int tile) {
  const Area area = area_of(src, tile);
  const Rounder rounded(rounding.zero, rounding.least);
  alignas(64) std::int32_t sums[kPixels * kGroups * kLanes];
  for (int k = 0; k < 4; ++k) {
    const std::int8_t* own = weights.packed + k * matrix(src.channels, dst.channels);
    for_blocks(1, src.channels, dst.channels, own, [&](int first, int groups, const std::int8_t* packed) {
      for (int y = 0; y < area.rows; y += kRows) {
        product(groups, at(src, area.y + y, area.x), src, 1, packed, weights.start + k * dst.channels + first, sums);
        for (int g = 0; g < groups; ++g) {
          const int o = first + g * kLanes;
          const Floats8 scale = load(rounding.scale + o), bias = load(rounding.bias + o);
          for (int x = 0; x < kPixels; ++x) {
            const int v = y + x / kColumns, h = x % kColumns;
            if (v >= area.rows || h >= area.columns) continue;
            store(at(dst, 2 * (area.y + v) + k / 2, 2 * (area.x + h) + k % 2) + o,
                  rounded(scaled(load(sums + (x * groups + g) * kLanes), scale, bias)));
          }
        }
      }
    });
  }
}

void head(const Map& src, Weights weights, const float* factor, const float* bias, int classes, int scale, float* dst,
          int tile) {
  const std::ptrdiff_t width = std::ptrdiff_t{src.columns} * scale, plane = width * src.rows * scale;
  const Area area = area_of(src, tile);
  const int outputs = scale * scale * classes;
  alignas(64) std::int32_t sums[kPixels * kGroups * kLanes];
  for_blocks(1, src.channels, (outputs + kLanes - 1) / kLanes * kLanes, weights.packed,
             [&](int first, int groups, const std::int8_t* packed) {
    const int end = first + groups * kLanes;
    for (int y = 0; y < area.rows; y += kRows) {
      product(groups, at(src, area.y + y, area.x), src, 1, packed, weights.start + first, sums);
      for (int i = 0; i < kRows && y + i < area.rows; ++i)
        for (int j = 0; j < area.columns; ++j) {
          const std::int32_t* sum = sums + (i * kColumns + j) * groups * kLanes;
          float* to = dst + (area.y + y + i) * scale * width + (area.x + j) * scale;
          int o = 0;  // outputs are [row][column][class]
          for (int v = 0; v < scale; ++v)
            for (int h = 0; h < scale; ++h)
              for (int k = 0; k < classes; ++k, ++o) {
                if (o < first || o >= end) continue;
                to[k * plane + v * width + h] = static_cast<float>(sum[o - first]) * factor[k] + bias[k];
              }
        }
    }
  });
}

void quantise(const float* values, int zero, int least, const Map& dst, int tile) {
  const Area area = area_of(dst, tile);
  const Rounder rounded(zero, least);
  for (int y = 0; y < area.rows; ++y)
    for (int x = 0; x < area.columns; ++x)
      for (int c = 0; c < dst.channels; c += kLanes) {
        store(at(dst, area.y + y, area.x + x) + c,
              rounded(load(values + (y * kTile + x) * std::ptrdiff_t{dst.channels} + c)));
      }
}

}  // namespace
}  // namespace trtseg::conv_int8
