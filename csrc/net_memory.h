// What the files of `Net` share: errors, and what a slice needs on its way.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "conv.h"
#include "conv_int8.h"
#include "net.h"
#include "ops.h"

namespace trtseg {

constexpr int kMost = 1 << 14;  // rows, columns, channels, classes: so no number of tiles overflows
constexpr int kConvTogether = 8, kTogether = 16;  // tiles: what they need stays in the second cache

[[noreturn]] inline void refuse(const char* name, const std::string& got, const std::string& expected) {
  throw ArgumentError(std::string(name) + ": got " + got + ", expected " + expected + "; another engine may take this net");
}

inline std::string text(int rows, int columns) { return std::to_string(rows) + " x " + std::to_string(columns); }

inline std::vector<float> copied(const float* values, int count) { return {values, values + count}; }

// Weights `[out][in][points]`, or `[in][out][points]` of a transposed convolution, as matrices `[points][in][out]`.
template <class T>
std::vector<T> matrices_of(const T* weights, int points, int in, int out, bool is_transposed) {
  std::vector<T> matrices;
  matrices.reserve(static_cast<std::size_t>(points) * in * out);
  for (std::ptrdiff_t k = 0; k < points; ++k)
    for (std::ptrdiff_t i = 0; i < in; ++i)
      for (std::ptrdiff_t o = 0; o < out; ++o) {
        matrices.push_back(weights[(is_transposed ? i * out + o : o * in + i) * points + k]);
      }
  return matrices;
}

constexpr int kSlice = -1, kLogits = -2;  // instead of the number of a map

inline std::size_t tiles_of(int rows, int columns) {
  return static_cast<std::size_t>(conv::tiles(rows)) * static_cast<std::size_t>(conv::tiles(columns));
}

// A map with its frame of zeros.
template <class T>
struct Framed {
  Framed(int rows, int columns, int channels, T zero)
      : row(std::ptrdiff_t{conv::tiles(columns) * conv::kTile + 2} * channels),
        data(static_cast<std::size_t>(row * (conv::tiles(rows) * conv::kTile + 2)), zero),
        map{data.get() + row + channels, row, channels, rows, columns, channels} {}

  conv::MapOf<T> part(Part p) const {
    conv::MapOf<T> some = map;
    some.data += p.first;
    some.channels = p.count;
    return some;
  }

  std::ptrdiff_t row;
  Buffer<T> data;
  conv::MapOf<T> map;
};

struct Net::Memory {
  explicit Memory(const Net& net)
      : wide(net.columns_ + 2 * net.pad_), padded(static_cast<std::size_t>(wide) * (net.rows_ + 2 * net.pad_)) {
    for (const Size& size : net.maps_) {
      const int rows = size.rows, columns = size.columns, channels = size.channels;
      const auto zero = static_cast<std::uint8_t>(size.zero);
      const bool is_float = size.values == Values::kFloats;
      floats.push_back(is_float ? std::make_unique<Framed<float>>(rows, columns, channels, 0.0f) : nullptr);
      bytes.push_back(is_float ? nullptr : std::make_unique<Framed<std::uint8_t>>(rows, columns, channels, zero));
    }
    for (const Layer& layer : net.layers_) is_empty.emplace_back(tiles_of(layer.grid.rows, layer.grid.columns));
    plan.resize(net.layers_.size());
  }

  conv::Map part(Part p) const { return floats[static_cast<std::size_t>(p.map)]->part(p); }
  conv_int8::Map part_of_bytes(Part p) const { return bytes[static_cast<std::size_t>(p.map)]->part(p); }

  std::ptrdiff_t wide;  // floats of a padded row
  Buffer<float> padded;
  std::vector<std::unique_ptr<Framed<float>>> floats;  // by the number of the map, which is one or the other
  std::vector<std::unique_ptr<Framed<std::uint8_t>>> bytes;
  std::vector<std::vector<unsigned char>> is_empty;  // of each layer, the tiles whose outputs are those of an empty slice
  Plan plan;                                         // tiles to compute
  float* dst = nullptr;
};

}  // namespace trtseg
