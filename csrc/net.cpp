#include "net.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "conv.h"
#include "ops.h"
#include "parallel.h"

namespace trtseg {

using conv::Map;

Floats::Floats(std::size_t count) : data_(static_cast<float*>(::operator new[](count * sizeof(float), kAlign))) {
  std::memset(data_.get(), 0, count * sizeof(float));
}

namespace {

constexpr int kTilesTogether = 8;  // of a 3x3 convolution: what they need stays in the second cache
constexpr int kRowsTogether = 4;   // of the other layers

// A map with its frame of zeros.
struct Framed {
  Framed(int rows, int columns, int channels)
      : row(std::ptrdiff_t{conv::tiles(columns) * conv::kTile + 2} * channels),
        data(static_cast<std::size_t>(row * (conv::tiles(rows) * conv::kTile + 2))),
        map{data.get() + row + channels, row, channels, rows, columns, channels} {}

  std::ptrdiff_t row;
  Floats data;
  Map map;
};

int units_of(int count, int together) { return (count + together - 1) / together; }

// Calls fn(row) for the rows of a unit.
template <typename Fn>
void for_rows(int unit, int rows, Fn fn) {
  for (int y = unit * kRowsTogether; y < std::min(rows, (unit + 1) * kRowsTogether); ++y) fn(y);
}

std::vector<float> copied(const float* values, int count) { return {values, values + count}; }

[[noreturn]] void refuse(const char* name, const std::string& got, const std::string& expected) {
  throw ArgumentError(std::string(name) + ": got " + got + ", expected " + expected + "; another engine may take this net");
}

std::string text(int rows, int columns) { return std::to_string(rows) + " x " + std::to_string(columns); }

}  // namespace

// What a slice needs on its way.
struct Net::Memory {
  explicit Memory(const Net& net) : padded(net.padded_) {
    for (const Size& size : net.maps_) maps.push_back(std::make_unique<Framed>(size.rows, size.columns, size.channels));
  }

  Map part(Part p) const {
    Map map = maps[static_cast<std::size_t>(p.map)]->map;
    map.data += p.first;
    map.channels = p.count;
    return map;
  }

  std::vector<std::unique_ptr<Framed>> maps;
  Floats padded;
  const float* src = nullptr;
  float* dst = nullptr;
};

// Threads that share a slice.
class Net::Team {
 public:
  Team(const Memory& memory, const std::vector<Layer>& layers, int members)
      : memory_(memory),
        layers_(layers),
        members_(members),
        taken_(layers.size() * static_cast<std::size_t>(members)),
        done_(layers.size()) {}

  // The work of a member. It begins with its own share of a layer, since what it has made lies in its cache, and then
  // helps the others. No member waits for one that has not begun.
  void work(int member, float* scratch) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      for (int k = 0; k < members_; ++k) {
        const int share = (member + k) % members_;
        const int first = layer.units * share / members_, last = layer.units * (share + 1) / members_;
        std::atomic<int>& taken = taken_[i * static_cast<std::size_t>(members_) + static_cast<std::size_t>(share)];
        for (int unit = first + taken++; unit < last; unit = first + taken++) {
          layer.compute(memory_, unit, scratch);
          ++done_[i];
        }
      }
      for (int tries = 0; done_[i] < layer.units; ++tries) {
        if (tries > kTries) std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kTries = 1000;  // a layer ends within microseconds

  const Memory& memory_;
  const std::vector<Layer>& layers_;
  const int members_;
  std::vector<std::atomic<int>> taken_, done_;  // units, of each share and layer, and of each layer
};

Net::Net(int rows, int columns, int classes) : rows_(rows), columns_(columns), classes_(classes) {
  if (rows < 1 || columns < 1 || classes < 1) refuse("net", text(rows, columns), "at least one pixel and one class");
}

Net::~Net() = default;

int Net::add_map(int rows, int columns, int channels) {
  if (rows < conv::kTile || columns < conv::kTile) refuse("map", text(rows, columns), "at least 4 x 4");
  if (channels < 1 || channels % conv::kLanes) refuse("map", std::to_string(channels) + " channels", "a multiple of 8");
  maps_.push_back({rows, columns, channels});
  memories_.clear();
  return static_cast<int>(maps_.size()) - 1;
}

const Net::Size& Net::check(Part part, const char* name) const {
  if (part.map < 0 || part.map >= static_cast<int>(maps_.size())) refuse(name, "no map", "one that was added");
  const Size& size = maps_[static_cast<std::size_t>(part.map)];
  if (part.first < 0 || part.count < 1 || part.first % conv::kLanes || part.count % conv::kLanes ||
      part.first > size.channels - part.count) {
    refuse(name, std::to_string(part.count) + " channels from " + std::to_string(part.first),
           "eights of " + std::to_string(size.channels));
  }
  return size;
}

void Net::add(int units, std::function<void(const Memory&, int, float*)> compute) {
  if (has_head_) refuse("net", "a layer after the head", "the head last");
  layers_.push_back({units, std::move(compute)});
  memories_.clear();
  scratches_.clear();
}

void Net::add_first(Part dst, const float* weights, const float* bias, int size, int stride, int pad) {
  const Size out = check(dst, "dst");
  const int high = rows_ + 2 * pad, wide = columns_ + 2 * pad;
  if (size < 1 || stride < 1 || pad < 0 || high < size || wide < size || (high - size) / stride + 1 != out.rows ||
      (wide - size) / stride + 1 != out.columns) {
    refuse("dst", text(out.rows, out.columns), "what the convolution gives");
  }
  padded_ = std::max(padded_, static_cast<std::size_t>(high) * static_cast<std::size_t>(wide));
  add(units_of(rows_, kRowsTogether), [=](const Memory& memory, int unit, float*) {
    for_rows(unit, rows_, [&](int y) {
      const std::ptrdiff_t at = std::ptrdiff_t{y + pad} * wide + pad, from = std::ptrdiff_t{y} * columns_;
      std::memcpy(memory.padded.get() + at, memory.src + from, static_cast<std::size_t>(columns_) * sizeof(float));
    });
  });
  std::vector<float> own;  // [size][size][out]
  for (int k = 0; k < size * size; ++k)
    for (int o = 0; o < dst.count; ++o) own.push_back(weights[o * size * size + k]);
  add(units_of(out.rows, kRowsTogether),
      [=, own = std::move(own), bias = copied(bias, dst.count)](const Memory& memory, int unit, float*) {
        for_rows(unit, out.rows, [&](int y) {
          const float* from = memory.padded.get() + std::ptrdiff_t{y} * stride * wide;
          conv::conv_first(from, wide, own.data(), bias.data(), size, stride, memory.part(dst), y);
        });
      });
}

void Net::add_conv(Part src, Part dst, const Part* pool, const float* weights, const float* bias) {
  const Size in = check(src, "src"), out = check(dst, "dst");
  if (src.map == dst.map || in.rows != out.rows || in.columns != out.columns) {
    refuse("dst", text(out.rows, out.columns), "another map of " + text(in.rows, in.columns));
  }
  if (pool != nullptr) {
    const Size half = check(*pool, "pool");
    if (half.rows * 2 != out.rows || half.columns * 2 != out.columns || pool->count != dst.count) {
      refuse("pool", text(half.rows, half.columns), "half of dst, with as many channels");
    }
  }
  const std::size_t count = conv::packed_size(conv::kPoints, src.count, dst.count);
  std::vector<float> transformed(count);
  conv::transform_weights(weights, src.count, dst.count, transformed.data());
  const auto packed = std::make_shared<Floats>(count);
  conv::pack(transformed.data(), conv::kPoints, src.count, dst.count, packed->get());
  const int tiles = conv::tiles(out.rows) * conv::tiles(out.columns);
  scratch_ = std::max(scratch_, conv::scratch_size(src.count, dst.count, kTilesTogether));
  add(units_of(tiles, kTilesTogether), [=, has_pool = pool != nullptr, pool = pool ? *pool : Part{},
                                        bias = copied(bias, dst.count)](const Memory& memory, int unit, float* scratch) {
    const int first = unit * kTilesTogether;
    const Map maxima = has_pool ? memory.part(pool) : Map{};
    conv::conv3x3(memory.part(src), packed->get(), bias.data(), memory.part(dst), has_pool ? &maxima : nullptr, first,
                  std::min(kTilesTogether, tiles - first), scratch);
  });
}

void Net::add_up(Part src, Part dst, const float* weights, const float* bias) {
  const Size in = check(src, "src"), out = check(dst, "dst");
  if (in.rows * 2 != out.rows || in.columns * 2 != out.columns) {
    refuse("dst", text(out.rows, out.columns), "twice " + text(in.rows, in.columns));
  }
  constexpr int kPoints = 4;
  const std::size_t count = conv::packed_size(kPoints, src.count, dst.count);
  std::vector<float> matrices(count);  // [2][2][in][out]
  for (int i = 0; i < src.count; ++i)
    for (int o = 0; o < dst.count; ++o)
      for (int k = 0; k < kPoints; ++k) {
        matrices[static_cast<std::size_t>((k * src.count + i) * dst.count + o)] = *weights++;
      }
  const auto packed = std::make_shared<Floats>(count);
  conv::pack(matrices.data(), kPoints, src.count, dst.count, packed->get());
  add(units_of(in.rows, kRowsTogether), [=, bias = copied(bias, dst.count)](const Memory& memory, int unit, float*) {
    for_rows(unit, in.rows, [&](int y) {
      conv::upsample(memory.part(src), packed->get(), bias.data(), memory.part(dst), y);
    });
  });
}

void Net::add_head(Part src, const float* weights, const float* bias, int scale) {
  const Size in = check(src, "src");
  if (scale < 1 || in.rows * scale != rows_ || in.columns * scale != columns_) {
    refuse("src", text(in.rows, in.columns), "a map that the head brings to " + text(rows_, columns_));
  }
  std::vector<float> own;  // [scale][scale][classes][in]
  for (int k = 0; k < scale * scale; ++k)
    for (int c = 0; c < classes_; ++c)
      for (int i = 0; i < src.count; ++i) own.push_back(weights[(i * classes_ + c) * scale * scale + k]);
  add(units_of(in.rows, kRowsTogether),
      [=, own = std::move(own), bias = copied(bias, classes_)](const Memory& memory, int unit, float*) {
        for_rows(unit, in.rows, [&](int y) {
          conv::head(memory.part(src), own.data(), bias.data(), classes_, scale, memory.dst, y);
        });
      });
  has_head_ = true;
}

void Net::run(const float* src, float* dst, std::int64_t n, int threads) {
  if (!has_head_) refuse("net", "no head", "one");
  const int most = threads > 0 ? threads : available_cpus();
  const int left = static_cast<int>(n % most);
  while (static_cast<int>(memories_.size()) < (n >= most ? most : left)) memories_.push_back(std::make_unique<Memory>(*this));
  while (static_cast<int>(scratches_.size()) < most) scratches_.emplace_back(scratch_);
  const auto memory_of = [&](std::int64_t number, std::int64_t slice) -> const Memory& {
    Memory& own = *memories_[static_cast<std::size_t>(number)];
    own.src = src + slice * rows_ * columns_;
    own.dst = dst + slice * rows_ * columns_ * classes_;
    return own;
  };
  constexpr std::int64_t kWork = std::int64_t{1} << 40;  // always pays for threads

  // Where there are enough slices, each thread takes whole ones, so that none waits for another.
  std::atomic<std::int64_t> next{0};
  parallel_for(n >= most ? most : 0, most, kWork, [&](std::int64_t thread) {
    float* scratch = scratches_[static_cast<std::size_t>(thread)].get();
    for (std::int64_t slice = next++; slice < n - left; slice = next++) {
      const Memory& own = memory_of(thread, slice);
      for (const Layer& layer : layers_)
        for (int unit = 0; unit < layer.units; ++unit) layer.compute(own, unit, scratch);
    }
  });

  // Several threads share each slice that is left.
  std::vector<std::unique_ptr<Team>> teams;
  for (int i = 0; i < left; ++i) {
    teams.push_back(std::make_unique<Team>(memory_of(i, n - left + i), layers_, (most - i + left - 1) / left));
  }
  parallel_for(left ? most : 0, most, kWork, [&](std::int64_t thread) {
    const int number = static_cast<int>(thread);
    teams[static_cast<std::size_t>(number % left)]->work(number / left, scratches_[static_cast<std::size_t>(thread)].get());
  });
}

}  // namespace trtseg
