#include "net.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "conv.h"
#include "net_memory.h"
#include "parallel.h"

namespace trtseg {

using conv::Map;

namespace {

// The most logits of a head for each pixel: of eight channels they have 2 GiB of weights in INT8, beyond any ONNX file.
constexpr std::int64_t kMostLogits = std::int64_t{1} << 28;

// How many threads a number of them stands for.
int counted(int threads) {
  check_threads(threads);
  return std::min(threads > 0 ? threads : available_cpus(), 512);
}

}  // namespace

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
      const std::vector<int>& tiles = memory_.plan[i];
      const int units = layers_[i].units(tiles.size());
      for (int k = 0; k < members_; ++k) {
        const int share = (member + k) % members_;
        const int first = units * share / members_, last = units * (share + 1) / members_;
        std::atomic<int>& taken = taken_[i * static_cast<std::size_t>(members_) + static_cast<std::size_t>(share)];
        for (int unit = first + taken++; unit < last; unit = first + taken++) {
          layers_[i].work(memory_, tiles, unit, scratch);
          ++done_[i];
        }
      }
      for (int tries = 0; done_[i] < units; ++tries) {
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

int Net::Layer::units(std::size_t tiles) const { return (static_cast<int>(tiles) + together - 1) / together; }

void Net::Layer::work(const Memory& memory, const std::vector<int>& tiles, int unit, float* scratch) const {
  const int first = unit * together;
  compute(memory, tiles.data() + first, std::min(together, static_cast<int>(tiles.size()) - first), scratch);
}

Net::Net(int rows, int columns, int classes, const conv::Products& fp32, const conv_int8::Layers& int8)
    : rows_(rows), columns_(columns), classes_(classes), fp32_(fp32), int8_(int8) {
  if (std::min({rows, columns, classes}) < 1 || std::max({rows, columns, classes}) > kMost) {
    refuse("net", text(rows, columns) + " and " + std::to_string(classes) + " classes", "from 1 to 16384 of each");
  }
}

Net::~Net() = default;

Net::Alone::Alone(std::atomic_flag& is_busy) : is_busy_(is_busy) {
  if (is_busy.test_and_set()) throw ArgumentError("net: got a call during another one, expected one at a time");
}

int Net::add_map(int rows, int columns, int channels) { return add_size({rows, columns, channels, Values::kFloats, 0}); }

int Net::add_bytes(int rows, int columns, int channels, int zero) {
  if (zero < 0 || zero > 255) refuse("zero", std::to_string(zero), "from 0 to 255");
  return add_size({rows, columns, channels, Values::kBytes, zero});
}

int Net::add_size(const Size& size) {
  const Alone alone(is_busy_);
  if (std::min(size.rows, size.columns) < conv::kTile || std::max(size.rows, size.columns) > kMost) {
    refuse("map", text(size.rows, size.columns), "from 4 x 4 to 16384 x 16384");
  }
  if (size.channels < 1 || size.channels > kMost || size.channels % conv::kLanes) {
    refuse("map", std::to_string(size.channels) + " channels", "a multiple of 8 up to 16384");
  }
  maps_.reserve(maps_.size() + 1);  // where memory ends, a map is added to both or to none
  made_.emplace_back(size.channels);
  maps_.push_back(size);
  empty_.reset();
  memories_.clear();
  return static_cast<int>(maps_.size()) - 1;
}

const Net::Size& Net::check(Part part, const char* name, bool is_made) const {
  if (part.map < 0 || part.map >= static_cast<int>(maps_.size())) refuse(name, "no map", "one that was added");
  const Size& size = maps_[static_cast<std::size_t>(part.map)];
  if (part.first < 0 || part.count < 1 || part.first % conv::kLanes || part.count % conv::kLanes ||
      part.first > size.channels - part.count) {
    refuse(name, std::to_string(part.count) + " channels from " + std::to_string(part.first),
           "eights of " + std::to_string(size.channels));
  }
  const auto first = made_[static_cast<std::size_t>(part.map)].begin() + part.first;
  if (std::all_of(first, first + part.count, [=](bool made) { return made == is_made; })) return size;
  if (is_made) refuse(name, "channels that no layer has made", "those of layers before");
  refuse(name, "channels that a layer has made", "those of no layer");
}

void Net::check_values(std::initializer_list<Part> parts, Values values) const {
  for (const Part& part : parts) {
    if (maps_[static_cast<std::size_t>(part.map)].values == values) continue;
    const bool are_floats = values == Values::kFloats;
    refuse("map", are_floats ? "one of bytes" : "one of floats", are_floats ? "one of floats" : "one of bytes");
  }
}

std::vector<Net::Output> Net::check_conv(Part src, Part dst, const Part* pool) const {
  const Size in = check_made(src, "src"), out = check_free(dst, "dst");
  if (src.map == dst.map || in.rows != out.rows || in.columns != out.columns) {
    refuse("dst", text(out.rows, out.columns), "another map of " + text(in.rows, in.columns));
  }
  if (pool == nullptr) return {{dst, 1, 1}};
  const Size half = check_free(*pool, "pool");
  if (half.rows * 2 != out.rows || half.columns * 2 != out.columns || pool->count != dst.count || half.zero != out.zero) {
    refuse("pool", text(half.rows, half.columns), "half of dst, with as many channels and the same zero");
  }
  return {{dst, 1, 1}, {*pool, 1, 2}};
}

void Net::check_up(Part src, Part dst) const {
  const Size in = check_made(src, "src"), out = check_free(dst, "dst");
  if (src.map == dst.map || in.rows * 2 != out.rows || in.columns * 2 != out.columns) {
    refuse("dst", text(out.rows, out.columns), "twice " + text(in.rows, in.columns));
  }
}

const Net::Size& Net::check_head(Part src, int enlarged) const {
  const Size& in = check_made(src, "src");
  if (enlarged < 1 || enlarged > kMost || in.rows * enlarged != rows_ || in.columns * enlarged != columns_) {
    refuse("src", text(in.rows, in.columns), "a map that the head brings to " + text(rows_, columns_));
  }
  const std::int64_t logits = std::int64_t{enlarged} * enlarged * classes_;
  if (logits > kMostLogits) {
    refuse("weights", std::to_string(logits) + " logits of a pixel", "up to " + std::to_string(kMostLogits));
  }
  return in;
}

void Net::make(Part part) {
  const auto first = made_[static_cast<std::size_t>(part.map)].begin() + part.first;
  std::fill(first, first + part.count, true);
}

void Net::add(Layer layer) {
  if (has_head_) refuse("net", "a layer after the head", "the head last");
  layers_.push_back(std::move(layer));
  empty_.reset();
  memories_.clear();
  scratches_.clear();
}

void Net::reserve(int slices, int threads) {
  const int most = counted(threads);
  const Alone alone(is_busy_);
  take(slices, most);
}

void Net::take(int slices, int threads) {
  const auto wanted = static_cast<std::size_t>(threads);
  while (memories_.size() < std::min(static_cast<std::size_t>(std::max(slices, 1)), wanted)) {
    memories_.push_back(std::make_unique<Memory>(*this));
  }
  while (scratches_.size() < wanted) scratches_.emplace_back(scratch_);
  if (empty_ || !has_head_) return;
  auto empty = std::make_unique<Memory>(*this);
  empty_logits_.resize(static_cast<std::size_t>(rows_) * columns_ * classes_);
  empty->dst = empty_logits_.data();
  for (const Layer& layer : layers_) {
    std::vector<int> tiles(tiles_of(layer.grid.rows, layer.grid.columns));
    std::iota(tiles.begin(), tiles.end(), 0);
    for (int unit = 0; unit < layer.units(tiles.size()); ++unit) layer.work(*empty, tiles, unit, scratches_[0].get());
  }
  empty_ = std::move(empty);
}

void Net::run(const float* src, float* dst, const unsigned char* wanted, std::int64_t n, int threads) {
  const int most = counted(threads);
  const int left = static_cast<int>(n % most);
  const Alone alone(is_busy_);
  if (!has_head_) refuse("net", "no head", "one");
  take(n >= most ? most : left, most);
  const std::int64_t pixels = std::int64_t{rows_} * columns_;
  const auto begin = [&](std::int64_t number, std::int64_t slice) -> const Memory& {
    Memory& own = *memories_[static_cast<std::size_t>(number)];
    for (int y = 0; y < rows_; ++y) {
      std::memcpy(own.padded.get() + (y + pad_) * own.wide + pad_, src + slice * pixels + std::int64_t{y} * columns_,
                  static_cast<std::size_t>(columns_) * sizeof(float));
    }
    own.dst = dst + slice * pixels * classes_;
    find_differing(own, src + slice * pixels);
    find_needed(own, wanted ? wanted + slice * pixels : nullptr);
    return own;
  };
  constexpr std::int64_t kWork = std::int64_t{1} << 40;  // always pays for threads

  // Where there are enough slices, each thread takes whole ones, so that none waits for another.
  std::atomic<std::int64_t> next{0};
  parallel_for(n >= most ? most : 0, most, kWork, [&](std::int64_t thread) {
    float* scratch = scratches_[static_cast<std::size_t>(thread)].get();
    for (std::int64_t slice = next++; slice < n - left; slice = next++) {
      const Memory& own = begin(thread, slice);
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        const std::vector<int>& tiles = own.plan[i];
        for (int unit = 0; unit < layers_[i].units(tiles.size()); ++unit) layers_[i].work(own, tiles, unit, scratch);
      }
    }
  });

  // Several threads share each slice that is left.
  std::vector<std::unique_ptr<Team>> teams;
  for (int i = 0; i < left; ++i) {
    teams.push_back(std::make_unique<Team>(begin(i, n - left + i), layers_, (most - i + left - 1) / left));
  }
  parallel_for(left ? most : 0, most, kWork, [&](std::int64_t thread) {
    const int number = static_cast<int>(thread);
    teams[static_cast<std::size_t>(number % left)]->work(number / left, scratches_[static_cast<std::size_t>(thread)].get());
  });
}

}  // namespace trtseg
