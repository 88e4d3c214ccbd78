// Loops over one row of pixels: where the CPU time goes. Compiled for several x86-64 levels, chosen at run time.
#pragma once

#include "voxel.h"

// target_clones needs ifunc, which glibc has, and the names of the levels below, which g++ knows from version 12 on.
// Sanitizers cannot run while ifuncs are resolved.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ROW_LOOP __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"), noinline)) void
#else
#define ROW_LOOP void
#endif
#define RESTRICT __restrict__

namespace trtseg {
namespace {

// The largest of n pixels; -32768 of none.
ROW_LOOP row_max(const std::int16_t* RESTRICT hu, int n, std::int16_t* RESTRICT largest) {
  std::int16_t m = -32768;
  for (int x = 0; x < n; ++x) m = hu[x] > m ? hu[x] : m;
  *largest = m;
}

// run = how many rows in a row have a 1, down to this row
ROW_LOOP row_run(std::uint16_t* RESTRICT run, const std::uint8_t* RESTRICT row, int n) {
  for (int x = 0; x < n; ++x) run[x] = static_cast<std::uint16_t>(row[x] ? run[x] + 1 : 0);
}

// mask |= other
ROW_LOOP row_or(std::uint8_t* RESTRICT mask, const std::uint8_t* RESTRICT other, int n) {
  for (int x = 0; x < n; ++x) mask[x] = static_cast<std::uint8_t>(mask[x] | other[x]);
}

// mask |= run >= least
ROW_LOOP row_mark(std::uint8_t* RESTRICT mask, const std::uint16_t* RESTRICT run, std::uint16_t least, int n) {
  for (int x = 0; x < n; ++x) mask[x] = static_cast<std::uint8_t>(mask[x] | (run[x] >= least));
}

// The sums below start with the first product, not with 0 + it: only the sign of a zero can differ, which neither an
// integer nor a comparison shows.

// sum = w * a
ROW_LOOP row_start(float* RESTRICT sum, const std::int16_t* RESTRICT a, float w, int n) {
  for (int x = 0; x < n; ++x) sum[x] = w * static_cast<float>(a[x]);
}

// sum = w * a + v * b
ROW_LOOP row_start2(float* RESTRICT sum, const std::int16_t* RESTRICT a, float w, const std::int16_t* RESTRICT b,
                    float v, int n) {
  for (int x = 0; x < n; ++x) sum[x] = w * static_cast<float>(a[x]) + v * static_cast<float>(b[x]);
}

// sum += w * a
ROW_LOOP row_add(float* RESTRICT sum, const std::int16_t* RESTRICT a, float w, int n) {
  for (int x = 0; x < n; ++x) sum[x] = sum[x] + w * static_cast<float>(a[x]);
}

// sum[x] = sum over k of weight[k][x] * row[first[x] + k]
ROW_LOOP row_collect(float* RESTRICT sum, const float* RESTRICT row, const std::int32_t* RESTRICT first,
                     const float* RESTRICT weight, int taps, int n) {
  for (int x = 0; x < n; ++x) sum[x] = weight[x] * row[first[x]];
  for (int k = 1; k < taps; ++k) {
    const float* RESTRICT w = weight + static_cast<std::int64_t>(k) * n;
    const float* RESTRICT r = row + k;
    for (int x = 0; x < n; ++x) sum[x] = sum[x] + w[x] * r[first[x]];
  }
}

// row_collect for net pixels that begin every 1 or 2 native pixels (an exact reduction, or none): loads instead of
// gathers.
ROW_LOOP row_collect1(float* RESTRICT sum, const float* RESTRICT row, const float* RESTRICT weight, int taps, int n) {
  for (int x = 0; x < n; ++x) sum[x] = weight[x] * row[x];
  for (int k = 1; k < taps; ++k) {
    const float* RESTRICT w = weight + static_cast<std::int64_t>(k) * n;
    for (int x = 0; x < n; ++x) sum[x] = sum[x] + w[x] * row[x + k];
  }
}

ROW_LOOP row_collect2(float* RESTRICT sum, const float* RESTRICT row, const float* RESTRICT weight, int n) {
  const float* RESTRICT w = weight + n;
  for (int x = 0; x < n; ++x) sum[x] = weight[x] * row[2 * x] + w[x] * row[2 * x + 1];
}

ROW_LOOP row_round(std::int16_t* RESTRICT hu, const float* RESTRICT value, int n) {
  for (int x = 0; x < n; ++x) hu[x] = round_hu(value[x]);
}

ROW_LOOP row_window(float* RESTRICT out, const std::int16_t* RESTRICT hu, float lo, float width, int n) {
  for (int x = 0; x < n; ++x) out[x] = window_hu(hu[x], lo, width);
}

ROW_LOOP row_to_half(std::uint16_t* RESTRICT out, const float* RESTRICT in, int n) {
  for (int x = 0; x < n; ++x) out[x] = float_to_half(in[x]);
}

ROW_LOOP row_from_half(float* RESTRICT out, const std::uint16_t* RESTRICT in, int n) {
  for (int x = 0; x < n; ++x) out[x] = half_to_float(in[x]);
}

ROW_LOOP row_gate(float* RESTRICT x2, const float* RESTRICT l1, const std::int16_t* RESTRICT hu, float threshold,
                  float lo, float width, int n, std::int32_t* RESTRICT liver_pixels) {
  std::int32_t count = 0;
  for (int x = 0; x < n; ++x) {
    const bool liver = above(l1[x], threshold);
    const float t = window_hu(hu[x], lo, width);
    x2[x] = liver ? t : 0.0f;
    count += static_cast<std::int32_t>(liver);
  }
  *liver_pixels = count;
}

// d = margin(l), and whether any is positive.
ROW_LOOP row_margin(float* RESTRICT d, const float* RESTRICT l, float threshold, int n, std::int32_t* RESTRICT any) {
  for (int x = 0; x < n; ++x) d[x] = margin(l[x], threshold);
  std::int32_t positive = 0;
  for (int x = 0; x < n; ++x) positive |= static_cast<std::int32_t>(d[x] > 0.0f);
  *any = positive;
}

// column = g * a + f * b
ROW_LOOP row_mix(float* RESTRICT column, const float* RESTRICT a, const float* RESTRICT b, float g, float f, int n) {
  for (int x = 0; x < n; ++x) column[x] = mix(g, a[x], f, b[x]);
}

// value[x] = column, interpolated at native pixel x; column has one finite element more than there are net pixels.
ROW_LOOP row_lerp(float* RESTRICT value, const float* RESTRICT column, const std::int32_t* RESTRICT i,
                  const float* RESTRICT g, const float* RESTRICT f, int n) {
  for (int x = 0; x < n; ++x) value[x] = mix(g[x], column[i[x]], f[x], column[i[x] + 1]);
}

// row_lerp for native pixels that come in pairs between two net pixels (an exact doubling): loads instead of gathers.
ROW_LOOP row_lerp2(float* RESTRICT value, const float* RESTRICT column, const float* RESTRICT g,
                   const float* RESTRICT f, int pairs) {
  for (int k = 0; k < pairs; ++k) {
    value[2 * k] = mix(g[2 * k], column[k], f[2 * k], column[k + 1]);
    value[2 * k + 1] = mix(g[2 * k + 1], column[k], f[2 * k + 1], column[k + 1]);
  }
}

ROW_LOOP row_cascade(std::uint8_t* RESTRICT out, const float* RESTRICT liver, const float* RESTRICT tumour, int n) {
  for (int x = 0; x < n; ++x) out[x] = cascade_class(liver[x], tumour[x]);
}

ROW_LOOP row_largest(std::uint8_t* RESTRICT out, const float* RESTRICT v0, const float* RESTRICT v1,
                     const float* RESTRICT v2, int n) {
  for (int x = 0; x < n; ++x) out[x] = largest_class(v0[x], v1[x], v2[x]);
}

// counts[0] += voxels labelled 1, counts[1] += voxels labelled 2
ROW_LOOP row_count(const std::uint8_t* RESTRICT labels, int n, std::int32_t* RESTRICT counts) {
  std::int32_t sum = 0, twos = 0;
  for (int x = 0; x < n; ++x) {
    sum += labels[x];
    twos += labels[x] >> 1;
  }
  counts[0] += sum - 2 * twos;
  counts[1] += twos;
}

}  // namespace
}  // namespace trtseg
