// Convolutions of a quantised U-Net on the CPU: activations of eight bits, weights of eight bits, sums of 32.
//
// All sums are exact, so what is made of bytes is the same whatever instructions compute it.
//
// Maps are channels last as in conv.h, of bytes that stand for `byte - zero`, and their frames hold `zero`. A layer
// makes of a sum the byte `round(sum * scale + bias) + zero`, to the nearest even one, as near as bytes come to it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "conv.h"

namespace trtseg::conv_int8 {

using Byte = std::uint8_t;
using Map = conv::MapOf<Byte>;

constexpr int kLanes = conv::kLanes;     // channels that are computed together
constexpr int kGroups = 3;               // eights of output channels that the inner loop takes together
constexpr int kRows = 2, kColumns = 4, kPixels = kRows * kColumns;  // of a tile, that it takes together

// How sums of a layer become bytes.
struct Rounding {
  const float *scale, *bias;  // of each output channel
  int zero;                   // of the map that is written
  int least;                  // the least byte: 0, or `zero` for a ReLU
};

// Weights of a layer: bytes as `pack` arranges them, and for each output channel what its sum starts with.
struct Weights {
  const std::int8_t* packed;
  const std::int32_t* start;
};

// Arranges `points` matrices `[in][out]`, one after the other, for the inner loop: so many channels of an output `together`.
void pack(const std::int8_t* src, int points, int in, int out, int together, std::int8_t* dst);

// The layers, compiled for an instruction set; arguments as in conv.h.
struct Layers {
  const char* name;  // of the instruction set
  int together;      // channels of an output whose weights lie together
  int less;          // what the inner loop takes from each byte: 128 where it multiplies signed ones
  bool (*is_supported)();
  // Nine matrices. Where `pool` is given, it gets the maxima over 2x2 pixels.
  void (*conv3x3)(const Map& src, Weights weights, Rounding rounding, const Map& dst, const Map* pool, const int* tile,
                  int count);
  // Four matrices, of the pixels (0, 0), (0, 1), (1, 0) and (1, 1).
  void (*upsample)(const Map& src, Weights weights, Rounding rounding, const Map& dst, int tile);
  // One matrix, `[in][scale * scale * classes and zeros up to a multiple of kLanes]`; logits are `sum * factor + bias`.
  void (*head)(const Map& src, Weights weights, const float* factor, const float* bias, int classes, int scale,
               float* dst, int tile);
  // The bytes of a tile: `round(value) + zero` of `values` `[kTile][kTile][channels]`, least as above.
  void (*quantise)(const float* values, int zero, int least, const Map& dst, int tile);
};

// AVX-512 with VNNI, AVX2 with VNNI, AVX2; products of matrices and dot products of Arm; and what every processor runs.
extern const Layers kAvx512Vnni, kAvxVnni, kAvx2, kI8mm, kAsimddp, kPortable;

}  // namespace trtseg::conv_int8
