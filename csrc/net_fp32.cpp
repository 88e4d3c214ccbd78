// The layers of a net in FP32, and the first layer of every net.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "conv.h"
#include "net.h"
#include "net_memory.h"

namespace trtseg {

using conv::Map;

void Net::add_first(Part dst, const float* weights, const float* bias, int size, int stride, int pad) {
  const Alone alone(is_busy_);
  const Size out = check_free(dst, "dst");
  if (!layers_.empty()) refuse("net", "a convolution of the slice after another layer", "it first");
  if (size > kMost) refuse("weights", text(size, size), "up to 16384 x 16384");
  if (pad < 0 || pad >= size) refuse("pad", std::to_string(pad), "less than the kernel's " + std::to_string(size));
  const int high = rows_ + 2 * pad, wide = columns_ + 2 * pad;
  if (size < 1 || stride < 1 || high < size || wide < size || (high - size) / stride + 1 != out.rows ||
      (wide - size) / stride + 1 != out.columns) {
    refuse("dst", text(out.rows, out.columns), "what the convolution gives");
  }
  pad_ = pad;
  std::vector<float> own;  // [size][size][out]
  const std::ptrdiff_t area = std::ptrdiff_t{size} * size;
  for (std::ptrdiff_t k = 0; k < area; ++k)
    for (int o = 0; o < dst.count; ++o) own.push_back(weights[o * area + k]);
  const auto convolve = [=, own = std::move(own), bias = copied(bias, dst.count)](const Memory& memory, conv::Area at,
                                                                                  const Map& to) {
    const float* from = memory.padded.get() + at.y * stride * memory.wide + at.x * stride;
    conv::conv_first(from, memory.wide, own.data(), bias.data(), size, stride, to);
  };
  const auto to_floats = [=](const Memory& memory, const int* tile, int count, float*) {
    const Map map = memory.part(dst);
    for (int i = 0; i < count; ++i) {
      const conv::Area at = area_of(map, tile[i]);
      float* to = map.data + at.y * map.row + at.x * map.pixel;
      convolve(memory, at, {to, map.row, map.pixel, at.rows, at.columns, dst.count});
    }
  };
  const auto to_bytes = [=, quantise = int8_.quantise](const Memory& memory, const int* tile, int count,
                                                       float* scratch) {
    const conv_int8::Map map = memory.part_of_bytes(dst);
    for (int i = 0; i < count; ++i) {
      const conv::Area at = area_of(map, tile[i]);
      const std::ptrdiff_t row = std::ptrdiff_t{conv::kTile} * dst.count;
      convolve(memory, at, {scratch, row, dst.count, at.rows, at.columns, dst.count});
      quantise(scratch, out.zero, out.zero, map, tile[i]);
    }
  };
  Layer layer{out, kSlice, {stride, pad, size - 1 - pad}, {{dst, 1, 1}}, kTogether, to_floats};
  if (out.values == Values::kBytes) {
    layer.compute = to_bytes;
    scratch_ = std::max(scratch_, std::size_t{conv::kTile} * conv::kTile * static_cast<std::size_t>(dst.count));
  }
  add(std::move(layer));
  make(dst);
}

void Net::add_conv(Part src, Part dst, const Part* pool, const float* weights, const float* bias) {
  const Alone alone(is_busy_);
  const std::vector<Output> outputs = check_conv(src, dst, pool);
  check_values({src, dst, pool ? *pool : dst}, Values::kFloats);
  std::vector<float> transformed(std::size_t{conv::kPoints} * src.count * dst.count);
  conv::transform_weights(weights, src.count, dst.count, transformed.data());
  const auto packed = std::make_shared<Buffer<float>>(transformed.size());
  conv::pack(transformed.data(), conv::kPoints, src.count, dst.count, fp32_.block, packed->get());
  scratch_ = std::max(scratch_, conv::scratch_size(src.count, dst.count, kConvTogether));
  add({maps_[static_cast<std::size_t>(dst.map)], src.map, {1, 1, 1}, outputs, kConvTogether,
       [=, &products = fp32_, has_pool = pool != nullptr, pool = pool ? *pool : Part{}, bias = copied(bias, dst.count)](
           const Memory& memory, const int* tile, int count, float* scratch) {
         const Map maxima = has_pool ? memory.part(pool) : Map{};
         conv::conv3x3(products, memory.part(src), packed->get(), bias.data(), memory.part(dst),
                       has_pool ? &maxima : nullptr, tile, count, scratch);
       }});
  for (const Output& out : outputs) make(out.part);
}

void Net::add_up(Part src, Part dst, const float* weights, const float* bias) {
  const Alone alone(is_busy_);
  check_up(src, dst);
  check_values({src, dst}, Values::kFloats);
  constexpr int kPoints = 4;
  const std::vector<float> matrices = matrices_of(weights, kPoints, src.count, dst.count, true);
  const auto packed = std::make_shared<Buffer<float>>(matrices.size());
  conv::pack(matrices.data(), kPoints, src.count, dst.count, fp32_.block, packed->get());
  add({maps_[static_cast<std::size_t>(src.map)], src.map, {1, 0, 0}, {{dst, 2, 1}}, kTogether,
       [=, &products = fp32_, bias = copied(bias, dst.count)](const Memory& memory, const int* tile, int count, float*) {
         for (int i = 0; i < count; ++i) {
           conv::upsample(products, memory.part(src), packed->get(), bias.data(), memory.part(dst), tile[i]);
         }
       }});
  make(dst);
}

void Net::add_head(Part src, const float* weights, const float* bias, int enlarged) {
  const Alone alone(is_busy_);
  const Size in = check_head(src, enlarged);
  check_values({src}, Values::kFloats);
  std::vector<float> own;  // [enlarged][enlarged][classes][in]
  const std::ptrdiff_t area = std::ptrdiff_t{enlarged} * enlarged;
  for (std::ptrdiff_t k = 0; k < area; ++k)
    for (int c = 0; c < classes_; ++c)
      for (int i = 0; i < src.count; ++i) own.push_back(weights[(std::ptrdiff_t{i} * classes_ + c) * area + k]);
  add({in, src.map, {1, 0, 0}, {{{kLogits, 0, classes_}, enlarged, 1}}, kTogether,
       [=, own = std::move(own), bias = copied(bias, classes_)](const Memory& memory, const int* tile, int count, float*) {
         for (int i = 0; i < count; ++i) {
           conv::head(memory.part(src), own.data(), bias.data(), classes_, enlarged, memory.dst, tile[i]);
         }
       }});
  has_head_ = true;
}

}  // namespace trtseg
