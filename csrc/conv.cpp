// Compiled for AVX2 and FMA on x86-64 (setup.py), so nothing here may be shared with code for older processors: no
// templates or inline functions of the standard library.
#include "conv.h"

namespace trtseg::conv {
namespace {

// Floats at any address that have a register, of AVX2 or of NEON: of others g++ keeps sums in memory.
#if defined(__ARM_NEON)
constexpr int kVec = kLanes / 2;
#else
constexpr int kVec = kLanes;
#endif
typedef float Vec __attribute__((vector_size(kVec * sizeof(float)), aligned(alignof(float)), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec all(float x) { return x - Vec{}; }
inline Vec larger(Vec a, Vec b) { return b > a ? b : a; }  // `a` where one of them is NaN

// Keeps a value in its register: the compiler would load it again for each sum.
#if defined(__AVX2__)
#define TRTSEG_HOLD(v) asm("" : "+x"(v))
#else
#define TRTSEG_HOLD(v)
#endif

// The same as `multiply` for a block of N eights of output channels; a register for each sum.
template <int N>
inline void product(const float* a, std::ptrdiff_t apart, int in, const float* b, const float* bias, float* c,
                    std::ptrdiff_t c_apart) {
  constexpr int M = N * kLanes / kVec;
  Vec sum[kRows][M];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    Vec start = all(0.0f);
    if (bias) start = load(bias + m * kVec);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sum[r][m] = start;
  }
  const float *a0 = a, *a1 = a + apart, *a2 = a1 + apart, *a3 = a2 + apart;
#pragma GCC unroll 2
  for (int i = 0; i < in; ++i, b += N * kLanes) {
    Vec weight[M];
    for (int m = 0; m < M; ++m) {
      weight[m] = load(b + m * kVec);
      TRTSEG_HOLD(weight[m]);
    }
    const Vec x0 = all(a0[i]);
    for (int m = 0; m < M; ++m) sum[0][m] += x0 * weight[m];
    const Vec x1 = all(a1[i]);
    for (int m = 0; m < M; ++m) sum[1][m] += x1 * weight[m];
    const Vec x2 = all(a2[i]);
    for (int m = 0; m < M; ++m) sum[2][m] += x2 * weight[m];
    const Vec x3 = all(a3[i]);
    for (int m = 0; m < M; ++m) sum[3][m] += x3 * weight[m];
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) store(c + r * c_apart + m * kVec, sum[r][m]);
}

constexpr int kMost = 3;  // eights of output channels for which there are registers

void multiply(const float* a, std::ptrdiff_t apart, int in, const float* packed, const float* bias, float* c,
              std::ptrdiff_t c_apart, int out) {
  for (int done = 0; done < out; done += kMost * kLanes) {
    const float *b = packed + std::ptrdiff_t{in} * done, *own = bias ? bias + done : nullptr;
    switch ((out - done) / kLanes) {
      case 1: product<1>(a, apart, in, b, own, c + done, c_apart); break;
      case 2: product<2>(a, apart, in, b, own, c + done, c_apart); break;
      default: product<kMost>(a, apart, in, b, own, c + done, c_apart);
    }
  }
}

// B^T d for six values of a patch, `step` floats apart, to values that are `apart` floats apart.
inline void patch_transform(const float* d, std::ptrdiff_t step, float* to, std::ptrdiff_t apart) {
  const Vec d0 = load(d), d1 = load(d + step), d2 = load(d + 2 * step), d3 = load(d + 3 * step);
  const Vec d4 = load(d + 4 * step), d5 = load(d + 5 * step);
  const Vec a = d4 - 4.0f * d2, b = d3 - 4.0f * d1, c = d4 - d2, e = d3 - d1;
  store(to, d4 + (4.0f * d0 - 5.0f * d2));
  store(to + apart, a + b);
  store(to + 2 * apart, a - b);
  store(to + 3 * apart, c + 2.0f * e);
  store(to + 4 * apart, c - 2.0f * e);
  store(to + 5 * apart, d5 + (4.0f * d1 - 5.0f * d3));
}

// A^T m for six products, `step` floats apart: four values.
inline void tile_transform(const float* m, std::ptrdiff_t step, Vec* y) {
  const Vec m1 = load(m + step), m2 = load(m + 2 * step), m3 = load(m + 3 * step), m4 = load(m + 4 * step);
  const Vec sum = m1 + m2, difference = m1 - m2, sum2 = m3 + m4, difference2 = m3 - m4;
  y[0] = load(m) + sum + sum2;
  y[1] = difference + 2.0f * difference2;
  y[2] = sum + 4.0f * sum2;
  y[3] = load(m + 5 * step) + difference + 8.0f * difference2;
}

// Where the patch or the products of tile `t` begin, of so many channels: [t / kRows][kPoints][kRows][channels].
inline std::ptrdiff_t place(int t, int channels) {
  return (t / kRows * kPoints * kRows + t % kRows) * std::ptrdiff_t{channels};
}

inline float* at(const Map& map, std::ptrdiff_t y, std::ptrdiff_t x) { return map.data + y * map.row + x * map.pixel; }

// The patches of tiles, transformed.
void read_patches(const Map& src, const int* tile, int count, float* patches) {
  const std::ptrdiff_t apart = std::ptrdiff_t{kRows} * src.channels;
  alignas(64) float half[kPoints * kVec];  // [row][column] of a patch
  for (int t = 0; t < count; ++t) {
    const Area area = area_of(src, tile[t]);
    const float* corner = at(src, area.y - 1, area.x - 1);
    float* to = patches + place(t, src.channels);
    for (int c = 0; c < src.channels; c += kVec, to += kVec) {
#pragma GCC unroll 6
      for (int j = 0; j < kPatch; ++j)
        patch_transform(corner + j * src.pixel + c, src.row, half + j * kVec, kPatch * kVec);
#pragma GCC unroll 6
      for (int i = 0; i < kPatch; ++i)
        patch_transform(half + i * kPatch * kVec, kVec, to + i * kPatch * apart, apart);
    }
  }
}

// The products of one tile and kVec channels -> pixels, with bias and ReLU, as far as the area reaches.
inline void write_tile(const float* from, std::ptrdiff_t apart, Vec bias, const Map& dst, float* to, int rows,
                       int columns, const Map* pool, float* maxima) {
  alignas(64) float half[kTile * kPatch * kVec];  // [row of the tile][column of the patch]
#pragma GCC unroll 6
  for (int j = 0; j < kPatch; ++j) {
    Vec column[kTile];
    tile_transform(from + j * apart, kPatch * apart, column);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) store(half + (i * kPatch + j) * kVec, column[i]);
  }
  Vec above[kTile / 2];
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
    Vec out[kTile];
    tile_transform(half + i * kPatch * kVec, kVec, out);
#pragma GCC unroll 4
    for (int j = 0; j < kTile; ++j) {
      out[j] = larger(out[j] + bias, all(0.0f));
      if (i < rows && j < columns) store(to + i * dst.row + j * dst.pixel, out[j]);
    }
    if (pool == nullptr) continue;
#pragma GCC unroll 2
    for (int j = 0; j < kTile / 2; ++j) {
      const Vec both = larger(out[2 * j], out[2 * j + 1]);
      if (i % 2 == 0) above[j] = both;
      else if (i < rows && 2 * j < columns) store(maxima + i / 2 * pool->row + j * pool->pixel, larger(above[j], both));
    }
  }
}

// Products of tiles -> pixels, with bias and ReLU, and their maxima.
void write_tiles(const float* products, const float* bias, const Map& dst, const Map* pool, const int* tile, int count) {
  const std::ptrdiff_t apart = std::ptrdiff_t{kRows} * dst.channels;
  for (int t = 0; t < count; ++t) {
    const Area area = area_of(dst, tile[t]);
    const float* from = products + place(t, dst.channels);
    float *to = at(dst, area.y, area.x), *maxima = pool ? at(*pool, area.y / 2, area.x / 2) : nullptr;
    for (int c = 0; c < dst.channels; c += kVec, from += kVec, to += kVec) {
      const Vec b = load(bias + c);
      if (area.rows < kTile || area.columns < kTile) {
        write_tile(from, apart, b, dst, to, area.rows, area.columns, pool, maxima);
      } else if (pool) {
        write_tile(from, apart, b, dst, to, kTile, kTile, pool, maxima);
      } else {
        write_tile(from, apart, b, dst, to, kTile, kTile, nullptr, nullptr);
      }
      if (pool) maxima += kVec;
    }
  }
}

#if defined(__AVX2__)
constexpr const char* kName = "avx2";
bool is_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
constexpr const char* kName = "portable";
bool is_supported() { return true; }
#endif

}  // namespace

const Products kUsual{kName, kMost * kLanes, is_supported, multiply};

void pack(const float* src, int points, int in, int out, int block, float* dst) {
  for (int k = 0; k < points; ++k, src += static_cast<std::ptrdiff_t>(in) * out)
    for (int first = 0; first < out; first += block)
      for (int i = 0; i < in; ++i)
        for (int o = first; o < out && o < first + block; ++o) *dst++ = src[static_cast<std::ptrdiff_t>(i) * out + o];
}

void transform_weights(const float* weights, int in, int out, float* dst) {
  constexpr double g[kPatch][3] = {{1.0 / 4, 0, 0},
                                   {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                   {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                   {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                   {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                   {0, 0, 1}};
  for (int o = 0; o < out; ++o)
    for (int i = 0; i < in; ++i) {
      const float* w = weights + (static_cast<std::ptrdiff_t>(o) * in + i) * 9;
      for (int p = 0; p < kPatch; ++p)
        for (int q = 0; q < kPatch; ++q) {
          double sum = 0;
          for (int a = 0; a < 3; ++a)
            for (int b = 0; b < 3; ++b) sum += g[p][a] * w[a * 3 + b] * g[q][b];
          dst[(static_cast<std::ptrdiff_t>(p * kPatch + q) * in + i) * out + o] = static_cast<float>(sum);
        }
    }
}

std::size_t scratch_size(int in, int out, int count) {
  return static_cast<std::size_t>(kPoints) * (in + out) * ((count + kRows - 1) / kRows * kRows);
}

void conv3x3(const Products& products, const Map& src, const float* packed, const float* bias, const Map& dst,
             const Map* pool, const int* tile, int count, float* scratch) {
  const int in = src.channels, out = dst.channels;
  float* patches = scratch;
  float* sums = scratch + std::ptrdiff_t{kPoints} * in * ((count + kRows - 1) / kRows * kRows);
  read_patches(src, tile, count, patches);
  for (int k = 0; k < kPoints; ++k)
    for (int t = 0; t < count; t += kRows) {
      const std::ptrdiff_t row = std::ptrdiff_t{t} * kPoints + k * kRows;
      products.multiply(patches + row * in, in, in, packed + std::ptrdiff_t{k} * in * out, nullptr, sums + row * out, out,
                        out);
    }
  write_tiles(sums, bias, dst, pool, tile, count);
}

void conv_first(const float* src, std::ptrdiff_t row, const float* weights, const float* bias, int size, int stride,
                const Map& dst) {
  std::ptrdiff_t offset[kTile];  // the last pixel of a narrow tile several times
  for (int x = 0; x < kTile; ++x) offset[x] = std::ptrdiff_t{x < dst.columns ? x : dst.columns - 1} * stride;
  for (int y = 0; y < dst.rows; ++y)
    for (int c = 0; c < dst.channels; c += kVec) {
      // The pixels of a row together: the weights are loaded once, and no sum waits for the one before.
      const float* from = src + y * stride * row;
      const float* weight = weights + c;
      Vec sum[kTile];
      for (int x = 0; x < kTile; ++x) sum[x] = load(bias + c);  // a reference would want the alignment of a register
      for (int i = 0; i < size; ++i, from += row)
        for (int j = 0; j < size; ++j, weight += dst.channels) {
          const Vec w = load(weight);
#pragma GCC unroll 4
          for (int x = 0; x < kTile; ++x) sum[x] += all(from[j + offset[x]]) * w;
        }
      for (int x = 0; x < dst.columns; ++x) store(at(dst, y, x) + c, larger(sum[x], all(0.0f)));
    }
}

void upsample(const Products& products, const Map& src, const float* packed, const float* bias, const Map& dst,
              int tile) {
  const std::ptrdiff_t matrix = std::ptrdiff_t{src.channels} * dst.channels;
  const Area area = area_of(src, tile);
  const bool is_whole = area.columns == kRows;  // else each pixel by itself, in all rows of the product
  for (int y = area.y; y < area.y + area.rows; ++y)
    for (int k = 0; k < 4; ++k)
      for (int x = area.x; x < area.x + area.columns; x += is_whole ? kRows : 1)
        products.multiply(at(src, y, x), is_whole ? src.pixel : 0, src.channels, packed + k * matrix, bias,
                          at(dst, 2 * y + k / 2, 2 * x + k % 2), is_whole ? 2 * dst.pixel : 0, dst.channels);
}

void head(const Map& src, const float* weights, const float* bias, int classes, int scale, float* dst, int tile) {
  const std::ptrdiff_t width = std::ptrdiff_t{src.columns} * scale, plane = width * src.rows * scale;
  const Area area = area_of(src, tile);
  for (int y = area.y; y < area.y + area.rows; ++y)
    for (int x = area.x; x < area.x + area.columns; ++x) {
      const float *in = at(src, y, x), *w = weights;
      for (int i = 0; i < scale; ++i)
        for (int j = 0; j < scale; ++j)
          for (int k = 0; k < classes; ++k, w += src.channels) {
            Vec sum[kLanes / kVec] = {};
            for (int c = 0; c < src.channels; c += kLanes)
              for (int v = 0; v < kLanes; v += kVec) sum[v / kVec] += load(in + c + v) * load(w + c + v);
            float total = bias[k];
            for (int n = 0; n < kLanes; ++n) total += sum[n / kVec][n % kVec];
            dst[k * plane + (y * scale + i) * width + x * scale + j] = total;
          }
    }
}

}  // namespace trtseg::conv
