// Matrix products on panel tensors, the layout of all activations here.
//
// A panel tensor of c channels and m rows (pixels of all images) is (ceil(c / 8), m, 8): eight channels of a pixel
// stand together, channels beyond c are 0. So a 1x1 convolution is a matrix product that needs no packing of its
// input, a depthwise convolution sees a plain image of vectors, and per-channel factors stay in registers.
// Weights are packed to the same layout, their rows being the summed index.
#pragma once
#include <algorithm>

#include "silu.h"

namespace REX_ISA {

REX_INLINE int64_t panels(int64_t channels) { return (channels + LANES - 1) / LANES; }
REX_INLINE int64_t padded(int64_t channels) { return panels(channels) * LANES; }

// Panel `panel` of weights (out, in) as (in, 8 of out): b[k][j] = w[8 panel + j][k].
static void pack_outputs(const float* w, int64_t out, int64_t in, int64_t panel, float* b) {
  const int64_t count = std::min(LANES, out - panel * LANES);
  if (count < LANES) std::memset(b, 0, sizeof(float) * in * LANES);
  const float* row = w + panel * LANES * in;
  if (count == LANES) {
    for (int64_t k = 0; k < in; k++)
      store(b + k * LANES, v8{row[k], row[in + k], row[2 * in + k], row[3 * in + k], row[4 * in + k], row[5 * in + k],
                              row[6 * in + k], row[7 * in + k]});
    return;
  }
  for (int64_t j = 0; j < count; j++)
    for (int64_t k = 0; k < in; k++) b[k * LANES + j] = row[j * in + k];
}

// Panel `panel` of weights (out, in) as (out, 8 of in): b[n][j] = w[n][8 panel + j].
static void pack_inputs(const float* w, int64_t out, int64_t in, int64_t panel, float* b) {
  for (int64_t n = 0; n < out; n++) store(b + n * LANES, load_channels(w + n * in, panel, in));
}

// R rows by P panels of c = a b: `depth` summed channels of a, whose panels are a_stride floats apart.
template <int R, int P>
static inline void product_tile(int64_t depth, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                                float* c, int64_t c_stride) {
  v8 sum[R][P] = {};
  auto add = [&](const float* a_column, const float* b_row) __attribute__((always_inline)) {
    v8 right[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) right[p] = load(b_row + p * b_stride);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const v8 left = splat(a_column[r * LANES]);
#pragma GCC unroll 3
      for (int p = 0; p < P; p++) sum[r][p] += left * right[p];
    }
  };
  int64_t k = 0;
  for (; k + LANES <= depth; k += LANES, a += a_stride)
#pragma GCC unroll 8
    for (int j = 0; j < LANES; j++) add(a + j, b + (k + j) * LANES);
  for (int j = 0; k < depth; k++, j++) add(a + j, b + k * LANES);
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) store(c + p * c_stride + r * LANES, sum[r][p]);
}

template <int P>
static void product_rows(int64_t rows, int64_t depth, const float* a, int64_t a_stride, const float* b,
                         int64_t b_stride, float* c, int64_t c_stride) {
  constexpr int most = P == 1 ? 8 : P == 2 ? 6 : 4;  // 8 to 12 sums fill the registers of AVX2
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t tile = 0, row = 0; tile < tiles; tile++) {
    const int64_t count = (rows - row) / (tiles - tile);  // sizes differ by one at most: no thin last tile
    const float* from = a + row * LANES;
    float* to = c + row * LANES;
    switch (count) {
#define REX_CASE(R)                                                                                      \
  case R:                                                                                                \
    if constexpr (R <= most) product_tile<R, P>(depth, from, a_stride, b, b_stride, to, c_stride);       \
    break;
      REX_CASE(1) REX_CASE(2) REX_CASE(3) REX_CASE(4) REX_CASE(5) REX_CASE(6) REX_CASE(7) REX_CASE(8)
#undef REX_CASE
    }
    row += count;
  }
}

// c (num_panels, rows, 8) = a (depth channels) times packed b (num_panels, depth, 8).
static void product(int64_t rows, int64_t depth, int64_t num_panels, const float* a, int64_t a_stride, const float* b,
                    float* c, int64_t c_stride) {
  const int64_t b_stride = depth * LANES;
  for (int64_t p = 0; p < num_panels;) {
    const int64_t left = num_panels - p;
    const float* from = b + p * b_stride;
    float* to = c + p * c_stride;
    if (left == 1) {
      product_rows<1>(rows, depth, a, a_stride, from, b_stride, to, c_stride);
      p += 1;
    } else if (left == 3) {
      product_rows<3>(rows, depth, a, a_stride, from, b_stride, to, c_stride);
      p += 3;
    } else {
      product_rows<2>(rows, depth, a, a_stride, from, b_stride, to, c_stride);
      p += 2;
    }
  }
}

template <int P>
static inline void outer_tile(int64_t rows, const float* g, const float* a, int64_t a_stride, float* out,
                              int64_t out_stride, bool first) {
  constexpr int R = 4;
  v8 sum[R][P] = {};
  if (!first)
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) sum[r][p] = load(out + r * out_stride + p * LANES);
  for (int64_t m = 0; m < rows; m++) {
    v8 right[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) right[p] = load(a + p * a_stride + m * LANES);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const v8 left = splat(g[m * LANES + r]);
#pragma GCC unroll 3
      for (int p = 0; p < P; p++) sum[r][p] += left * right[p];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) store(out + r * out_stride + p * LANES, sum[r][p]);
}

// The gradient of weights: out (8 g_panels, 8 a_panels) = or += g^T a over these rows. LOWER: where g is a, of the
// symmetric result the panels at and below the diagonal alone.
template <bool LOWER = false>
static void outer(int64_t rows, const float* g, int64_t g_stride, int64_t g_panels, const float* a, int64_t a_stride,
                  int64_t a_panels, float* out, bool first) {
  const int64_t out_stride = a_panels * LANES;
  for (int64_t p = 0; p < a_panels;) {
    const int64_t left = a_panels - p, count = left == 2 || left == 4 ? 2 : std::min<int64_t>(left, 3);
    const float* from = a + p * a_stride;
    for (int64_t n = LOWER ? p * 2 : 0; n < g_panels * 2; n++) {
      const float* gradient = g + n / 2 * g_stride + n % 2 * 4;
      float* to = out + n * 4 * out_stride + p * LANES;
      if (count == 3) outer_tile<3>(rows, gradient, from, a_stride, to, out_stride, first);
      else if (count == 2) outer_tile<2>(rows, gradient, from, a_stride, to, out_stride, first);
      else outer_tile<1>(rows, gradient, from, a_stride, to, out_stride, first);
    }
    p += count;
  }
}

}  // namespace REX_ISA
