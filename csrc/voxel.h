// The per-voxel maths of every op: defined here and nowhere else, compiled by the host compiler and by nvcc.
//
// Positions on an axis are computed in double; weights, sums and logits are binary32. Nothing may be contracted,
// reordered or approximated (-ffp-contract=off, -fmad=false, no fast-math): then CPU, CUDA and the NumPy oracle
// trtseg/reference.py agree bit for bit.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "host_device.h"

#ifdef __FAST_MATH__
#error "fast-math changes the results; build without it"
#endif

namespace trtseg {

static_assert(FLT_EVAL_METHOD == 0, "float expressions must be evaluated in binary32 (x86: SSE, not x87)");
static_assert(std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559, "IEEE 754");

constexpr std::int16_t kAirHu = -1000;  // of net pixels outside the native slice; trtseg/fit.py says the same
constexpr std::int16_t kBodyHu = -400;  // the body is above it; trtseg/body.py says the same

// ---- frame, thick: where the patient is -------------------------------------------------------------------------

HOST_DEVICE inline bool above_air(std::int16_t hu) { return hu > kAirHu; }
HOST_DEVICE inline bool in_body(std::int16_t hu) { return hu > kBodyHu; }

// Samples along one axis: pixels begin, begin + stride, ... before end. Something with `thick` samples in a row is
// thick, and begins at one of the first `starts` samples.
struct Samples {
  int begin, end, stride, thick;

  HOST_DEVICE int count() const { return (end - begin - 1) / stride + 1; }
  HOST_DEVICE int starts() const { return count() - thick + 1; }
};

// Whether something thick begins at sample (j, i) of a slice. The CPU does the same with sums of rows.
HOST_DEVICE inline bool thick_at(const std::int16_t* slice, int width, const Samples& y, const Samples& x, int j,
                                 int i) {
  for (int v = 0; v < y.thick; ++v) {
    const std::int16_t* row = slice + static_cast<std::int64_t>(y.begin + (j + v) * y.stride) * width + x.begin;
    for (int u = 0; u < x.thick; ++u) {
      if (!in_body(row[(i + u) * x.stride])) return false;
    }
  }
  return true;
}

// One axis of a Fit (trtseg/fit.py): how `native` pixels lie on `net` pixels.
//
// Positions are native pixels counted from `origin`, an integer, which is added last. So a slice that is padded by whole
// pixels, with its origin moved along, gets the same positions, weights and sums to the last bit.
struct Axis {
  int native, net;
  double step;         // native pixels per net pixel
  int offset, extent;  // the net pixels that may show the slice: offset <= i < offset + extent; the others are air
  int origin;          // the native pixel with which net pixel `offset` begins; below 0: beside the slice
};

// ---- prepare: native -> net -------------------------------------------------------------------------------------

// The native pixels that make one net pixel: first .. first + count - 1. All pixels between the first and the last
// have the same weight. count == 0: the net pixel does not touch the slice.
struct Span {
  int first, count;
  float head, body, tail;

  HOST_DEVICE float weight(int k) const { return k == 0 ? head : (k == count - 1 ? tail : body); }
};

HOST_DEVICE inline double at_most(double a, double b) { return a < b ? a : b; }
HOST_DEVICE inline double at_least(double a, double b) { return a > b ? a : b; }

HOST_DEVICE inline Span prepare_span(const Axis& a, int i) {
  if (i < a.offset || i >= a.offset + a.extent) return {0, 0, 0.0f, 0.0f, 0.0f};
  const int p = i - a.offset;
  const double begin = -a.origin, end = static_cast<double>(a.native) - a.origin;  // the slice's edges
  if (p * a.step >= end || (p + 1) * a.step <= begin) return {0, 0, 0.0f, 0.0f, 0.0f};
  if (a.step < 1.0) {  // enlarging: linear between the centres of two pixels
    const double c = at_least(at_most((p + 0.5) * a.step - 0.5, end - 1.0), begin);
    const double j = floor(c);
    const int first = a.origin + static_cast<int>(j);
    const float f = static_cast<float>(c - j);
    const float g = 1.0f - f;
    if (first + 1 < a.native) return {first, 2, g, g, f};
    return {first, 1, g, g, g};  // the last pixel: f is 0
  }
  const double lo = at_least(p * a.step, begin);  // shrinking: the area's mean
  const double hi = at_most((p + 1) * a.step, end);
  const double first = floor(lo), last = ceil(hi) - 1.0;
  return {a.origin + static_cast<int>(first), static_cast<int>(last - first) + 1,
          static_cast<float>((at_most(hi, first + 1.0) - lo) / (hi - lo)), static_cast<float>(1.0 / (hi - lo)),
          static_cast<float>((hi - at_least(lo, last)) / (hi - lo))};
}

// The value of a net pixel: each column of native pixels summed from top to bottom, then the sums from left to right.
// The CPU does the same row by row.
HOST_DEVICE inline float prepare_value(const std::int16_t* slice, int width, const Span& y, const Span& x) {
  float value = 0.0f;
  for (int i = 0; i < x.count; ++i) {
    const std::int16_t* column = slice + static_cast<std::int64_t>(y.first) * width + x.first + i;
    float sum = 0.0f;
    for (int j = 0; j < y.count; ++j) {
      sum = sum + y.weight(j) * static_cast<float>(column[static_cast<std::int64_t>(j) * width]);
    }
    value = value + x.weight(i) * sum;
  }
  return value;
}

// Nearest integer, half to even, saturated: adding 1.5 * 2^23 leaves no fraction bits. Exact for |v| < 2^22.
HOST_DEVICE inline std::int16_t round_hu(float v) {
  float r = (v + 12582912.0f) - 12582912.0f;
  r = r < 32767.0f ? r : 32767.0f;
  r = r > -32768.0f ? r : -32768.0f;
  return static_cast<std::int16_t>(static_cast<int>(r));
}

// HU to [0, 1]. `width` is hi - lo, rounded to float once.
HOST_DEVICE inline float window_hu(std::int16_t hu, float lo, float width) {
  float t = (static_cast<float>(hu) - lo) / width;
  t = t > 0.0f ? t : 0.0f;  // NaN and -0 too
  return t < 1.0f ? t : 1.0f;
}

// ---- logits -----------------------------------------------------------------------------------------------------

// How far a logit lies above its threshold, clamped to the finite FP16 range. NaN is certain background, and being
// finite it does not spread to its neighbours.
HOST_DEVICE inline float margin(float logit, float threshold) {
  float d = logit - threshold;
  d = d >= -65504.0f ? d : -65504.0f;
  return d > 65504.0f ? 65504.0f : d;
}

// margin(logit, threshold) > 0, without the clamps that do not change the sign.
HOST_DEVICE inline bool above(float logit, float threshold) { return logit - threshold > 0.0f; }

// ---- label: net -> native ---------------------------------------------------------------------------------------

// Linear interpolation between net pixels i and i + 1 (the caller clamps i + 1 to the last pixel, where f is 0).
struct Lerp {
  int i;
  float g, f;  // weights of i and of i + 1; never negative
};

// A native voxel whose centre lies outside the net's grid gets two weights of 0. Its interpolated values are then 0,
// which cascade_class and largest_class call background.
HOST_DEVICE inline Lerp label_lerp(const Axis& a, int y) {
  const double v = (y - a.origin + 0.5) / a.step + a.offset - 0.5;
  if (v < -0.5 || v >= a.net - 0.5) return {v < 0.0 ? 0 : a.net - 1, 0.0f, 0.0f};
  const double c = at_least(at_most(v, a.net - 1.0), 0.0);
  const int i = static_cast<int>(c);
  const float f = static_cast<float>(c - i);
  return {i, 1.0f - f, f};
}

HOST_DEVICE inline float mix(float g, float a, float f, float b) { return g * a + f * b; }

// No weight of a Lerp is negative, so where all liver margins of a slice are <= 0 every interpolated value is <= 0 in
// any rounding: the slice has no liver voxel, hence no tumour voxel, whatever the tumour net's logits are (even stale
// memory or NaN). That makes it exact not to run the tumour net on such a slice.
HOST_DEVICE inline std::uint8_t cascade_class(float liver, float tumour) {
  return static_cast<std::uint8_t>(liver > 0.0f ? (tumour > 0.0f ? 2 : 1) : 0);
}

// The largest of three; the lowest class on ties.
HOST_DEVICE inline std::uint8_t largest_class(float v0, float v1, float v2) {
  const float v01 = v1 > v0 ? v1 : v0;
  return static_cast<std::uint8_t>(v2 > v01 ? 2 : (v1 > v0 ? 1 : 0));
}

// ---- FP16 as bits, by integers only: the same on every compiler and device, whatever the flush-to-zero mode ------

HOST_DEVICE inline float float_of_bits(std::uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

HOST_DEVICE inline std::uint32_t bits_of_float(float x) {
  std::uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

// condition ? a : b in arithmetic, which compilers do not turn into branches: loops over it vectorise.
HOST_DEVICE inline std::uint32_t select(bool condition, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

// Exact.
HOST_DEVICE inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t em = h & 0x7fffu;
  const std::uint32_t normal = (em << 13) + (em >= 0x7c00u ? 224u << 23 : 112u << 23);  // inf and NaN keep their own
  std::uint32_t m = em, e = 113;  // subnormal: shift the leading one up to bit 10, the place of the implied one
  e -= m < 8u ? 8u : 0u, m = m < 8u ? m << 8 : m;
  e -= m < 128u ? 4u : 0u, m = m < 128u ? m << 4 : m;
  e -= m < 512u ? 2u : 0u, m = m < 512u ? m << 2 : m;
  e -= m < 1024u ? 1u : 0u, m = m < 1024u ? m << 1 : m;
  const std::uint32_t subnormal = em == 0 ? 0 : (e << 23) + ((m & 0x3ffu) << 13);
  return float_of_bits(sign | (em < 0x400u ? subnormal : normal));
}

// Round to nearest, half to even; overflow to infinity; NaN to one quiet NaN.
HOST_DEVICE inline std::uint16_t float_to_half(float x) {
  const std::uint32_t u = bits_of_float(x);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t a = u & 0x7fffffffu;
  const std::uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  const std::uint32_t mantissa = (a & 0x7fffffu) | 0x800000u;  // in units of 2^-24 after shifting right by s
  const std::uint32_t exponent = a >> 23;  // at most 112 where the result is subnormal; below 101 it is 0
  const std::uint32_t s = 126u - select(exponent < 101u, 101u, select(exponent > 112u, 112u, exponent));
  const std::uint32_t subnormal = (mantissa + (1u << (s - 1)) - 1u + ((mantissa >> s) & 1u)) >> s;
  const std::uint32_t finite = select(a < 0x38800000u, subnormal, normal);  // 2^-14
  const std::uint32_t special = select(a > 0x7f800000u, 0x7e00u, 0x7c00u);
  return static_cast<std::uint16_t>(sign | select(a < 0x477ff000u, finite, special));  // 65520
}

}  // namespace trtseg
