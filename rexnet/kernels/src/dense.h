// Small products of plain row-major matrices: the classifier's, and those that stand in for passes over pixels.
#pragma once
#include "gemm.h"

namespace REX_ISA {

// Calls work(at, count) for begin .. end in pieces of `step`, the last one shorter.
template <class Work>
inline void in_steps(int64_t begin, int64_t end, int64_t step, Work&& work) {
  for (; begin < end; begin += step) work(begin, std::min(step, end - begin));
}

// R rows of a by Q rows of b, each `depth` long: sums[r][q] = a_r . b_q.
template <int R, int Q>
static void dot_tile(int64_t depth, const float* a, const float* b, float* to, int64_t to_stride) {
  v8 sum[R][Q] = {};
  auto add = [&](auto&& take) __attribute__((always_inline)) {
    v8 right[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) right[q] = take(b + q * depth);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const v8 left = take(a + r * depth);
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sum[r][q] += left * right[q];
    }
  };
  int64_t k = 0;
  for (; k + LANES <= depth; k += LANES) add([&](const float* row) __attribute__((always_inline)) { return load(row + k); });
  if (k < depth) add([&](const float* row) { return load_channels(row, k / LANES, depth); });
  for (int r = 0; r < R; r++)
    for (int q = 0; q < Q; q++) {
      const v8 s = sum[r][q];
      to[r * to_stride + q] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    }
}

// Sums over k of a[r a_row + k a_step] * b[k b_step + columns], for R rows and `count` (at most 16) columns.
template <int R>
static void sum_tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
                     int64_t count, float* to, int64_t to_stride) {
  if (count == 2 * LANES) {
    v8 sum[R][2] = {};
    for (int64_t k = 0; k < depth; k++) {
      const v8 right[2] = {load(b + k * b_step), load(b + k * b_step + LANES)};
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const v8 left = splat(a[r * a_row + k * a_step]);
        sum[r][0] += left * right[0];
        sum[r][1] += left * right[1];
      }
    }
    for (int r = 0; r < R; r++)
      for (int p = 0; p < 2; p++) store(to + r * to_stride + p * LANES, sum[r][p]);
    return;
  }
  for (int r = 0; r < R; r++)
    for (int64_t j = 0; j < count; j++) {
      float sum = 0;
      for (int64_t k = 0; k < depth; k++) sum += a[r * a_row + k * a_step] * b[k * b_step + j];
      to[r * to_stride + j] = sum;
    }
}

// to (rows, columns) = sums over k of a[r a_row + k a_step] * b[k b_step + columns].
static void sum_products(int64_t rows, int64_t depth, int64_t columns, const float* a, int64_t a_row, int64_t a_step,
                         const float* b, int64_t b_step, float* to, int64_t to_stride) {
  in_steps(0, rows, 4, [&](int64_t r, int64_t height) {
    in_steps(0, columns, 2 * LANES, [&](int64_t at, int64_t count) {
      const float* const left = a + r * a_row;
      float* const goal = to + r * to_stride + at;
      if (height == 4) return sum_tile<4>(depth, left, a_row, a_step, b + at, b_step, count, goal, to_stride);
      for (int64_t i = 0; i < height; i++)
        sum_tile<1>(depth, left + i * a_row, a_row, a_step, b + at, b_step, count, goal + i * to_stride, to_stride);
    });
  });
}

}  // namespace REX_ISA
