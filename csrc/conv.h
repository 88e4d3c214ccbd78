// Convolutions of a U-Net on the CPU, in FP32, for a part of a layer each, so that threads can share a layer.
//
// 3x3 convolutions are Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): an output tile of 4x4 pixels takes 36
// products a pair of channels instead of 144. What a call computes does not depend on how a layer is divided.
//
// Maps are channels last: `[rows][columns][channels]`, channels a multiple of kLanes, with a frame of zeros around them.
#pragma once

#include <cstddef>

namespace trtseg::conv {

constexpr int kLanes = 8;                 // channels that are computed together
constexpr int kTile = 4;                  // rows and columns of an output tile
constexpr int kPatch = kTile + 2;         // rows and columns that it is computed from
constexpr int kPoints = kPatch * kPatch;  // products a tile and pair of channels
constexpr int kRows = 4;                  // pixels or patches that are multiplied together

// A map, or some of the channels of one, of values of a type.
template <class T>
struct MapOf {
  T* data;                // channel 0 of the first pixel inside the frame
  std::ptrdiff_t row;     // values from a row to the next
  std::ptrdiff_t pixel;   // values from a pixel to the next
  int rows, columns, channels;
};
using Map = MapOf<float>;

// Products of matrices, compiled for an instruction set. Sums are in one order and fused: all give the same bits.
struct Products {
  const char* name;  // of the instruction set
  int block;         // output channels that lie together in a packed matrix
  bool (*is_supported)();
  // kRows rows `[in]` of `a`, `apart` floats apart, times a packed matrix `[in][out]`: rows of `c`, which begin with `bias`
  // where that is given.
  void (*multiply)(const float* a, std::ptrdiff_t apart, int in, const float* packed, const float* bias, float* c,
                   std::ptrdiff_t c_apart, int out);
};

// AVX-512, and what all functions here are compiled for: AVX2 and FMA on x86-64.
extern const Products kAvx512, kUsual;

// Arranges `points` matrices `[in][out]`, one after the other in `src`: in blocks `[in][block]`, of which the last may be
// narrower.
void pack(const float* src, int points, int in, int out, int block, float* dst);

// Transforms 3x3 weights `[out][in][3][3]` to kPoints matrices `[in][out]`.
void transform_weights(const float* weights, int in, int out, float* dst);

// Tiles in a row of a map, and rows of tiles. A map's tiles are counted along its rows.
static inline int tiles(int pixels) { return (pixels + kTile - 1) / kTile; }

// The pixels of a map that a tile covers, from row `y` and column `x` on.
struct Area {
  int y, x, rows, columns;
};

template <class T>
static inline Area area_of(const MapOf<T>& map, int tile) {
  const int y = tile / tiles(map.columns) * kTile, x = tile % tiles(map.columns) * kTile;
  return {y, x, map.rows - y < kTile ? map.rows - y : kTile, map.columns - x < kTile ? map.columns - x : kTile};
}

// Floats of scratch memory that `conv3x3` takes for `count` tiles.
std::size_t scratch_size(int in, int out, int count);

// 3x3 convolution with bias and ReLU, of `count` tiles of `dst`. Where `pool` is given, it gets the maxima over 2x2
// pixels. The frame of `src` must reach as far as the last tile and one pixel more.
void conv3x3(const Products& products, const Map& src, const float* packed, const float* bias, const Map& dst,
             const Map* pool, const int* tile, int count, float* scratch);

// Convolution of one channel by a kernel of size x size, with bias and ReLU, to `dst`, which is no larger than a tile.
// `src` has rows of `row` floats and begins where the kernel of the first pixel does. Weights `[size][size][out]`.
void conv_first(const float* src, std::ptrdiff_t row, const float* weights, const float* bias, int size, int stride,
                const Map& dst);

// Transposed 2x2 convolution with stride 2 and bias, of a tile of `src`. Weights: four matrices `[in][out]`, packed.
void upsample(const Products& products, const Map& src, const float* packed, const float* bias, const Map& dst,
              int tile);

// Logits of a tile of `src`: scale x scale pixels of each plane of `dst` `[classes][rows * scale][columns * scale]` for a
// pixel of `src`. Weights `[scale][scale][classes][in]`.
void head(const Map& src, const float* weights, const float* bias, int classes, int scale, float* dst, int tile);

}  // namespace trtseg::conv
