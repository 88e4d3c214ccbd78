// What every processor runs; and the order of the weights.
#include "conv_int8.h"

// Vectors are results here for which there may be no register; all of them stay in this file.
#pragma GCC diagnostic ignored "-Wpsabi"
#include "conv_int8_layers.h"

namespace trtseg::conv_int8 {
namespace {

template <int N>
void product(const Byte* corner, const Map& src, int size, const std::int8_t* weights, const std::int32_t* start,
             std::int32_t* sums) {
  for (int y = 0; y < kRows; ++y)
    for (int x = 0; x < kColumns; ++x, sums += N * kLanes) {
      const std::int8_t* weight = weights;
      for (int o = 0; o < N * kLanes; ++o) sums[o] = start[o];
      for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j) {
          const Byte* pixel = corner + (y + i) * src.row + (x + j) * src.pixel;
          for (int c = 0; c < src.channels; c += kLanes, pixel += kLanes)
            for (int o = 0; o < N * kLanes; ++o)
              for (int k = 0; k < kLanes; ++k) sums[o] += std::int32_t{pixel[k]} * *weight++;
        }
    }
}

bool is_supported() { return true; }

}  // namespace

void pack(const std::int8_t* src, int points, int in, int out, int together, std::int8_t* dst) {
  for (int first = 0; first < out; first += kGroups * kLanes)
    for (int k = 0; k < points; ++k)
      for (int c = 0; c < in; c += together)
        for (int o = first; o < out && o < first + kGroups * kLanes; ++o)
          for (int i = c; i < c + together; ++i) *dst++ = src[(std::ptrdiff_t{k} * in + i) * out + o];
}

const Layers kPortable{"portable", kLanes, 0, is_supported, conv3x3, upsample, head, quantise};

}  // namespace trtseg::conv_int8
