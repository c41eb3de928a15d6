// A bottleneck of ReXNet, forward and backward: expand (1x1, norm, SiLU), depthwise 3x3 (norm), gate, ReLU6, project
// (1x1, norm), shortcut. The first one's expansion is the network's stem, a 3x3 convolution of the images.
//
// What memory sees of the wide tensors: e (expanded, raw) and d (after the depthwise convolution, raw) are written
// once each; everything else about them is computed again from there, which costs less than another pass.
#pragma once
#include "gate.h"
#include "strips.h"

namespace REX_ISA {

struct Bottleneck {
  int64_t images, stride;
  Map map;
  Conv expansion, depthwise, projection;
  bool gated;
  Gate gate;
  Source source;
  const float* scale;     // per image: drop path
  const float* shortcut;  // the input's panels, or null
  float *e, *d, *o;       // raw outputs of the three convolutions
};

// Calls work(panel, image, scratch) for all panels and images.
template <class Work>
inline void by_maps(rex::Operation& op, int64_t total_panels, int64_t images, int64_t scratch, Work&& work) {
  const int64_t total = total_panels * images, slices = std::min(total, rex::num_threads() * 8);
  float* const memory = scratch ? op.take(slices * ((scratch + 15) / 16 * 16)) : nullptr;
  rex::parallel(slices, [&](int64_t slice) {
    float* const mine = memory + slice * ((scratch + 15) / 16 * 16);
    for (int64_t i = total * slice / slices; i < total * (slice + 1) / slices; i++) work(i / images, i % images, mine);
  });
}

// What turns a raw d of one panel and image into the argument of ReLU6.
struct Opening {
  v8 factor, shift;
  Opening(const Bottleneck& b, int64_t p, int64_t image) {
    factor = b.depthwise.norm.factor(p), shift = b.depthwise.norm.shift(p);
    if (!b.gated) return;
    const v8 gate = load(b.gate.gates + (p * b.images + image) * LANES);
    factor *= gate, shift *= gate;
  }
};

inline void forward(const Bottleneck& b, float* y, bool training, rex::Operation& op) {
  const int64_t n = b.images, size = b.map.size(), out_size = b.map.out_size();
  const int64_t wide = panels(b.expansion.out), out = panels(b.projection.out);
  expand(op, b.expansion, b.source, n, size, b.e, training);

  Moments* const moments = reinterpret_cast<Moments*>(op.take(wide * n * 2 * LANES));
  by_maps(op, wide, n, b.map.scratch(), [&](int64_t p, int64_t image, float* scratch) {
    v8 taps[9];
    load_taps(b.depthwise.weight, p, b.depthwise.out, taps);
    const Norm& norm = b.expansion.norm;
    const int64_t at = p * n + image;
    const auto kernel = b.stride == 1 ? depthwise_forward<1> : depthwise_forward<2>;
    kernel(b.map, b.e + at * size * LANES, norm.factor(p), norm.shift(p), taps, b.d + at * out_size * LANES, scratch,
           &moments[at]);
    if (b.gated) store(b.gate.means + at * LANES, load(moments[at].sum) / static_cast<float>(out_size));
  });
  settle(b.depthwise.norm, moments, n, n * out_size, training);
  if (b.gated) gate_forward(op, b.gate, b.depthwise.norm, training);

  const Cut cut(n, out_size, block_rows(b.projection.in, b.projection.out));
  const int64_t stride = cut.rows() * LANES, room = padded(b.projection.in) * cut.most();
  const int64_t slices = std::min(cut.blocks(), rex::num_threads() * 4);
  const float* const packed = pack_forward(op, b.projection);
  float* const scratch = op.take(slices * room);
  Moments* const parts = reinterpret_cast<Moments*>(op.take(out * cut.total() * 2 * LANES));
  rex::parallel(slices, [&](int64_t slice) {
    float* const active = scratch + slice * room;
    for (int64_t block = cut.blocks() * slice / slices; block < cut.blocks() * (slice + 1) / slices; block++) {
      const int64_t first = cut.first(block), last = cut.first(block + 1), begin = cut.begin(first);
      const int64_t count = cut.begin(last) - begin;
      for (int64_t p = 0; p < wide; p++)
        for (int64_t s = first; s < last; s++) {
          const Opening opening(b, p, s / cut.segments);
          for (int64_t m = cut.begin(s); m < cut.begin(s + 1); m++) {
            const v8 u = load(b.d + p * stride + m * LANES) * opening.factor + opening.shift;
            store(active + (p * count + m - begin) * LANES, smaller(larger(u, splat(0)), splat(6)));
          }
        }
      product(count, b.projection.in, out, active, count * LANES, packed, b.o + begin * LANES, stride);
      if (!training) continue;
      for (int64_t p = 0; p < out; p++)
        for (int64_t s = first; s < last; s++)
          gather(b.o + p * stride + cut.begin(s) * LANES, cut.begin(s + 1) - cut.begin(s), &parts[p * cut.total() + s]);
    }
  });
  settle(b.projection.norm, parts, cut.total(), cut.rows(), training);

  const int64_t shortcut = b.shortcut ? panels(b.expansion.in) : 0;
  by_maps(op, out, n, 0, [&](int64_t p, int64_t image, float*) {
    const int64_t begin = (p * n + image) * out_size * LANES;
    const float scale = b.scale ? b.scale[image] : 1.0f;
    const v8 factor = b.projection.norm.factor(p) * scale, shift = b.projection.norm.shift(p) * scale;
    if (p < shortcut)
      for (int64_t at = begin; at < begin + out_size * LANES; at += LANES)
        store(y + at, load(b.o + at) * factor + shift + load(b.shortcut + at));
    else
      for (int64_t at = begin; at < begin + out_size * LANES; at += LANES)
        store(y + at, load(b.o + at) * factor + shift);
  });
}

// Per-image sums of what reaches one panel's gates and its norm: q, and q (d - mean).
struct GateSums {
  float sum[LANES], product[LANES];
};

// `outputs`: dx (or null), then weight, gamma, beta of the three convolutions, then the gate's six.
inline void backward(const Bottleneck& b, const float* dy, float** outputs, rex::Operation& op) {
  const int64_t n = b.images, size = b.map.size(), out_size = b.map.out_size();
  const int64_t wide = panels(b.expansion.out), out = panels(b.projection.out);

  // The projection's norm.
  GateSums* const tail = reinterpret_cast<GateSums*>(op.take(out * n * 2 * LANES));
  by_maps(op, out, n, 0, [&](int64_t p, int64_t image, float*) {
    const int64_t begin = (p * n + image) * out_size * LANES;
    const v8 mean = load(b.projection.norm.mean + p * LANES);
    v8 sum = {}, product = {};
    for (int64_t at = begin; at < begin + out_size * LANES; at += LANES) {
      const v8 g = load(dy + at);
      sum += g;
      product += g * (load(b.o + at) - mean);
    }
    const float scale = b.scale ? b.scale[image] : 1.0f;
    store(tail[p * n + image].sum, sum * scale);
    store(tail[p * n + image].product, product * scale);
  });
  float* const affine = op.take(std::max(out, wide) * 3 * LANES);
  auto close = [&](const Norm& norm, int64_t p, const double* sum, const double* product, int64_t count, float** to,
                   float* lines) {
    const NormGradient gradient = close_norm(norm, p, sum, product, count, to[1], to[2]);
    store(lines + p * 3 * LANES, gradient.factor);
    store(lines + p * 3 * LANES + LANES, gradient.slope);
    store(lines + p * 3 * LANES + 2 * LANES, gradient.offset);
  };
  rex::parallel(out, [&](int64_t p) {
    double sum[LANES] = {}, product[LANES] = {};
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < LANES; j++) {
        sum[j] += tail[p * n + i].sum[j];
        product[j] += tail[p * n + i].product[j];
      }
    close(b.projection.norm, p, sum, product, n * out_size, outputs + 7, affine);
  });

  // The projection, ReLU6 and what the gate multiplies: q is the gradient of the gated, normalised d.
  const Cut cut(n, out_size, block_rows(b.projection.in, b.projection.out));
  const int64_t stride = cut.rows() * LANES, room = padded(b.projection.in) * cut.most();
  const int64_t out_room = padded(b.projection.out) * cut.most();
  const int64_t slices = std::min(cut.blocks(), weight_slices());
  const int64_t plane = padded(b.projection.in) * padded(b.projection.out);
  const float* const packed = pack_backward(op, b.projection);
  float* const scratch = op.take(slices * (2 * room + out_room));
  float* const weights = op.take(slices * plane);
  float* const q = op.take(wide * stride);
  GateSums* const parts = reinterpret_cast<GateSums*>(op.take(wide * cut.total() * 2 * LANES));
  rex::parallel(slices, [&](int64_t slice) {
    float* const gradient = scratch + slice * (2 * room + out_room);
    float* const active = gradient + room;
    float* const raw = active + room;
    const int64_t begin_block = cut.blocks() * slice / slices, end_block = cut.blocks() * (slice + 1) / slices;
    for (int64_t block = begin_block; block < end_block; block++) {
      const int64_t first = cut.first(block), last = cut.first(block + 1), begin = cut.begin(first);
      const int64_t count = cut.begin(last) - begin;
      for (int64_t p = 0; p < out; p++) {
        const v8 slope = load(affine + p * 3 * LANES + LANES), offset = load(affine + p * 3 * LANES + 2 * LANES);
        for (int64_t s = first; s < last; s++) {
          const v8 factor = load(affine + p * 3 * LANES) * (b.scale ? b.scale[s / cut.segments] : 1.0f);
          for (int64_t m = cut.begin(s); m < cut.begin(s + 1); m++) {
            const int64_t at = p * stride + m * LANES;
            store(raw + (p * count + m - begin) * LANES, factor * load(dy + at) + (slope * load(b.o + at) + offset));
          }
        }
      }
      product(count, b.projection.out, wide, raw, count * LANES, packed, gradient, count * LANES);
      for (int64_t p = 0; p < wide; p++) {
        const v8 mean = load(b.depthwise.norm.mean + p * LANES);
        for (int64_t s = first; s < last; s++) {
          const Opening opening(b, p, s / cut.segments);
          v8 sum = {}, moment = {};
          for (int64_t m = cut.begin(s); m < cut.begin(s + 1); m++) {
            const int64_t at = (p * count + m - begin) * LANES;
            const v8 d = load(b.d + p * stride + m * LANES), u = d * opening.factor + opening.shift;
            const v8 open = smaller(larger(u, splat(0)), splat(6));
            const v8 g = open == u ? load(gradient + at) : splat(0);
            store(active + at, open);
            store(q + p * stride + m * LANES, g);
            sum += g;
            moment += g * (d - mean);
          }
          store(parts[p * cut.total() + s].sum, sum);
          store(parts[p * cut.total() + s].product, moment);
        }
      }
      outer(count, raw, count * LANES, out, active, count * LANES, wide, weights + slice * plane, block == begin_block);
    }
  });
  join_slices(weights, slices, b.projection.out, b.projection.in, outputs[7]);

  // The gate, then the depthwise norm: its output's gradient is q * gate + (gradient of the mean) / pixels.
  GateSums* const sums = reinterpret_cast<GateSums*>(op.take(wide * n * 2 * LANES));
  float* const through = b.gated ? op.take(wide * n * LANES) : nullptr;
  rex::parallel(wide, [&](int64_t p) {
    const Norm& norm = b.depthwise.norm;
    const v8 inverse = load(norm.inverse + p * LANES), beta = load_channels(norm.beta, p, norm.channels);
    const v8 gamma = load_channels(norm.gamma, p, norm.channels);
    for (int64_t image = 0; image < n; image++) {
      v8 sum = {}, moment = {};
      for (int64_t s = image * cut.segments; s < (image + 1) * cut.segments; s++) {
        sum += load(parts[p * cut.total() + s].sum);
        moment += load(parts[p * cut.total() + s].product);
      }
      store(sums[p * n + image].sum, sum);
      store(sums[p * n + image].product, moment);
      if (through) store(through + (p * n + image) * LANES, gamma * inverse * moment + beta * sum);
    }
  });
  if (b.gated) gate_backward(op, b.gate, b.depthwise.norm, through, outputs + 10);
  rex::parallel(wide, [&](int64_t p) {
    double sum[LANES] = {}, product[LANES] = {};
    const v8 mean = load(b.depthwise.norm.mean + p * LANES);
    for (int64_t image = 0; image < n; image++) {
      v8 s = load(sums[p * n + image].sum), m = load(sums[p * n + image].product);
      if (b.gated) {
        const int64_t at = (p * n + image) * LANES;
        const v8 gate = load(b.gate.gates + at), z = load(through + at);
        s = s * gate + z;
        m = m * gate + z * (load(b.gate.means + at) - mean);
      }
      for (int64_t j = 0; j < LANES; j++) sum[j] += s[j], product[j] += m[j];
    }
    close(b.depthwise.norm, p, sum, product, n * out_size, outputs + 4, affine);
  });

  // The depthwise convolution and SiLU: work(panel, image, ...) writes the gradient of the normalised e.
  auto to_expanded = [&](int64_t p, int64_t image, int64_t begin, int64_t end, float* to, float* room_for_rows,
                         DepthwiseSums* sums_of_rows) {
    v8 taps[9];
    load_taps(b.depthwise.weight, p, b.depthwise.out, taps);
    const Norm& norm = b.expansion.norm;
    const int64_t at = p * n + image;
    v8 factor = load(affine + p * 3 * LANES), offset = load(affine + p * 3 * LANES + 2 * LANES);
    if (b.gated) {
      offset += factor * load(through + at * LANES) / static_cast<float>(out_size);
      factor *= load(b.gate.gates + at * LANES);
    }
    const auto kernel = b.stride == 1 ? depthwise_backward<1> : depthwise_backward<2>;
    kernel(b.map, begin, end, b.e + at * size * LANES, b.d + at * out_size * LANES, q + at * out_size * LANES,
           norm.factor(p), norm.shift(p), load(norm.mean + p * LANES), factor, load(affine + p * 3 * LANES + LANES),
           offset, taps, to, room_for_rows, sums_of_rows);
  };
  // From `count` sums of each panel: the depthwise weight's gradient, and the expansion's norm.
  float* const expansion_affine = op.take(wide * 3 * LANES);
  auto close_expansion = [&](const DepthwiseSums* heads, int64_t count) {
    rex::parallel(wide, [&](int64_t p) {
      double sum[LANES] = {}, product[LANES] = {}, taps[9][LANES] = {};
      for (int64_t i = 0; i < count; i++) {
        const DepthwiseSums& head = heads[p * count + i];
        for (int64_t j = 0; j < LANES; j++) {
          sum[j] += head.sum[j], product[j] += head.product[j];
          for (int64_t t = 0; t < 9; t++) taps[t][j] += head.taps[t][j];
        }
      }
      for (int64_t j = 0; j < LANES && p * LANES + j < b.depthwise.out; j++)
        for (int64_t t = 0; t < 9; t++) outputs[4][(p * LANES + j) * 9 + t] = static_cast<float>(taps[t][j]);
      close(b.expansion.norm, p, sum, product, n * size, outputs + 1, expansion_affine);
    });
  };
  const float* const shortcut = b.shortcut ? dy : nullptr;
  if (Strips::serve(b.expansion, b.source, n * size)) {
    const Strips strips(b.expansion, b.source, n, b.map, op);
    DepthwiseSums* const heads = reinterpret_cast<DepthwiseSums*>(op.take(wide * strips.count() * 11 * LANES));
    strips.gather(b.map.scratch(), outputs[0], [&](int64_t p, int64_t image, int64_t strip, float* to, float* room_for_rows) {
      to_expanded(p, image, strips.row(strip), strips.row(strip + 1), to, room_for_rows,
                  &heads[(p * n + image) * strips.per_image() + strip]);
    });
    close_expansion(heads, strips.count());
    strips.close(expansion_affine, shortcut, outputs[0], outputs[1]);
    return;
  }
  float* const de = op.take(wide * n * size * LANES);
  DepthwiseSums* const heads = reinterpret_cast<DepthwiseSums*>(op.take(wide * n * 11 * LANES));
  by_maps(op, wide, n, b.map.scratch(), [&](int64_t p, int64_t image, float* room_for_rows) {
    to_expanded(p, image, 0, b.map.height, de + (p * n + image) * size * LANES, room_for_rows, &heads[p * n + image]);
  });
  close_expansion(heads, n);
  const int64_t in_stride = n * size * LANES;
  auto fill = [&](int64_t p, int64_t begin, int64_t count, float* to) {
    const float* const line = expansion_affine + p * 3 * LANES;
    const v8 factor = load(line), slope = load(line + LANES), offset = load(line + 2 * LANES);
    const float* const g = de + p * in_stride + begin * LANES;
    const float* const e = b.e + p * in_stride + begin * LANES;
    for (int64_t at = 0; at < count * LANES; at += LANES)
      store(to + at, factor * load(g + at) + (slope * load(e + at) + offset));
  };
  expand_backward(op, b.expansion, b.source, n, size, fill, shortcut, outputs[0], outputs[1]);
}

}  // namespace REX_ISA
