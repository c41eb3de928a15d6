// What the operators share: how rows are cut into blocks, and how the tensors of a convolution with its norm are read.
#pragma once
#include "depthwise.h"
#include "pool.h"

namespace REX_ISA {

// The pixels of n images of `size` pixels, cut into blocks of about `target` rows that a core's cache holds. A segment
// is the part of one image in one block: sums are kept per segment, so each serves per-image sums as well.
struct Cut {
  int64_t images, size, segments, group;  // segments per image; images per block (1 if there are several segments)
  Cut(int64_t n, int64_t pixels, int64_t target) : images(n), size(pixels) {
    segments = std::max<int64_t>(1, (size + target / 2) / target);
    group = segments > 1 ? 1 : std::max<int64_t>(1, target / size);
  }
  int64_t rows() const { return images * size; }
  int64_t total() const { return images * segments; }
  int64_t blocks() const { return segments > 1 ? total() : (images + group - 1) / group; }
  int64_t most() const { return segments > 1 ? size / segments + 1 : group * size; }  // rows of the largest block
  int64_t begin(int64_t segment) const {
    return segment / segments * size + segment % segments * size / segments;
  }
  int64_t first(int64_t block) const { return segments > 1 ? block : std::min(images, block * group); }  // segment
};

inline int64_t block_rows(int64_t depth, int64_t width) {
  const int64_t floats = 49152;  // 192 KiB: less than half of a common L2 cache
  return std::min<int64_t>(240, std::max<int64_t>(36, floats / (depth + width) / 12 * 12));
}

// A convolution's weight and its norm, out of an operator's parameters (weight, gamma, beta, mean, variance).
struct Conv {
  int64_t in, out;
  const float* weight;
  Norm norm;
};

inline Conv read_conv(void** params, int64_t** shapes, bool forward, float** saved) {
  Conv conv;
  conv.out = shapes[0][0];
  conv.in = shapes[0][1] * shapes[0][2] * shapes[0][3];
  conv.weight = static_cast<const float*>(params[0]);
  conv.norm = {conv.out, static_cast<const float*>(params[1]), static_cast<const float*>(params[2]),
               forward ? static_cast<float*>(params[3]) : nullptr, forward ? static_cast<float*>(params[4]) : nullptr,
               *saved, *saved + padded(conv.out)};
  *saved += 2 * padded(conv.out);
  return conv;
}

inline void settle(const Norm& norm, const Moments* moments, int64_t parts, int64_t count, bool training) {
  rex::parallel(panels(norm.channels), [&](int64_t p) {
    if (training) norm.measure(p, moments + p * parts, parts, count);
    else norm.recall(p);
  });
}

inline const float* pack_forward(rex::Operation& op, const Conv& conv) {
  float* const packed = op.take(padded(conv.out) * conv.in);
  rex::parallel(panels(conv.out),
                [&](int64_t p) { pack_outputs(conv.weight, conv.out, conv.in, p, packed + p * conv.in * LANES); });
  return packed;
}
inline const float* pack_backward(rex::Operation& op, const Conv& conv) {
  float* const packed = op.take(padded(conv.in) * conv.out);
  rex::parallel(panels(conv.in),
                [&](int64_t p) { pack_inputs(conv.weight, conv.out, conv.in, p, packed + p * conv.out * LANES); });
  return packed;
}

// Into how many parts the rows are cut where each part sums a weight's gradient for itself: fixed by the number of
// threads, so the bits are; a few for each thread, so that one which loses its CPU for a while does not hold up the rest.
inline int64_t weight_slices() { return rex::num_threads() == 1 ? 1 : 3 * rex::num_threads(); }

// Sums the slices of a weight's gradient, each (padded out, padded in), into (out, in).
inline void join_slices(const float* slices, int64_t count, int64_t out, int64_t in, float* gradient) {
  const int64_t stride = padded(out) * padded(in);
  rex::parallel((out + 31) / 32, [&](int64_t part) {
    for (int64_t n = part * 32; n < std::min(out, part * 32 + 32); n++)
      for (int64_t p = 0; p < panels(in); p++) {
        v8 sum = load(slices + n * padded(in) + p * LANES);
        for (int64_t s = 1; s < count; s++) sum += load(slices + s * stride + n * padded(in) + p * LANES);
        store_channels(gradient + n * in, p, in, sum);
      }
  });
}

// The gradients of one panel of a norm from sums over its output's gradient g: sum(g), sum(g (x - mean)).
inline NormGradient close_norm(const Norm& norm, int64_t p, const double* sum, const double* product, int64_t count,
                               float* gamma, float* beta) {
  double scaled[LANES];
  for (int64_t j = 0; j < LANES; j++) {
    scaled[j] = product[j] * norm.inverse[p * LANES + j];
    const int64_t c = p * LANES + j;
    if (c >= norm.channels) continue;
    gamma[c] = static_cast<float>(scaled[j]);
    beta[c] = static_cast<float>(sum[j]);
  }
  return NormGradient(norm, p, sum, scaled, count);
}

// Expansion: rows of the input as the matrix product wants them. Of panels directly, or of images (n, 3, h, w) by
// laying out the 27 pixels under a 3x3 kernel of stride 2 as channels.
struct Source {
  const float* data;
  int64_t stride;                        // floats between panels, or 0 for images
  int64_t height, width, out_height, out_width;  // of images
  const float* rows(int64_t begin, int64_t count, float* scratch, int64_t* panel_stride) const {
    if (stride) {
      *panel_stride = stride;
      return data + begin * LANES;
    }
    const int64_t panel = *panel_stride = count * LANES;
    std::memset(scratch + 3 * panel, 0, sizeof(float) * panel);  // 27 of its 32 channels are written below
    int64_t n = begin / (out_height * out_width), rest = begin % (out_height * out_width);
    int64_t h = rest / out_width, w = rest % out_width;
    for (int64_t m = 0; m < count; m++) {
      const int64_t y = h * 2 - 1, x = w * 2 - 1;
      const float* const from = data + n * 3 * height * width + y * width + x;
      auto each = [&](auto&& value) __attribute__((always_inline)) {  // places in `to` known when compiling
        float* const to = scratch + m * LANES;
#pragma GCC unroll 27
        for (int k = 0; k < 27; k++) to[k / LANES * panel + k % LANES] = value(k / 9, k / 3 % 3, k % 3);
      };
      if (y >= 0 && x >= 0 && y + 2 < height && x + 2 < width)
        each([&](int c, int i, int j) { return from[(c * height + i) * width + j]; });
      else
        each([&](int c, int i, int j) {
          const bool inside = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
          return inside ? from[(c * height + i) * width + j] : 0.0f;
        });
      if (++w == out_width) w = 0, ++h;
      if (h == out_height) h = 0, ++n;
    }
    return scratch;
  }
};

// e = expansion of the source, raw; settles conv's norm.
inline void expand(rex::Operation& op, const Conv& conv, const Source& source, int64_t images, int64_t size, float* e,
                   bool training) {
  const Cut cut(images, size, block_rows(conv.in, conv.out));
  const int64_t out = panels(conv.out), stride = cut.rows() * LANES, room = padded(conv.in) * cut.most();
  const float* const packed = pack_forward(op, conv);
  Moments* const moments = reinterpret_cast<Moments*>(op.take(out * cut.total() * 2 * LANES));
  float* const scratch = source.stride ? nullptr : op.take(rex::num_threads() * 4 * room);
  const int64_t slices = std::min(cut.blocks(), rex::num_threads() * 4);
  rex::parallel(slices, [&](int64_t slice) {
    for (int64_t b = cut.blocks() * slice / slices; b < cut.blocks() * (slice + 1) / slices; b++) {
      const int64_t first = cut.first(b), last = cut.first(b + 1), begin = cut.begin(first);
      const int64_t count = cut.begin(last) - begin;
      int64_t from_stride;
      const float* from = source.rows(begin, count, scratch + (scratch ? slice * room : 0), &from_stride);
      product(count, conv.in, out, from, from_stride, packed, e + begin * LANES, stride);
      if (!training) continue;
      for (int64_t p = 0; p < out; p++)
        for (int64_t s = first; s < last; s++)
          gather(e + p * stride + cut.begin(s) * LANES, cut.begin(s + 1) - cut.begin(s), &moments[p * cut.total() + s]);
    }
  });
  settle(conv.norm, moments, cut.total(), cut.rows(), training);
}

// From the gradient `g` of the normalised e and `affine` (per panel), the gradients of the weight and of the source;
// `fill(p, begin, count, to)` writes rows of e's gradient. dx may be null; `shortcut` (panels) is added to it.
template <class Fill>
inline void expand_backward(rex::Operation& op, const Conv& conv, const Source& source, int64_t images, int64_t size,
                            Fill&& fill, const float* shortcut, float* dx, float* dweight) {
  const Cut cut(images, size, block_rows(conv.in, conv.out));
  const int64_t in = panels(conv.in), out = panels(conv.out), stride = cut.rows() * LANES;
  const int64_t slices = std::min(cut.blocks(), weight_slices()), plane = padded(conv.in) * padded(conv.out);
  const float* const packed = dx ? pack_backward(op, conv) : nullptr;
  const int64_t room = padded(conv.out) * cut.most(), source_room = padded(conv.in) * cut.most();
  float* const scratch = op.take(slices * room);
  float* const source_scratch = source.stride ? nullptr : op.take(slices * source_room);
  float* const weights = op.take(slices * plane);
  rex::parallel(slices, [&](int64_t slice) {
    const int64_t begin_block = cut.blocks() * slice / slices, end_block = cut.blocks() * (slice + 1) / slices;
    for (int64_t b = begin_block; b < end_block; b++) {
      const int64_t first = cut.first(b), last = cut.first(b + 1), begin = cut.begin(first);
      const int64_t count = cut.begin(last) - begin;
      float* const de = scratch + slice * room;
      for (int64_t p = 0; p < out; p++) fill(p, begin, count, de + p * count * LANES);
      int64_t from_stride;
      const float* from =
          source.rows(begin, count, source_scratch ? source_scratch + slice * source_room : nullptr, &from_stride);
      outer(count, de, count * LANES, out, from, from_stride, in, weights + slice * plane, b == begin_block);
      if (!dx) continue;
      product(count, conv.out, in, de, count * LANES, packed, dx + begin * LANES, stride);
      if (!shortcut) continue;
      for (int64_t p = 0; p < in; p++) {
        float* to = dx + p * stride + begin * LANES;
        const float* add = shortcut + p * stride + begin * LANES;
        for (int64_t m = 0; m < count * LANES; m += LANES) store(to + m, load(to + m) + load(add + m));
      }
    }
  });
  join_slices(weights, slices, conv.out, conv.in, dweight);
}

}  // namespace REX_ISA
