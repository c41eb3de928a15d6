// What stands after the network's pooled features: dropout by a given mask, the classifier, cross entropy with label
// smoothing and mixup, and the gradients of all of them. Tensors are plain rows here: (images, features), weights
// (classes, features), logits (images, classes).
#pragma once
#include <cmath>
#include <stdexcept>
#include <string>

#include "block.h"
#include "dense.h"

namespace REX_ISA {

struct Classifier {
  int64_t images, features, classes;
  const float *weight, *bias;
  const float* mask;             // (images, features), or null: nothing is dropped
  const int *labels, *others;    // others null: no mixup
  float share, smoothing, scale;  // of `labels` in the loss; of all classes in a target; of the loss
};

// logits = masked weight^T + bias
inline void classify(const Classifier& c, const float* masked, float* logits) {
  rex::parallel((c.classes + 15) / 16, [&](int64_t part) {
    in_steps(part * 16, std::min(c.classes, part * 16 + 16), 3, [&](int64_t q, int64_t columns) {
      const float* const w = c.weight + q * c.features;
      in_steps(0, c.images, 4, [&](int64_t r, int64_t rows) {
        const float* const a = masked + r * c.features;
        float* const to = logits + r * c.classes + q;
        if (rows == 4 && columns == 3) return dot_tile<4, 3>(c.features, a, w, to, c.classes);
        for (int64_t i = 0; i < rows; i++)
          for (int64_t j = 0; j < columns; j++)
            dot_tile<1, 1>(c.features, a + i * c.features, w + j * c.features, to + i * c.classes + j, c.classes);
      });
      for (int64_t r = 0; r < c.images; r++)
        for (int64_t j = 0; j < columns; j++) logits[r * c.classes + q + j] += c.bias[q + j];
    });
  });
}

// Turns an image's logits into the gradient of the scaled mean loss, and returns its share of that loss. The target is
// (1 - smoothing) on the labels and smoothing / classes on every class.
inline double cross_entropy(const Classifier& c, int64_t image, float* logits) {
  const int64_t n = c.classes;
  float most = logits[0];
  for (int64_t j = 1; j < n; j++) most = std::max(most, logits[j]);
  double total = 0, sum = 0;
  in_steps(0, n, LANES, [&](int64_t j, int64_t count) {
    float values[LANES];
    store(values, exponential(load_channels(logits, j / LANES, n) - most));
    for (int64_t i = 0; i < count; i++) total += values[i], sum += logits[j + i];
  });
  const double log_total = std::log(total) + most;
  double target = 0;
  const float rest = c.scale / static_cast<float>(c.images), uniform = c.smoothing / static_cast<float>(n);
  const float by_total = static_cast<float>(1 / total);
  const int64_t label = c.labels[image], other = c.others ? c.others[image] : label;
  const float share = c.others ? c.share : 1;
  target = share * logits[label] + (1.0 - share) * logits[other];
  const double loss = log_total - (1.0 - c.smoothing) * target - c.smoothing * sum / n;
  in_steps(0, n, LANES, [&](int64_t j, int64_t) {
    const v8 p = exponential(load_channels(logits, j / LANES, n) - most) * by_total;
    store_channels(logits, j / LANES, n, (p - uniform) * rest);
  });
  logits[label] -= share * (1 - c.smoothing) * rest;
  logits[other] -= (1 - share) * (1 - c.smoothing) * rest;
  return loss * c.scale / c.images;
}

// From pooled (images, features) to the scaled loss and the gradients of pooled, weight and bias.
inline float classifier_gradient(const Classifier& c, const float* pooled, float* dpooled, float* dweight, float* dbias,
                                 rex::Operation& op) {
  const int64_t n = c.images, features = c.features, classes = c.classes;
  for (int64_t i = 0; i < n; i++)
    for (int64_t label : {c.labels[i], c.others ? c.others[i] : c.labels[i]})
      if (label < 0 || label >= classes)
        throw std::out_of_range("label " + std::to_string(label) + " of " + std::to_string(classes) + " classes");
  float* const masked = c.mask ? op.take(n * features) : nullptr;
  for (int64_t i = 0; masked && i < n * features; i++) masked[i] = pooled[i] * c.mask[i];
  const float* const inputs = masked ? masked : pooled;
  float* const gradient = op.take(n * classes);
  classify(c, inputs, gradient);
  double* const losses = reinterpret_cast<double*>(op.take(2 * n));
  rex::parallel(n, [&](int64_t i) { losses[i] = cross_entropy(c, i, gradient + i * classes); });
  double loss = 0;
  for (int64_t i = 0; i < n; i++) loss += losses[i];

  rex::parallel((classes + 15) / 16, [&](int64_t part) {
    const int64_t first = part * 16, count = std::min<int64_t>(16, classes - first);
    for (int64_t j = first; j < first + count; j++) {
      float sum = 0;
      for (int64_t i = 0; i < n; i++) sum += gradient[i * classes + j];
      dbias[j] = sum;
    }
    sum_products(count, n, features, gradient + first, 1, classes, inputs, features, dweight + first * features, features);
  });
  rex::parallel((features + 15) / 16, [&](int64_t part) {
    const int64_t at = part * 16, count = std::min<int64_t>(16, features - at);
    sum_products(n, classes, count, gradient, classes, 1, c.weight + at, features, dpooled + at, features);
    for (int64_t i = 0; c.mask && i < n; i++)
      for (int64_t j = at; j < at + count; j++) dpooled[i * features + j] *= c.mask[i * features + j];
  });
  return static_cast<float>(loss);
}

}  // namespace REX_ISA
