// Which tiles of which layers are computed for a slice.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "net_memory.h"

namespace trtseg {
namespace {

// Flags of the pixels of a map or of the logits.
class Marks {
 public:
  Marks(int rows, int columns) : rows_(rows), columns_(columns), own_(static_cast<std::size_t>(rows) * columns) {}
  Marks(int rows, int columns, const unsigned char* flags) : rows_(rows), columns_(columns), flags_(flags) {}

  // Whether a pixel of rows [y0, y1) and columns [x0, x1) is marked; they may reach beyond the map.
  bool any(int y0, int y1, int x0, int x1) const {
    const unsigned char* flags = flags_ ? flags_ : own_.data();
    for (int y = std::max(0, y0); y < std::min(rows_, y1); ++y)
      for (int x = std::max(0, x0); x < std::min(columns_, x1); ++x)
        if (flags[std::ptrdiff_t{y} * columns_ + x]) return true;
    return false;
  }

  void set(int y0, int y1, int x0, int x1) {
    const int left = std::max(0, x0), width = std::min(columns_, x1) - left;
    for (int y = std::max(0, y0); y < std::min(rows_, y1); ++y)
      std::memset(own_.data() + std::ptrdiff_t{y} * columns_ + left, 1, static_cast<std::size_t>(width));
  }

 private:
  int rows_, columns_;
  std::vector<unsigned char> own_;
  const unsigned char* flags_ = nullptr;
};

// The pixels of a layer that a tile covers.
struct Span {
  Span(int tile, int rows, int columns)
      : y(tile / conv::tiles(columns) * conv::kTile),
        x(tile % conv::tiles(columns) * conv::kTile),
        y1(std::min(rows, y + conv::kTile)),
        x1(std::min(columns, x + conv::kTile)) {}
  int y, x, y1, x1;
};

}  // namespace

void Net::plan(Memory& own, const float* slice, const unsigned char* wanted) const {
  // Forward: what differs from an empty slice, and from what is computed from one.
  std::vector<Marks> differs, needed;
  for (const Size& size : maps_) {
    differs.emplace_back(size.rows, size.columns);
    needed.emplace_back(size.rows, size.columns);
  }
  std::vector<unsigned char> pixels(static_cast<std::size_t>(rows_) * columns_);
  for (std::size_t k = 0; k < pixels.size(); ++k) {
    std::uint32_t bits;  // -0 is no 0
    std::memcpy(&bits, slice + k, sizeof bits);
    pixels[k] = bits != 0;
  }
  const Marks in_slice(rows_, columns_, pixels.data()), logits(rows_, columns_, wanted);
  const auto source = [](const Layer& layer, const Span& at, auto&& call) {
    const Reach& reach = layer.reach;  // beyond the map there are zeros for every slice
    return call(at.y * reach.stride - reach.before, (at.y1 - 1) * reach.stride + reach.after + 1,
                at.x * reach.stride - reach.before - reach.left, (at.x1 - 1) * reach.stride + reach.after + 1);
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const Marks& src = layer.src == kSlice ? in_slice : differs[static_cast<std::size_t>(layer.src)];
    own.plan[i].clear();
    for (int tile = 0; tile < static_cast<int>(own.is_empty[i].size()); ++tile) {
      const Span at(tile, layer.grid.rows, layer.grid.columns);
      if (!source(layer, at, [&](int y, int y1, int x, int x1) { return src.any(y, y1, x, x1); })) continue;
      own.plan[i].push_back(tile);
      for (const Output& out : layer.outputs) {
        if (out.part.map == kLogits) continue;
        differs[static_cast<std::size_t>(out.part.map)].set(at.y * out.up / out.down, at.y1 * out.up / out.down,
                                                            at.x * out.up / out.down, at.x1 * out.up / out.down);
      }
    }
  }

  // Back from the logits: what of it is needed. The rest of what is needed is taken from an empty slice.
  if (wanted != nullptr) std::fill_n(own.dst, pixels.size() * static_cast<std::size_t>(classes_), kUnwanted);
  for (std::size_t i = layers_.size(); i-- > 0;) {
    const Layer& layer = layers_[i];
    std::vector<int> found;
    auto differing = own.plan[i].begin();
    for (int tile = 0; tile < static_cast<int>(own.is_empty[i].size()); ++tile) {
      const bool is_empty = differing == own.plan[i].end() || *differing != tile;
      if (!is_empty) ++differing;
      const Span at(tile, layer.grid.rows, layer.grid.columns);
      const bool is_needed = std::any_of(layer.outputs.begin(), layer.outputs.end(), [&](const Output& out) {
        if (out.part.map == kLogits && wanted == nullptr) return true;
        const Marks& marks = out.part.map == kLogits ? logits : needed[static_cast<std::size_t>(out.part.map)];
        return marks.any(at.y * out.up / out.down, at.y1 * out.up / out.down, at.x * out.up / out.down,
                         at.x1 * out.up / out.down);
      });
      if (!is_needed) continue;
      if (is_empty) {
        take_empty(own, i, tile);
        continue;
      }
      found.push_back(tile);
      own.is_empty[i][static_cast<std::size_t>(tile)] = false;
      if (layer.src == kSlice) continue;
      Marks& src = needed[static_cast<std::size_t>(layer.src)];
      source(layer, at, [&](int y, int y1, int x, int x1) { src.set(y, y1, x, x1); });
    }
    own.plan[i] = std::move(found);
  }
}

void Net::take_empty(Memory& own, std::size_t number, int tile) const {
  const Layer& layer = layers_[number];
  const Span at(tile, layer.grid.rows, layer.grid.columns);
  unsigned char& is_empty = own.is_empty[number][static_cast<std::size_t>(tile)];
  for (const Output& out : layer.outputs) {
    const int y1 = at.y1 * out.up / out.down, x = at.x * out.up / out.down, count = at.x1 * out.up / out.down - x;
    for (int y = at.y * out.up / out.down; y < y1; ++y) {
      if (out.part.map == kLogits) {
        for (int c = 0; c < classes_; ++c) {
          const std::ptrdiff_t first = (std::ptrdiff_t{c} * rows_ + y) * columns_ + x;
          std::memcpy(own.dst + first, empty_->dst + first, static_cast<std::size_t>(count) * sizeof(float));
        }
      } else if (!is_empty) {
        const conv::Map from = empty_->part(out.part), to = own.part(out.part);
        for (int k = x; k < x + count; ++k) {
          std::memcpy(to.data + y * to.row + k * to.pixel, from.data + y * from.row + k * from.pixel,
                      static_cast<std::size_t>(out.part.count) * sizeof(float));
        }
      }
    }
  }
  is_empty = layer.outputs.front().part.map != kLogits;  // which somebody else has
}

}  // namespace trtseg
