// The network's last convolution with what follows: 1x1, norm, SiLU, mean over the pixels of each image.
#pragma once
#include "block.h"

namespace REX_ISA {

struct Head {
  int64_t images, size;
  Source source;
  Conv conv;
  float* e;  // raw
};

inline void forward(const Head& head, float* pooled, bool training, rex::Operation& op) {
  const int64_t n = head.images, channels = head.conv.out;
  expand(op, head.conv, head.source, n, head.size, head.e, training);
  rex::parallel(panels(channels), [&](int64_t p) {
    const v8 factor = head.conv.norm.factor(p), shift = head.conv.norm.shift(p);
    for (int64_t image = 0; image < n; image++) {
      const float* const e = head.e + (p * n + image) * head.size * LANES;
      v8 sum = {};
      for_sigmoids(e, head.size, factor, shift, [&](int64_t, v8 u, v8 s) __attribute__((always_inline)) { sum += u * s; });
      store_channels(pooled + image * channels, p, channels, sum / static_cast<float>(head.size));
    }
  });
}

// Outputs: dx, then the gradients of weight, gamma and beta.
inline void backward(const Head& head, const float* dpooled, float** outputs, rex::Operation& op) {
  const int64_t n = head.images, channels = head.conv.out, stride = n * head.size * LANES;
  float* const affine = op.take(panels(channels) * 3 * LANES);
  float* const de = op.take(panels(channels) * stride);
  rex::parallel(panels(channels), [&](int64_t p) {
    const Norm& norm = head.conv.norm;
    const v8 factor = norm.factor(p), shift = norm.shift(p), mean = load(norm.mean + p * LANES);
    double sum[LANES] = {}, product[LANES] = {};
    for (int64_t image = 0; image < n; image++) {
      const v8 share = load_channels(dpooled + image * channels, p, channels) / static_cast<float>(head.size);
      const int64_t begin = p * stride + image * head.size * LANES;
      v8 total = {}, moment = {};
      for_sigmoids(head.e + begin, head.size, factor, shift, [&](int64_t m, v8 u, v8 s) __attribute__((always_inline)) {
        const int64_t at = begin + m * LANES;
        const v8 g = share * (s * (1.0f + u * (1.0f - s)));
        store(de + at, g);
        total += g;
        moment += g * (load(head.e + at) - mean);
      });
      for (int64_t j = 0; j < LANES; j++) sum[j] += total[j], product[j] += moment[j];
    }
    const NormGradient gradient = close_norm(norm, p, sum, product, n * head.size, outputs[2], outputs[3]);
    store(affine + p * 3 * LANES, gradient.factor);
    store(affine + p * 3 * LANES + LANES, gradient.slope);
    store(affine + p * 3 * LANES + 2 * LANES, gradient.offset);
  });
  auto fill = [&](int64_t p, int64_t begin, int64_t count, float* to) {
    const v8 factor = load(affine + p * 3 * LANES), slope = load(affine + p * 3 * LANES + LANES);
    const v8 offset = load(affine + p * 3 * LANES + 2 * LANES);
    const int64_t from = p * stride + begin * LANES;
    for (int64_t at = 0; at < count * LANES; at += LANES)
      store(to + at, factor * load(de + from + at) + (slope * load(head.e + from + at) + offset));
  };
  expand_backward(op, head.conv, head.source, n, head.size, fill, nullptr, outputs[0], outputs[1]);
}

}  // namespace REX_ISA
