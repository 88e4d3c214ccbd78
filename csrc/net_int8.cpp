// The layers of a quantised net, but the first.
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "conv_int8.h"
#include "net.h"
#include "net_memory.h"

namespace trtseg {
namespace {

using conv_int8::Map;

// The weights of a layer as its inner loop wants them, and what its sums and roundings need.
struct Quantised {
  // Of `matrices` matrices after each other, each of `points` matrices `[in][out]` that are summed up. `zero` stands for
  // 0 in what they are multiplied with.
  Quantised(const conv_int8::Layers& layers, const std::vector<std::int8_t>& weights, int matrices, int points, int in,
            int out, int zero)
      : packed(weights.size()), start(static_cast<std::size_t>(matrices) * out) {
    const std::ptrdiff_t size = std::ptrdiff_t{points} * in * out;
    for (int m = 0; m < matrices; ++m) {
      conv_int8::pack(weights.data() + m * size, points, in, out, layers.together, packed.get() + m * size);
      for (std::ptrdiff_t k = 0; k < size; ++k) {
        const int weight = weights[static_cast<std::size_t>(m * size + k)];
        start[static_cast<std::size_t>(std::ptrdiff_t{m} * out + k % out)] -= (zero - layers.less) * weight;
      }
    }
  }

  conv_int8::Weights weights() const { return {packed.get(), start.data()}; }

  Buffer<std::int8_t> packed;
  std::vector<std::int32_t> start;
};

// Of so few products that 32 bits hold their sums.
void check_sums(int points, int in) {
  if (std::int64_t{points} * in > std::numeric_limits<std::int32_t>::max() / (255 * 128)) {
    refuse("src", std::to_string(in) + " channels", "so few that 32 bits hold their sums");
  }
}

}  // namespace

void Net::add_conv(Part src, Part dst, const Part* pool, const std::int8_t* weights, const float* scale,
                   const float* bias) {
  const Alone alone(is_busy_);
  const std::vector<Output> outputs = check_conv(src, dst, pool);
  check_values({src, dst, pool ? *pool : dst}, Values::kBytes);
  constexpr int kPoints = 9;
  check_sums(kPoints, src.count);
  const std::vector<std::int8_t> matrices = matrices_of(weights, kPoints, src.count, dst.count, false);
  const Size in = maps_[static_cast<std::size_t>(src.map)], out = maps_[static_cast<std::size_t>(dst.map)];
  const auto own = std::make_shared<Quantised>(int8_, matrices, 1, kPoints, src.count, dst.count, in.zero);
  add({out, src.map, {1, 1, 1}, outputs, kConvTogether,
       [=, conv3x3 = int8_.conv3x3, has_pool = pool != nullptr, pool = pool ? *pool : Part{}, zero = out.zero,
        scale = copied(scale, dst.count), bias = copied(bias, dst.count)](const Memory& memory, const int* tile,
                                                                          int count, float*) {
         const Map maxima = has_pool ? memory.part_of_bytes(pool) : Map{};
         conv3x3(memory.part_of_bytes(src), own->weights(), {scale.data(), bias.data(), zero, zero},
                 memory.part_of_bytes(dst), has_pool ? &maxima : nullptr, tile, count);
       }});
  for (const Output& output : outputs) make(output.part);
}

void Net::add_up(Part src, Part dst, const std::int8_t* weights, const float* scale, const float* bias) {
  const Alone alone(is_busy_);
  check_up(src, dst);
  check_values({src, dst}, Values::kBytes);
  constexpr int kPoints = 4;
  const std::vector<std::int8_t> matrices = matrices_of(weights, kPoints, src.count, dst.count, true);
  const Size in = maps_[static_cast<std::size_t>(src.map)], out = maps_[static_cast<std::size_t>(dst.map)];
  const auto own = std::make_shared<Quantised>(int8_, matrices, kPoints, 1, src.count, dst.count, in.zero);
  add({in, src.map, {1, 0, 0}, {{dst, 2, 1}}, kTogether,
       [=, upsample = int8_.upsample, zero = out.zero, scale = copied(scale, dst.count), bias = copied(bias, dst.count)](
           const Memory& memory, const int* tile, int count, float*) {
         for (int i = 0; i < count; ++i) {
           upsample(memory.part_of_bytes(src), own->weights(), {scale.data(), bias.data(), zero, 0},
                    memory.part_of_bytes(dst), tile[i]);
         }
       }});
  make(dst);
}

void Net::add_head(Part src, const std::int8_t* weights, const float* scale, const float* bias, int enlarged) {
  const Alone alone(is_busy_);
  const Size in = check_head(src, enlarged);
  check_values({src}, Values::kBytes);
  const int area = enlarged * enlarged;
  const int outputs = (area * classes_ + conv::kLanes - 1) / conv::kLanes * conv::kLanes;
  std::vector<std::int8_t> matrix(static_cast<std::size_t>(src.count) * outputs);  // [in][enlarged][enlarged][classes]
  for (int i = 0; i < src.count; ++i)
    for (int c = 0; c < classes_; ++c)
      for (int k = 0; k < area; ++k) {
        matrix[static_cast<std::size_t>(std::ptrdiff_t{i} * outputs + k * classes_ + c)] = *weights++;
      }
  const auto own = std::make_shared<Quantised>(int8_, matrix, 1, 1, src.count, outputs, in.zero);
  add({in, src.map, {1, 0, 0}, {{{kLogits, 0, classes_}, enlarged, 1}}, kTogether,
       [=, head = int8_.head, scale = copied(scale, classes_), bias = copied(bias, classes_)](
           const Memory& memory, const int* tile, int count, float*) {
         for (int i = 0; i < count; ++i) {
           head(memory.part_of_bytes(src), own->weights(), scale.data(), bias.data(), classes_, enlarged, memory.dst,
                tile[i]);
         }
       }});
  has_head_ = true;
}

}  // namespace trtseg
