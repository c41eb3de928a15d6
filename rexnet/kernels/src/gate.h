// The squeeze-excite gate: per-image channel means -> 1x1 -> batch norm -> ReLU -> 1x1 -> sigmoid. Its tensors are
// panel tensors whose rows are the images, so the block's matrix products serve.
#pragma once
#include "block.h"

namespace REX_ISA {

struct Gate {
  int64_t images;
  Conv reduce, excite;  // excite has no norm
  const float *reduce_bias, *excite_bias;
  float *means, *gates, *hidden;  // kept for the backward pass: means of raw d, gates, raw hidden values
};

// The gate's eight (forward) or four (backward: reduce weight, gamma, beta, excite weight) parameters.
inline Gate read_gate(void** params, int64_t** shapes, bool forward, int64_t images, float** saved) {
  Gate gate = {};
  const int64_t weight[4] = {shapes[0][0], shapes[0][1], 1, 1};
  int64_t* reduce_shape[1] = {const_cast<int64_t*>(weight)};
  gate.images = images;
  if (forward) {
    void* reduce[5] = {params[0], params[2], params[3], params[4], params[5]};
    gate.reduce = read_conv(reduce, reduce_shape, true, saved);
    gate.reduce_bias = static_cast<const float*>(params[1]);
    gate.excite.weight = static_cast<const float*>(params[6]);
    gate.excite_bias = static_cast<const float*>(params[7]);
  } else {
    gate.reduce = read_conv(params, reduce_shape, false, saved);
    gate.excite.weight = static_cast<const float*>(params[3]);
  }
  gate.excite.in = gate.reduce.out, gate.excite.out = gate.reduce.in;
  gate.means = *saved;
  gate.gates = gate.means + padded(gate.reduce.in) * images;
  gate.hidden = gate.gates + padded(gate.reduce.in) * images;
  *saved = gate.hidden + padded(gate.reduce.out) * images;
  return gate;
}

// Calls work(first, count) over `total` panels in twos.
template <class Work>
inline void by_panels(int64_t total, Work&& work) {
  rex::parallel((total + 1) / 2, [&](int64_t i) { work(2 * i, std::min<int64_t>(2, total - 2 * i)); });
}

inline void activate_hidden(const Gate& gate, float* active) {
  const int64_t n = gate.images;
  for (int64_t p = 0; p < panels(gate.reduce.out); p++) {
    const v8 factor = gate.reduce.norm.factor(p), shift = gate.reduce.norm.shift(p);
    for (int64_t at = p * n * LANES; at < (p + 1) * n * LANES; at += LANES)
      store(active + at, larger(load(gate.hidden + at) * factor + shift, splat(0)));
  }
}

// From gate.means and the norm that stands between them and the gate: the normalised means.
inline void normalise_means(const Gate& gate, const Norm& norm, float* means) {
  const int64_t n = gate.images;
  for (int64_t p = 0; p < panels(norm.channels); p++) {
    const v8 factor = norm.factor(p), shift = norm.shift(p);
    for (int64_t at = p * n * LANES; at < (p + 1) * n * LANES; at += LANES)
      store(means + at, load(gate.means + at) * factor + shift);
  }
}

inline void gate_forward(rex::Operation& op, const Gate& gate, const Norm& norm, bool training) {
  const int64_t n = gate.images, stride = n * LANES, channels = gate.reduce.in, reduced = gate.reduce.out;
  float* const means = op.take(padded(channels) * n);
  normalise_means(gate, norm, means);
  const float* const down = pack_forward(op, gate.reduce);
  Moments* const moments = reinterpret_cast<Moments*>(op.take(panels(reduced) * 2 * LANES));
  by_panels(panels(reduced), [&](int64_t first, int64_t count) {
    product(n, channels, count, means, stride, down + first * channels * LANES, gate.hidden + first * stride, stride);
    for (int64_t p = first; p < first + count; p++) {
      const v8 bias = load_channels(gate.reduce_bias, p, reduced);
      for (int64_t at = p * stride; at < (p + 1) * stride; at += LANES)
        store(gate.hidden + at, load(gate.hidden + at) + bias);
      gather(gate.hidden + p * stride, n, &moments[p]);
      if (training) gate.reduce.norm.measure(p, &moments[p], 1, n);
      else gate.reduce.norm.recall(p);
    }
  });
  float* const active = op.take(padded(reduced) * n);
  activate_hidden(gate, active);
  const float* const up = pack_forward(op, gate.excite);
  by_panels(panels(channels), [&](int64_t first, int64_t count) {
    product(n, reduced, count, active, stride, up + first * reduced * LANES, gate.gates + first * stride, stride);
    for (int64_t p = first; p < first + count; p++) {
      const v8 bias = load_channels(gate.excite_bias, p, channels);
      for (int64_t at = p * stride; at < (p + 1) * stride; at += LANES)
        store(gate.gates + at, sigmoid(load(gate.gates + at) + bias));
    }
  });
}

// Sums 8 channels of `rows` rows into (channels,).
inline void sum_rows(const float* panel, int64_t rows, int64_t p, int64_t channels, float* to) {
  v8 sum = {};
  for (int64_t m = 0; m < rows; m++) sum += load(panel + m * LANES);
  store_channels(to, p, channels, sum);
}

// `gradient` of the gates becomes that of the normalised means. Outputs: reduce weight, bias, gamma, beta, excite
// weight, bias.
inline void gate_backward(rex::Operation& op, const Gate& gate, const Norm& norm, float* gradient, float** outputs) {
  const int64_t n = gate.images, stride = n * LANES, channels = gate.reduce.in, reduced = gate.reduce.out;
  const int64_t wide = panels(channels), narrow = panels(reduced);
  float* const means = op.take(padded(channels) * n);
  normalise_means(gate, norm, means);
  float* const active = op.take(padded(reduced) * n);
  activate_hidden(gate, active);
  float* const excite = op.take(padded(channels) * padded(reduced));
  by_panels(wide, [&](int64_t first, int64_t count) {
    for (int64_t p = first; p < first + count; p++) {
      for (int64_t at = p * stride; at < (p + 1) * stride; at += LANES) {
        const v8 g = load(gate.gates + at);
        store(gradient + at, load(gradient + at) * g * (1.0f - g));
      }
      sum_rows(gradient + p * stride, n, p, channels, outputs[5]);
    }
    outer(n, gradient + first * stride, stride, count, active, stride, narrow,
          excite + first * LANES * padded(reduced), true);
  });
  join_slices(excite, 1, channels, reduced, outputs[4]);
  const float* const down = pack_backward(op, gate.excite);
  float* const hidden = op.take(padded(reduced) * n);
  float* const reduce = op.take(padded(channels) * padded(reduced));
  by_panels(narrow, [&](int64_t first, int64_t count) {
    product(n, channels, count, gradient, stride, down + first * channels * LANES, hidden + first * stride, stride);
    for (int64_t p = first; p < first + count; p++) {
      const v8 mean = load(gate.reduce.norm.mean + p * LANES);
      double sum[LANES] = {}, moment[LANES] = {};
      for (int64_t at = p * stride; at < (p + 1) * stride; at += LANES) {
        const v8 g = load(active + at) > splat(0) ? load(hidden + at) : splat(0);
        const v8 scaled = g * (load(gate.hidden + at) - mean);
        store(hidden + at, g);
        for (int64_t j = 0; j < LANES; j++) sum[j] += g[j], moment[j] += scaled[j];
      }
      const NormGradient affine = close_norm(gate.reduce.norm, p, sum, moment, n, outputs[2], outputs[3]);
      for (int64_t at = p * stride; at < (p + 1) * stride; at += LANES)
        store(hidden + at, affine.factor * load(hidden + at) + affine.slope * load(gate.hidden + at) + affine.offset);
      sum_rows(hidden + p * stride, n, p, reduced, outputs[1]);
    }
    outer(n, hidden + first * stride, stride, count, means, stride, wide, reduce + first * LANES * padded(channels),
          true);
  });
  join_slices(reduce, 1, reduced, channels, outputs[0]);
  const float* const up = pack_backward(op, gate.reduce);
  by_panels(wide, [&](int64_t first, int64_t count) {
    product(n, reduced, count, hidden, stride, up + first * reduced * LANES, gradient + first * stride, stride);
  });
}

}  // namespace REX_ISA
