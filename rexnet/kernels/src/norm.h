// Batch norm in three parts: sums that other passes gather, statistics from them, and an affine map that the next pass
// applies on the fly. So normalising never has a pass over memory of its own.
#pragma once
#include <cmath>

#include "gemm.h"

namespace REX_ISA {

constexpr float EPSILON = 1e-5f, MOMENTUM = 0.9f;  // MindSpore's nn.BatchNorm2d, whose defaults ReXNet takes

// Sum and sum of squares of 8 channels over some rows.
struct Moments {
  float sum[LANES], square[LANES];
};

// Four sums in turn: one alone would wait for each addition.
REX_INLINE void gather(const float* rows, int64_t count, Moments* to) {
  v8 sum[4] = {}, square[4] = {};
  auto add = [&](int i, const float* row) __attribute__((always_inline)) {
    const v8 x = load(row);
    sum[i] += x;
    square[i] += x * x;
  };
  int64_t m = 0;
  for (; m + 4 <= count; m += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) add(i, rows + (m + i) * LANES);
  for (; m < count; m++) add(0, rows + m * LANES);
  store(to->sum, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  store(to->square, (square[0] + square[1]) + (square[2] + square[3]));
}

// The tensors of one batch norm: its parameters, and the mean and 1 / sqrt(variance + epsilon) it normalised by.
struct Norm {
  int64_t channels;
  const float *gamma, *beta;
  float *moving_mean, *moving_variance;  // null in the backward pass
  float *mean, *inverse;                 // padded to whole panels

  v8 factor(int64_t p) const { return load_channels(gamma, p, channels) * load(inverse + p * LANES); }
  v8 shift(int64_t p) const { return load_channels(beta, p, channels) - load(mean + p * LANES) * factor(p); }

  // From `parts` moments of panel p over `count` rows in all; moves the moving statistics as MindSpore does, that is
  // with the unbiased variance. Of a single row that is undefined (MindSpore gives NaN): then they stay.
  void measure(int64_t p, const Moments* moments, int64_t parts, int64_t count) const {
    for (int64_t j = 0; j < LANES; j++) {
      double sum = 0, square = 0;
      for (int64_t i = 0; i < parts; i++) sum += moments[i].sum[j], square += moments[i].square[j];
      const double average = sum / count, variance = std::max(0.0, square / count - average * average);
      mean[p * LANES + j] = static_cast<float>(average);
      inverse[p * LANES + j] = static_cast<float>(1 / std::sqrt(variance + EPSILON));
      const int64_t c = p * LANES + j;
      if (c >= channels || count < 2) continue;
      const float unbiased = static_cast<float>(variance * count / (count - 1));
      moving_mean[c] = MOMENTUM * moving_mean[c] + (1 - MOMENTUM) * static_cast<float>(average);
      moving_variance[c] = MOMENTUM * moving_variance[c] + (1 - MOMENTUM) * unbiased;
    }
  }
  // In evaluation the moving statistics serve.
  void recall(int64_t p) const {
    store(mean + p * LANES, load_channels(moving_mean, p, channels));
    const v8 variance = load_channels(moving_variance, p, channels) + EPSILON;
    for (int64_t j = 0; j < LANES; j++) inverse[p * LANES + j] = 1 / std::sqrt(variance[j]);
  }
};

// The gradient of a batch norm's input is affine in the gradient g of its output and the input x itself:
// factor * g + slope * x + offset, with gamma's gradient sum(g xhat) and beta's sum(g) over all `count` rows.
struct NormGradient {
  v8 factor, slope, offset;
  NormGradient(const Norm& norm, int64_t p, const double* sum, const double* product, int64_t count) {
    float mean_gradient[LANES], mean_product[LANES];
    for (int64_t j = 0; j < LANES; j++) {
      mean_gradient[j] = static_cast<float>(sum[j] / count);
      mean_product[j] = static_cast<float>(product[j] / count);
    }
    const v8 inverse = load(norm.inverse + p * LANES);
    factor = norm.factor(p);
    slope = -factor * inverse * load(mean_product);
    offset = -factor * load(mean_gradient) - slope * load(norm.mean + p * LANES);
  }
};

}  // namespace REX_ISA
