// Depthwise 3x3 convolution, padding 1, stride 1 or 2, of one image's panel (height, width, 8), with what stands
// before and after it in the block: the input is normalised and passed through SiLU on the way in (never stored), the
// output's moments are gathered on the way out; the backward pass undoes all of it in one pass as well.
#pragma once
#include "norm.h"

namespace REX_ISA {

struct Map {
  int64_t height, width, out_height, out_width;
  int64_t size() const { return height * width; }
  int64_t out_size() const { return out_height * out_width; }
  int64_t scratch() const { return 6 * (std::max(width, out_width) + 2) * LANES; }  // floats of six padded rows
};

// The nine taps of panel p as vectors, from weights (channels, 1, 3, 3).
static void load_taps(const float* weight, int64_t p, int64_t channels, v8* taps) {
  float values[9][LANES] = {};
  const int64_t count = std::min(LANES, channels - p * LANES);
  for (int64_t j = 0; j < count; j++)
    for (int64_t t = 0; t < 9; t++) values[t][j] = weight[(p * LANES + j) * 9 + t];
  for (int64_t t = 0; t < 9; t++) taps[t] = load(values[t]);
}

// Rows of an image padded by a column of zeros on either side, kept in turn in few slots; rows outside are zeros.
template <int SLOTS>
struct Rows {
  float* memory;
  int64_t stride, count, ready;
  const float* zeros;
  Rows(float* scratch, int64_t width, int64_t height, int64_t first = 0)
      : memory(scratch), stride((width + 2) * LANES), count(height), ready(first) {
    for (int64_t i = 0; i < SLOTS; i++) {
      store(memory + i * stride, splat(0));
      store(memory + (i + 1) * stride - LANES, splat(0));
    }
    zeros = memory + SLOTS * stride;
    std::memset(memory + SLOTS * stride, 0, sizeof(float) * stride);
  }
  float* slot(int64_t row) { return memory + row % SLOTS * stride + LANES; }  // of column 0
  template <class Fill>
  const float* get(int64_t row, Fill&& fill) {
    if (row < 0 || row >= count) return zeros + LANES;
    for (; ready <= row; ready++) fill(ready, slot(ready));
    return slot(row);
  }
};

template <int STRIDE>
static void depthwise_forward(const Map& map, const float* e, v8 factor, v8 shift, const v8* taps, float* d,
                              float* scratch, Moments* moments) {
  Rows<3> rows(scratch, map.width, map.height);
  auto fill = [&](int64_t row, float* to) {
    for_sigmoids(e + row * map.width * LANES, map.width, factor, shift,
                 [&](int64_t w, v8 u, v8 s) __attribute__((always_inline)) { store(to + w * LANES, u * s); });
  };
  v8 sum = {}, square = {};
  for (int64_t h = 0; h < map.out_height; h++) {
    const float* r0 = rows.get(h * STRIDE - 1, fill) - LANES;
    const float* r1 = rows.get(h * STRIDE, fill) - LANES;
    const float* r2 = rows.get(h * STRIDE + 1, fill) - LANES;
    float* to = d + h * map.out_width * LANES;
    v8 row_sum = {}, row_square = {};
    for (int64_t w = 0; w < map.out_width; w++) {
      const int64_t at = w * STRIDE * LANES;
      v8 a = load(r0 + at) * taps[0], b = load(r1 + at) * taps[3], c = load(r2 + at) * taps[6];
      a += load(r0 + at + LANES) * taps[1];
      b += load(r1 + at + LANES) * taps[4];
      c += load(r2 + at + LANES) * taps[7];
      a += load(r0 + at + 2 * LANES) * taps[2];
      b += load(r1 + at + 2 * LANES) * taps[5];
      c += load(r2 + at + 2 * LANES) * taps[8];
      const v8 y = a + b + c;
      store(to + w * LANES, y);
      row_sum += y;
      row_square += y * y;
    }
    sum += row_sum;
    square += row_square;
  }
  store(moments->sum, sum);
  store(moments->square, square);
}

// What the backward pass of one (panel, image) sums: over SiLU's input gradient, and the taps' gradients.
struct DepthwiseSums {
  float sum[LANES], product[LANES], taps[9][LANES];
};

// From the gradient q of what follows the second norm, as `second.factor * q + second.slope * d + second.offset`, to
// the gradient of the first norm's output (before SiLU), of the map's rows begin .. end - 1, written to `to`;
// `sums->product` is taken with (e - mean).
template <int STRIDE>
static void depthwise_backward(const Map& map, int64_t begin, int64_t end, const float* e, const float* d, const float* q, v8 factor, v8 shift,
                               v8 mean, v8 second_factor, v8 second_slope, v8 second_offset, const v8* taps, float* to,
                               float* scratch, DepthwiseSums* sums) {
  Rows<3> rows(scratch, map.out_width, map.out_height, std::max<int64_t>(0, (begin + STRIDE - 2) / STRIDE));
  auto fill = [&](int64_t row, float* into) {
    const int64_t at = row * map.out_width * LANES;
    for (int64_t w = 0; w < map.out_width * LANES; w += LANES)
      store(into + w, second_factor * load(q + at + w) + (second_slope * load(d + at + w) + second_offset));
  };
  float* const active = scratch + 4 * (map.out_width + 2) * LANES;  // a row of SiLU's values, and of its slopes
  float* const slopes = active + map.width * LANES;
  const float* const tap = reinterpret_cast<const float*>(taps);  // read each time: the sums need the registers
  v8 total = {}, total_product = {}, tap_sum[9] = {};
  for (int64_t h = begin; h < end; h++) {
    // Row of taps i meets this input row in output row (h + 1 - i) / STRIDE, where that is whole.
    const float* r[3];
    for (int i = 0; i < 3; i++)
      r[i] = (h + 1 - i) % STRIDE ? nullptr : rows.get((h + 1 - i) / STRIDE, fill);
    const float* from = e + h * map.width * LANES;
    float* into = to + (h - begin) * map.width * LANES;
    for_sigmoids(from, map.width, factor, shift, [&](int64_t w, v8 u, v8 s) __attribute__((always_inline)) {
      const v8 a = u * s;
      store(active + w * LANES, a);
      store(slopes + w * LANES, s * (1.0f + (u - a)));
    });
    v8 row_sum = {}, row_product = {};
    auto pixel = [&](int64_t w, auto&& each_tap) __attribute__((always_inline)) {
      const v8 a = load(active + w * LANES);
      v8 part[3] = {};
      each_tap([&](int t, const float* row, int64_t column) __attribute__((always_inline)) {
        const v8 g = load(row + column * LANES);
        part[t % 3] += g * load(tap + t * LANES);
        tap_sum[t] += g * a;
      });
      const v8 gradient = (part[0] + part[1] + part[2]) * load(slopes + w * LANES);
      store(into + w * LANES, gradient);
      row_sum += gradient;
      row_product += gradient * (load(from + w * LANES) - mean);
    };
    if constexpr (STRIDE == 1) {
      for (int64_t w = 0; w < map.width; w++)
        pixel(w, [&](auto&& tap) __attribute__((always_inline)) {
#pragma GCC unroll 3
          for (int i = 0; i < 3; i++)
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) tap(3 * i + j, r[i], w + 1 - j);
        });
    } else if (h % 2 == 0) {
      for (int64_t w = 0; w < map.width; w += 2) {
        pixel(w, [&](auto&& tap) __attribute__((always_inline)) { tap(4, r[1], w / 2); });
        if (w + 1 == map.width) break;
        pixel(w + 1, [&](auto&& tap) __attribute__((always_inline)) {
          tap(3, r[1], w / 2 + 1);
          tap(5, r[1], w / 2);
        });
      }
    } else {
      for (int64_t w = 0; w < map.width; w += 2) {
        pixel(w, [&](auto&& tap) __attribute__((always_inline)) {
          tap(1, r[0], w / 2);
          tap(7, r[2], w / 2);
        });
        if (w + 1 == map.width) break;
        pixel(w + 1, [&](auto&& tap) __attribute__((always_inline)) {
          tap(0, r[0], w / 2 + 1);
          tap(2, r[0], w / 2);
          tap(6, r[2], w / 2 + 1);
          tap(8, r[2], w / 2);
        });
      }
    }
    total += row_sum;
    total_product += row_product;
  }
  store(sums->sum, total);
  store(sums->product, total_product);
  for (int t = 0; t < 9; t++) store(sums->taps[t], tap_sum[t]);
}

}  // namespace REX_ISA
