// A U-Net on the CPU, in FP32 or quantised to eight bits: layers over maps that are allocated once, slice by slice.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <vector>

#include "ops.h"

namespace trtseg {
namespace conv {
struct Products;
}
namespace conv_int8 {
struct Layers;
}

// Values, at first all the same, that begin where a line of the cache does: loads that straddle lines take twice as long.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count, T value = 0) : data_(static_cast<T*>(::operator new[](count * sizeof(T), kAlign))) {
    std::uninitialized_fill_n(data_.get(), count, value);
  }
  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, kAlign); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Channels [first, first + count) of a map.
struct Part {
  int map, first, count;
};

// Rows or columns [first, last).
struct Range {
  int first, last;
};

// Layers run in the order in which they are added. Each reads and writes parts of maps; a map of which several layers
// write a part joins what they make. Weights are laid out as in ONNX. An ArgumentError says what does not fit. One call at
// a time.
class Net {
 public:
  // A logit that nobody wants: the lowest FP16 number.
  static constexpr float kUnwanted = -65504.0f;

  // For slices of rows x columns, and logits of so many classes. Layers are computed by `fp32`, quantised ones by `int8`.
  Net(int rows, int columns, int classes, const conv::Products& fp32, const conv_int8::Layers& int8);
  ~Net();

  // Adds a map `[rows][columns][channels]` and returns its number. Channels come in eights.
  int add_map(int rows, int columns, int channels);
  // The same of bytes, which stand for `byte - zero`.
  int add_bytes(int rows, int columns, int channels, int zero);
  // The first layer: convolution of the slice by `[out][1][size][size]`, with bias and ReLU, padded by `pad` zeros on
  // each side. A map of bytes gets the nearest ones.
  void add_first(Part dst, const float* weights, const float* bias, int size, int stride, int pad);
  // Convolution by `[out][in][3][3]` with bias and ReLU, padded by 1; with `pool`, its 2x2 maxima too.
  void add_conv(Part src, Part dst, const Part* pool, const float* weights, const float* bias);
  // Transposed convolution by `[in][out][2][2]` with stride 2, and bias.
  void add_up(Part src, Part dst, const float* weights, const float* bias);
  // The logits: transposed convolution by `[in][classes][enlarged][enlarged]` with that stride, and bias. The last layer.
  void add_head(Part src, const float* weights, const float* bias, int enlarged);
  // The same from maps of bytes to maps of bytes, or to logits, with weights of eight bits. Of a sum of products they
  // make `sum * scale + bias`, with a scale and a bias for each output channel.
  void add_conv(Part src, Part dst, const Part* pool, const std::int8_t* weights, const float* scale, const float* bias);
  void add_up(Part src, Part dst, const std::int8_t* weights, const float* scale, const float* bias);
  void add_head(Part src, const std::int8_t* weights, const float* scale, const float* bias, int enlarged);

  // Takes the memory that `run` needs for so many slices at a time on so many threads (0: all CPUs).
  void reserve(int slices, int threads);

  // Logits `dst` `[n][classes][rows][columns]` of slices `src` `[n][rows][columns]` on up to `threads` threads (0: all
  // CPUs). Where a slice is 0 around all that a tile depends on, its values are those of an empty slice, which are known.
  // Logits depend neither on the number of threads nor on the other slices. Where `wanted` `[n][rows][columns]` is
  // given, logits that are not 0 there are the same, and all that they do not depend on is left out: the other logits
  // are kUnwanted, or what they would be.
  void run(const float* src, float* dst, const unsigned char* wanted, std::int64_t n, int threads);

  int rows() const { return rows_; }
  int columns() const { return columns_; }
  int classes() const { return classes_; }

 private:
  enum class Values { kFloats, kBytes };
  struct Size {
    int rows, columns, channels;
    Values values;
    int zero;  // the byte that stands for 0
  };
  struct Memory;
  class Team;
  // The only call of a net, while it lives; the process's rounding mode is not that of its numbers.
  class Alone {
   public:
    explicit Alone(std::atomic_flag& is_busy);
    ~Alone() { is_busy_.clear(); }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

   private:
    std::atomic_flag& is_busy_;
    DefaultFloats mode_;
  };
  // A part that a layer writes, or the logits, with `up` pixels there for `down` pixels of its tiles.
  struct Output {
    Part part;
    int up, down;

    Range of(Range tile) const { return {tile.first * up / down, tile.last * up / down}; }
  };
  // From which rows, or columns, those of a tile are computed.
  struct Reach {
    int stride, before, after;

    Range of(Range tile) const { return {tile.first * stride - before, (tile.last - 1) * stride + after + 1}; }
  };
  struct Layer {
    Size grid;                    // pixels whose tiles are the layer's work
    int src;                      // the map that it reads, or the slice
    Reach reach;
    std::vector<Output> outputs;
    int together;                 // tiles that a thread takes in one go
    // Any thread may do any unit, in any order, with a `scratch` of its own.
    std::function<void(const Memory& memory, const int* tile, int count, float* scratch)> compute;

    int units(std::size_t tiles) const;
    void work(const Memory& memory, const std::vector<int>& tiles, int unit, float* scratch) const;
  };
  using Plan = std::vector<std::vector<int>>;  // the tiles of each layer

  int add_size(const Size& size);
  const Size& check(Part part, const char* name, bool is_made) const;
  const Size& check_free(Part part, const char* name) const { return check(part, name, false); }
  const Size& check_made(Part part, const char* name) const { return check(part, name, true); }
  void check_values(std::initializer_list<Part> parts, Values values) const;
  std::vector<Output> check_conv(Part src, Part dst, const Part* pool) const;
  void check_up(Part src, Part dst) const;
  const Size& check_head(Part src, int enlarged) const;
  void make(Part part);
  void add(Layer layer);
  void take(int slices, int threads);
  void find_differing(Memory& own, const float* slice) const;
  void find_needed(Memory& own, const unsigned char* wanted) const;
  void take_empty(Memory& own, std::size_t layer, int tile) const;

  int rows_, columns_, classes_, pad_ = 0;
  const conv::Products& fp32_;
  const conv_int8::Layers& int8_;
  bool has_head_ = false;
  std::atomic_flag is_busy_ = ATOMIC_FLAG_INIT;
  std::size_t scratch_ = 0;  // floats that the layers need
  std::vector<Size> maps_;
  std::vector<std::vector<bool>> made_;  // by a layer, each channel of the maps
  std::vector<Layer> layers_;
  std::unique_ptr<Memory> empty_;                  // what an empty slice gives
  std::vector<float> empty_logits_;
  std::vector<std::unique_ptr<Memory>> memories_;  // of slices on their way
  std::vector<Buffer<float>> scratches_;           // of threads
};

}  // namespace trtseg
