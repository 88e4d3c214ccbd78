// Which tiles of which layers are computed for a slice.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "net_memory.h"

namespace trtseg {
namespace {

Range of_tile(int number, int pixels) { return {number * conv::kTile, std::min(pixels, (number + 1) * conv::kTile)}; }

// Flags of columns, added up: how many before each are set.
class Line {
 public:
  // Sets the flags of columns in which any of these rows has one.
  void gather(const unsigned char* flags, int columns, Range y) {
    any_.assign(static_cast<std::size_t>(columns), 0);
    before_.resize(any_.size() + 1);
    unsigned char* __restrict to = any_.data();
    for (int row = y.first; row < y.last; ++row) {
      const unsigned char* __restrict from = flags + std::ptrdiff_t{row} * columns;
      for (int k = 0; k < columns; ++k) to[k] |= from[k];
    }
    int sum = 0, *before = before_.data();
    for (int k = 0; k < columns; ++k) {
      before[k] = sum;
      sum += to[k];
    }
    before[columns] = sum;
  }

  bool any(Range x) const {
    const int end = static_cast<int>(any_.size());
    return before_[static_cast<std::size_t>(std::min(x.last, end))] > before_[static_cast<std::size_t>(std::max(x.first, 0))];
  }

 private:
  std::vector<unsigned char> any_;
  std::vector<int> before_;
};

// Flags of the pixels of a map, of the slice or of the logits. Ranges may reach beyond them.
class Marks {
 public:
  Marks(int rows, int columns) : rows_(rows), columns_(columns), own_(static_cast<std::size_t>(rows) * columns) {}
  Marks(int rows, int columns, const unsigned char* flags) : rows_(rows), columns_(columns), flags_(flags) {}

  void gather(Range y, Line& line) const {
    line.gather(flags_ ? flags_ : own_.data(), columns_, {std::max(0, y.first), std::min(rows_, y.last)});
  }

  void set(Range y, Range x) {
    const int left = std::max(0, x.first), right = std::min(columns_, x.last);
    for (int row = std::max(0, y.first); row < std::min(rows_, y.last); ++row)
      for (int k = left; k < right; ++k) own_[static_cast<std::size_t>(std::ptrdiff_t{row} * columns_ + k)] = 1;
  }

 private:
  int rows_, columns_;
  std::vector<unsigned char> own_;
  const unsigned char* flags_ = nullptr;
};

// Copies pixels [x, x1) of a row from a map to another of the same size.
template <class T>
void copy_pixels(const conv::MapOf<T>& from, const conv::MapOf<T>& to, int y, int x, int x1) {
  for (; x < x1; ++x) {
    std::memcpy(to.data + y * to.row + x * to.pixel, from.data + y * from.row + x * from.pixel,
                static_cast<std::size_t>(to.channels) * sizeof(T));
  }
}

}  // namespace

// Forward: plans the tiles that may differ from those of an empty slice, since what they are computed from does.
void Net::find_differing(Memory& own, const float* slice) const {
  std::vector<Marks> differs;  // of each map
  for (const Size& size : maps_) differs.emplace_back(size.rows, size.columns);
  std::vector<unsigned char> pixels(static_cast<std::size_t>(rows_) * columns_);
  for (std::size_t k = 0; k < pixels.size(); ++k) {
    std::uint32_t bits;  // -0 is not 0
    std::memcpy(&bits, slice + k, sizeof bits);
    pixels[k] = bits != 0;
  }
  const Marks in_slice(rows_, columns_, pixels.data());
  Line line;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const Marks& src = layer.src == kSlice ? in_slice : differs[static_cast<std::size_t>(layer.src)];
    own.plan[i].clear();
    const int down = conv::tiles(layer.grid.rows), across = conv::tiles(layer.grid.columns);
    for (int v = 0; v < down; ++v) {
      const Range y = of_tile(v, layer.grid.rows);
      src.gather(layer.reach.of(y), line);
      for (int h = 0; h < across; ++h) {
        const Range x = of_tile(h, layer.grid.columns);
        if (!line.any(layer.reach.of(x))) continue;
        own.plan[i].push_back(v * across + h);
        for (const Output& out : layer.outputs) {
          if (out.part.map != kLogits) differs[static_cast<std::size_t>(out.part.map)].set(out.of(y), out.of(x));
        }
      }
    }
  }
}

// Back from the logits that are wanted: keeps of the plan what they depend on. What else they depend on is taken from
// the empty slice.
void Net::find_needed(Memory& own, const unsigned char* wanted) const {
  std::vector<Marks> needed;  // of each map
  for (const Size& size : maps_) needed.emplace_back(size.rows, size.columns);
  const std::size_t pixels = static_cast<std::size_t>(rows_) * columns_;
  if (wanted != nullptr) std::fill_n(own.dst, pixels * static_cast<std::size_t>(classes_), kUnwanted);
  const std::vector<unsigned char> everything(wanted ? 0 : pixels, 1);
  const Marks logits(rows_, columns_, wanted ? wanted : everything.data());
  std::vector<Line> lines;
  std::vector<int> found;
  for (std::size_t i = layers_.size(); i-- > 0;) {
    const Layer& layer = layers_[i];
    const int down = conv::tiles(layer.grid.rows), across = conv::tiles(layer.grid.columns);
    lines.resize(layer.outputs.size());
    found.clear();
    auto differing = own.plan[i].begin();
    for (int v = 0; v < down; ++v) {
      const Range y = of_tile(v, layer.grid.rows);
      for (std::size_t k = 0; k < lines.size(); ++k) {
        const Output& out = layer.outputs[k];
        const Marks& marks = out.part.map == kLogits ? logits : needed[static_cast<std::size_t>(out.part.map)];
        marks.gather(out.of(y), lines[k]);
      }
      for (int h = 0; h < across; ++h) {
        const int tile = v * across + h;
        const bool is_empty = differing == own.plan[i].end() || *differing != tile;
        if (!is_empty) ++differing;
        const Range x = of_tile(h, layer.grid.columns);
        bool is_needed = false;
        for (std::size_t k = 0; k < lines.size(); ++k) {
          is_needed = is_needed || lines[k].any(layer.outputs[k].of(x));
        }
        if (!is_needed) continue;
        if (is_empty) {
          take_empty(own, i, tile);
          continue;
        }
        found.push_back(tile);
        own.is_empty[i][static_cast<std::size_t>(tile)] = false;
        if (layer.src != kSlice) {
          needed[static_cast<std::size_t>(layer.src)].set(layer.reach.of(y), layer.reach.of(x));
        }
      }
    }
    own.plan[i].swap(found);
  }
}

void Net::take_empty(Memory& own, std::size_t layer, int tile) const {
  const Size& grid = layers_[layer].grid;
  const int across = conv::tiles(grid.columns);
  const Range rows = of_tile(tile / across, grid.rows), columns = of_tile(tile % across, grid.columns);
  unsigned char& is_empty = own.is_empty[layer][static_cast<std::size_t>(tile)];
  for (const Output& out : layers_[layer].outputs) {
    const auto [x, x1] = out.of(columns);
    const auto [y0, y1] = out.of(rows);
    for (int y = y0; y < y1; ++y) {
      if (out.part.map == kLogits) {  // the caller's, new each time
        for (int c = 0; c < classes_; ++c) {
          const std::ptrdiff_t first = (std::ptrdiff_t{c} * rows_ + y) * columns_ + x;
          std::memcpy(own.dst + first, empty_->dst + first, static_cast<std::size_t>(x1 - x) * sizeof(float));
        }
      } else if (!is_empty && maps_[static_cast<std::size_t>(out.part.map)].values == Values::kFloats) {
        copy_pixels(empty_->part(out.part), own.part(out.part), y, x, x1);
      } else if (!is_empty) {
        copy_pixels(empty_->part_of_bytes(out.part), own.part_of_bytes(out.part), y, x, x1);
      }
    }
  }
  is_empty = true;
}

}  // namespace trtseg
