// The backward pass of an expansion e = x W^T on large maps without ever storing e's gradient: where the pass before it
// (`fill`, the depthwise convolution's) gives a few rows of an image at a time, the products take them from the cache.
//
// The gradient of e is F g + S e + O per channel (`NormGradient`), whose S and O are known only after all of g. But the
// rest is linear in it, and e in x, so the products need not wait:
//   dW = F (g - mean g)^T x + S W X,  X = (x - mean x)^T (x - mean x)     small matrices: (wide, in) and (in, in)
//   dx = g (F W) + x (W^T S W) + O W
// That costs a product with an (in, in) matrix more for each of the two, and saves the memory four passes over a tensor
// of e's size. On small maps, where W has more rows than x, it would not pay.
#pragma once
#include "block.h"
#include "dense.h"

namespace REX_ISA {

class Strips {
 public:
  static bool serve(const Conv& conv, const Source& source, int64_t rows) {
    return source.stride && rows >= 64 * conv.in;
  }

  Strips(const Conv& conv, const Source& source, int64_t images, const Map& map, rex::Operation& op)
      : conv_(conv), source_(source), map_(map), images_(images), in_(panels(conv.in)), wide_(panels(conv.out)), op_(op) {
    const int64_t floats = 65536;  // 256 KiB: half of a common L2 cache
    const int64_t most = std::max<int64_t>(1, floats / (padded(conv.out) + padded(conv.in)) / map.width);
    per_image_ = (map.height + most - 1) / most;
    slices_ = std::min(count(), weight_slices());
    weights_ = op.take(slices_ * wide_ * in_ * LANES * LANES);
    squares_ = op.take(slices_ * in_ * in_ * LANES * LANES);
    sums_ = op.take(count() * in_ * LANES);
  }
  int64_t per_image() const { return per_image_; }
  int64_t count() const { return images_ * per_image_; }
  int64_t row(int64_t strip) const { return strip * map_.height / per_image_; }

  // fill(panel, image, strip, to, scratch) writes that strip of g. Sums up, and sets dx to g (F W).
  template <class Fill>
  void gather(int64_t scratch, float* dx, Fill&& fill) const {
    const int64_t rows = (map_.height / per_image_ + 1) * map_.width, stride = images_ * map_.size() * LANES;
    const int64_t room = wide_ * rows * LANES + scratch;
    float* const memory = op_.take(slices_ * room);
    const float* const packed = pack_scaled();
    rex::parallel(slices_, [&](int64_t slice) {
      float* const g = memory + slice * room;
      const int64_t first = count() * slice / slices_, last = count() * (slice + 1) / slices_;
      for (int64_t at = first; at < last; at++) {
        const int64_t image = at / per_image_, strip = at % per_image_;
        const int64_t begin = image * map_.size() + row(strip) * map_.width;
        const int64_t size = (row(strip + 1) - row(strip)) * map_.width;
        for (int64_t p = 0; p < wide_; p++) fill(p, image, strip, g + p * size * LANES, g + wide_ * rows * LANES);
        const float* const x = source_.data + begin * LANES;
        float* const weights = weights_ + slice * wide_ * in_ * LANES * LANES;
        float* const squares = squares_ + slice * in_ * in_ * LANES * LANES;
        outer(size, g, size * LANES, wide_, x, stride, in_, weights, at == first);
        outer<true>(size, x, stride, in_, x, stride, in_, squares, at == first);
        for (int64_t p = 0; p < in_; p++) {
          Moments moments;
          REX_ISA::gather(x + p * stride, size, &moments);
          store(sums_ + (at * in_ + p) * LANES, load(moments.sum));
        }
        product(size, conv_.out, in_, g, size * LANES, packed, dx + begin * LANES, stride);
      }
    });
  }

  // With the norm's gradient (factor, slope, offset of each panel in `affine`): dW, and what dx lacks with `shortcut`.
  void close(const float* affine, const float* shortcut, float* dx, float* dweight) const {
    const int64_t in = conv_.in, wide = conv_.out, line = in_ * LANES, rows = images_ * map_.size();
    join_slices(weights_, slices_, wide, in, dweight);
    float* const squares = op_.take(line * line);
    float* const means = op_.take(line);
    center(squares, means);
    float* const turned = op_.take(wide_ * LANES * line);  // W X, then S W
    rex::parallel(wide_, [&](int64_t p) {
      const int64_t first = p * LANES, count = std::min(LANES, wide - first);
      const float* const norm = affine + p * 3 * LANES;
      float* const wx = turned + first * line;
      sum_products(count, in, in, conv_.weight + first * in, in, 1, squares, line, wx, line);
      for (int64_t j = 0; j < count; j++) {
        // offset = -factor * mean of g - slope * mean of e, of which the first part is wanted here
        const float factor = norm[j], slope = norm[LANES + j];
        const float factor_sum = -(norm[2 * LANES + j] + slope * conv_.norm.mean[first + j]) * static_cast<float>(rows);
        float* const to = dweight + (first + j) * in;
        for (int64_t k = 0; k < in; k++) {
          to[k] = factor * to[k] - factor_sum * means[k] + slope * wx[j * line + k];
          wx[j * line + k] = slope * conv_.weight[(first + j) * in + k];
        }
      }
    });
    finish(affine, turned, shortcut, dx);
  }

 private:
  // F W as `product` wants it to multiply g.
  const float* pack_scaled() const {
    float* const packed = op_.take(padded(conv_.in) * conv_.out);
    rex::parallel(in_, [&](int64_t p) {
      float* const to = packed + p * conv_.out * LANES;
      pack_inputs(conv_.weight, conv_.out, conv_.in, p, to);
      for (int64_t c = 0; c < conv_.out; c++)
        store(to + c * LANES, load(to + c * LANES) * (conv_.norm.gamma[c] * conv_.norm.inverse[c]));
    });
    return packed;
  }

  // Sums the slices of x^T x and the strips of x: the products of centred x (rows of `in_` panels), and the means.
  void center(float* squares, float* means) const {
    const int64_t in = conv_.in, line = in_ * LANES;
    const double rows = static_cast<double>(images_ * map_.size());
    double* const sums = reinterpret_cast<double*>(op_.take(2 * line));
    for (int64_t k = 0; k < line; k++) sums[k] = 0;
    for (int64_t at = 0; at < count(); at++)
      for (int64_t k = 0; k < line; k++) sums[k] += sums_[at * line + k];
    for (int64_t k = 0; k < line; k++) means[k] = static_cast<float>(sums[k] / rows);
    rex::parallel((in + 15) / 16, [&](int64_t part) {
      for (int64_t k = part * 16; k < std::min(in, part * 16 + 16); k++)
        for (int64_t j = 0; j < line; j++) {
          double sum = 0;
          const int64_t at = j / LANES <= k / LANES ? k * line + j : j * line + k;
          for (int64_t s = 0; s < slices_; s++) sum += squares_[s * line * line + at];
          squares[k * line + j] = static_cast<float>(sum - sums[k] * sums[j] / rows);
        }
    });
  }

  // dx += x (W^T S W) + O W + shortcut, where `scaled` is S W.
  void finish(const float* affine, const float* scaled, const float* shortcut, float* dx) const {
    const int64_t in = conv_.in, line = in_ * LANES;
    float* const matrix = op_.take(in * in);
    float* const packed = op_.take(in * line);
    float* const offsets = op_.take(line);
    rex::parallel((in + 15) / 16, [&](int64_t part) {
      const int64_t first = part * 16, count = std::min<int64_t>(16, in - first);
      sum_products(count, conv_.out, in, scaled + first, 1, line, conv_.weight, in, matrix + first * in, in);
    });
    for (int64_t k = 0; k < line; k++) offsets[k] = 0;
    for (int64_t c = 0; c < conv_.out; c++)
      for (int64_t k = 0; k < in; k++)
        offsets[k] += affine[(c / LANES * 3 + 2) * LANES + c % LANES] * conv_.weight[c * in + k];
    for (int64_t p = 0; p < in_; p++) pack_inputs(matrix, in, in, p, packed + p * in * LANES);

    const int64_t stride = images_ * map_.size() * LANES, total = images_ * map_.size(), most = 240;
    const int64_t blocks = (total + most - 1) / most, slices = std::min(blocks, rex::num_threads() * 4);
    float* const memory = op_.take(slices * most * line);
    rex::parallel(slices, [&](int64_t slice) {
      float* const sum = memory + slice * most * line;
      for (int64_t b = blocks * slice / slices; b < blocks * (slice + 1) / slices; b++) {
        const int64_t begin = b * most, size = std::min(most, total - begin);
        product(size, in, in_, source_.data + begin * LANES, stride, packed, sum, size * LANES);
        for (int64_t p = 0; p < in_; p++) {
          const v8 offset = load(offsets + p * LANES);
          float* const to = dx + p * stride + begin * LANES;
          const float* const add = shortcut ? shortcut + p * stride + begin * LANES : nullptr;
          for (int64_t m = 0; m < size * LANES; m += LANES) {
            const v8 value = load(to + m) + (load(sum + p * size * LANES + m) + offset);
            store(to + m, add ? value + load(add + m) : value);
          }
        }
      }
    });
  }

  const Conv& conv_;
  const Source& source_;
  const Map& map_;
  int64_t images_, in_, wide_, per_image_, slices_;
  rex::Operation& op_;
  float *weights_, *squares_, *sums_;  // g^T x and x^T x of each slice, sums of x of each strip
};

}  // namespace REX_ISA
