// What a slice needs on its way through a net.
#pragma once

#include <memory>
#include <vector>

#include "conv.h"
#include "net.h"

namespace trtseg {

constexpr int kSlice = -1, kLogits = -2;  // instead of the number of a map

inline std::size_t tiles_of(int rows, int columns) {
  return static_cast<std::size_t>(conv::tiles(rows)) * static_cast<std::size_t>(conv::tiles(columns));
}

// A map with its frame of zeros.
struct Framed {
  Framed(int rows, int columns, int channels)
      : row(std::ptrdiff_t{conv::tiles(columns) * conv::kTile + 2} * channels),
        data(static_cast<std::size_t>(row * (conv::tiles(rows) * conv::kTile + 2))),
        map{data.get() + row + channels, row, channels, rows, columns, channels} {}

  std::ptrdiff_t row;
  Floats data;
  conv::Map map;
};

struct Net::Memory {
  explicit Memory(const Net& net)
      : wide(net.columns_ + 2 * net.pad_), padded(static_cast<std::size_t>(wide) * (net.rows_ + 2 * net.pad_)) {
    for (const Size& size : net.maps_) maps.push_back(std::make_unique<Framed>(size.rows, size.columns, size.channels));
    for (const Layer& layer : net.layers_) is_empty.emplace_back(tiles_of(layer.grid.rows, layer.grid.columns));
    plan.resize(net.layers_.size());
  }

  conv::Map part(Part p) const {
    conv::Map map = maps[static_cast<std::size_t>(p.map)]->map;
    map.data += p.first;
    map.channels = p.count;
    return map;
  }

  std::ptrdiff_t wide;  // floats of a padded row
  Floats padded;
  std::vector<std::unique_ptr<Framed>> maps;
  std::vector<std::vector<unsigned char>> is_empty;  // of each layer, the tiles whose outputs are those of an empty slice
  Plan plan;                                         // tiles to compute
  float* dst = nullptr;
};

}  // namespace trtseg
