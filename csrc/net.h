// A U-Net in FP32 on the CPU: layers over maps that are allocated once, slice by slice.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <vector>

namespace trtseg {

// Floats, at first 0, that begin where a line of the cache does: loads that straddle lines take twice as long.
class Floats {
 public:
  explicit Floats(std::size_t count);
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, kAlign); }
  };
  std::unique_ptr<float[], Free> data_;
};

// Channels [first, first + count) of a map.
struct Part {
  int map, first, count;
};

// Layers run in the order in which they are added. Each reads and writes parts of maps; a map of which several layers
// write a part joins what they make. Weights are laid out as in ONNX. An ArgumentError says what does not fit.
class Net {
 public:
  // For slices of rows x columns, and logits of so many classes.
  Net(int rows, int columns, int classes);
  ~Net();

  // Adds a map `[rows][columns][channels]` and returns its number. Channels come in eights.
  int add_map(int rows, int columns, int channels);
  // Convolution of the slice by `[out][1][size][size]`, with bias and ReLU, padded by `pad` zeros on each side.
  void add_first(Part dst, const float* weights, const float* bias, int size, int stride, int pad);
  // Convolution by `[out][in][3][3]` with bias and ReLU, padded by 1; with `pool`, its 2x2 maxima too.
  void add_conv(Part src, Part dst, const Part* pool, const float* weights, const float* bias);
  // Transposed convolution by `[in][out][2][2]` with stride 2, and bias.
  void add_up(Part src, Part dst, const float* weights, const float* bias);
  // The logits: transposed convolution by `[in][classes][scale][scale]` with that stride, and bias. The last layer.
  void add_head(Part src, const float* weights, const float* bias, int scale);

  // Logits `dst` `[n][classes][rows][columns]` of slices `src` `[n][rows][columns]` on up to `threads` threads (0: all
  // CPUs). They depend neither on the number of threads nor on the other slices. One call at a time.
  void run(const float* src, float* dst, std::int64_t n, int threads);

  int rows() const { return rows_; }
  int columns() const { return columns_; }
  int classes() const { return classes_; }

 private:
  struct Size {
    int rows, columns, channels;
  };
  struct Memory;
  class Team;
  // Work in units that any thread may do, in any order, with a `scratch` of its own.
  struct Layer {
    int units;
    std::function<void(const Memory& memory, int unit, float* scratch)> compute;
  };

  const Size& check(Part part, const char* name) const;
  void add(int units, std::function<void(const Memory&, int, float*)> compute);

  int rows_, columns_, classes_;
  bool has_head_ = false;
  std::size_t padded_ = 0, scratch_ = 0;  // floats that the layers need
  std::vector<Size> maps_;
  std::vector<Layer> layers_;
  std::vector<std::unique_ptr<Memory>> memories_;  // of slices on their way
  std::vector<Floats> scratches_;                  // of threads
};

}  // namespace trtseg
