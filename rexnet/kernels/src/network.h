// A whole training pass as one operator: images and labels to the vector of all gradients. Nothing between stem and
// gradient leaves the kernels' own memory, so no layer waits for a scheduler, and each gradient is written where it
// belongs in the vector.
#pragma once
#include <vector>

#include "bottleneck.h"
#include "classifier.h"
#include "head.h"

namespace REX_ISA {

// What the operator is told about the network besides the shapes of its parameters: see `rexnet.kernels.network`.
struct Plan {
  bool drops, mixes;
  int64_t num_blocks;
  const int *blocks, *offsets;  // stride, gated, column of `paths` or -1; per parameter, where its gradient goes or -1
  explicit Plan(const int* plan)
      : drops(plan[0]), mixes(plan[1]), num_blocks(plan[2]), blocks(plan + 3), offsets(plan + 3 + 3 * num_blocks) {}
  int64_t stride(int64_t i) const { return blocks[3 * i]; }
  bool gated(int64_t i) const { return blocks[3 * i + 1]; }
  int path(int64_t i) const { return blocks[3 * i + 2]; }
};

// A block as the backward pass wants it: where its gradients go, in the order of `backward`'s outputs.
struct Layer {
  Bottleneck block;
  int64_t first;   // of its parameters
  float* outputs[16];
};

class Network {
 public:
  // Inputs: images, labels, other labels, mask, paths, control, scale of the loss, (smoothing), plan, parameters.
  // Output: the gradients, the scaled loss, control's wish to stop.
  Network(const Call& call, rex::Operation& op)
      : op_(op), plan_(static_cast<const int*>(call.params[8])), params_(call.params + INPUTS),
        shapes_(call.shapes + INPUTS), flat_(static_cast<float*>(call.params[call.count - 1])),
        length_(call.shapes[call.count - 1][0] - 2) {
    const int64_t* const shape = call.shapes[0];
    images_ = shape[0];
    int64_t size[2] = {shape[2], shape[3]}, at = 0;
    const float* x = value(call, 0);
    for (int64_t i = 0; i < plan_.num_blocks; i++) {
      layers_.push_back(read_layer(i, at, x, size, call));
      const Bottleneck& block = layers_.back().block;
      size[0] = block.map.out_height, size[1] = block.map.out_width;
      x = outputs_.emplace_back(op.take(padded(block.projection.out) * images_ * block.map.out_size()));
      at += plan_.gated(i) ? 23 : 15;
    }
    head_first_ = at;
    float* saved = op.take(2 * padded(shapes_[at][0]));
    head_.images = images_, head_.size = size[0] * size[1];
    head_.source = {x, images_ * head_.size * LANES, 0, 0, 0, 0};
    head_.conv = read_conv(params_ + at, shapes_ + at, true, &saved);
    head_.e = op.take(padded(head_.conv.out) * images_ * head_.size);
    at += 5;
    const float* const control = value(call, 5);
    classifier_ = {images_, shapes_[at][1], shapes_[at][0], at_param(at), at_param(at + 1),
                   plan_.drops ? value(call, 3) : nullptr, static_cast<const int*>(call.params[1]),
                   plan_.mixes ? static_cast<const int*>(call.params[2]) : nullptr, control[MIX], *value(call, 7),
                   *value(call, 6)};
    classifier_first_ = at;
    flat_[length_ + 1] = control[STOP];
  }

  void run() {
    for (size_t i = 0; i < layers_.size(); i++) {
      const rex::Scope scope(op_);
      forward(layers_[i].block, outputs_[i], true, op_);
    }
    float* const pooled = op_.take(images_ * classifier_.features);
    float* const dpooled = op_.take(images_ * classifier_.features);
    int64_t widest = padded(layers_.back().block.projection.out) * images_ * head_.size;
    for (size_t i = 1; i < layers_.size(); i++) {
      const Bottleneck& block = layers_[i].block;
      widest = std::max(widest, padded(block.expansion.in) * images_ * block.map.size());
    }
    float* gradients[2] = {op_.take(widest), op_.take(widest)};
    {
      const rex::Scope scope(op_);
      forward(head_, pooled, true, op_);
      flat_[length_] = classifier_gradient(classifier_, pooled, dpooled, goal(classifier_first_),
                                           goal(classifier_first_ + 1), op_);
      float* outputs[4] = {gradients[0], goal(head_first_), goal(head_first_ + 1), goal(head_first_ + 2)};
      backward(head_, dpooled, outputs, op_);
    }
    for (size_t i = layers_.size(); i-- > 0;) {
      const rex::Scope scope(op_);
      Layer& layer = layers_[i];
      layer.outputs[0] = i ? gradients[1] : nullptr;
      backward(layer.block, gradients[0], layer.outputs, op_);
      std::swap(gradients[0], gradients[1]);
    }
  }

 private:
  static constexpr int64_t INPUTS = 9, STOP = 1, MIX = 2;

  static const float* value(const Call& call, int64_t i) { return static_cast<const float*>(call.params[i]); }
  const float* at_param(int64_t i) const { return static_cast<const float*>(params_[i]); }
  float* goal(int64_t parameter) const { return flat_ + plan_.offsets[parameter]; }

  Layer read_layer(int64_t i, int64_t first, const float* x, const int64_t* size, const Call& call) {
    Layer layer = {};
    Bottleneck& b = layer.block;
    const int64_t n = images_;
    b.images = n, b.stride = plan_.stride(i), b.gated = plan_.gated(i);
    b.map.height = i ? size[0] : (size[0] - 1) / 2 + 1;  // the first block's expansion is the stem, of stride 2
    b.map.width = i ? size[1] : (size[1] - 1) / 2 + 1;
    b.map.out_height = (b.map.height - 1) / b.stride + 1;
    b.map.out_width = (b.map.width - 1) / b.stride + 1;
    b.source = {x, i ? n * b.map.size() * LANES : 0, size[0], size[1], b.map.height, b.map.width};
    const int64_t wide = padded(shapes_[first][0]), out = padded(shapes_[first + 10][0]);
    const int64_t reduced = b.gated ? padded(shapes_[first + 15][0]) : 0;
    float* saved = op_.take(4 * wide + 2 * out + 2 * reduced + n * (2 * wide + reduced));
    b.expansion = read_conv(params_ + first, shapes_ + first, true, &saved);
    b.depthwise = read_conv(params_ + first + 5, shapes_ + first + 5, true, &saved);
    b.projection = read_conv(params_ + first + 10, shapes_ + first + 10, true, &saved);
    if (b.gated) b.gate = read_gate(params_ + first + 15, shapes_ + first + 15, true, n, &saved);
    b.e = op_.take(wide * n * b.map.size());
    b.d = op_.take(wide * n * b.map.out_size());
    b.o = op_.take(out * n * b.map.out_size());
    if (i && b.stride == 1 && b.expansion.in <= b.projection.out) b.shortcut = x;
    if (plan_.path(i) >= 0) {
      float* const scale = op_.take(n);
      for (int64_t image = 0; image < n; image++)
        scale[image] = value(call, 4)[image * call.shapes[4][1] + plan_.path(i)];
      b.scale = scale;
    }
    for (int64_t conv = 0; conv < 3; conv++)
      for (int64_t k = 0; k < 3; k++) layer.outputs[1 + 3 * conv + k] = goal(first + 5 * conv + k);
    const int64_t of_gate[6] = {0, 1, 2, 3, 6, 7};  // without the moving statistics
    for (int64_t k = 0; b.gated && k < 6; k++) layer.outputs[10 + k] = goal(first + 15 + of_gate[k]);
    return layer;
  }

  rex::Operation& op_;
  Plan plan_;
  void** params_;
  int64_t** shapes_;
  float* flat_;
  int64_t length_, images_ = 0, head_first_ = 0, classifier_first_ = 0;
  std::vector<Layer> layers_;
  std::vector<float*> outputs_;
  Head head_ = {};
  Classifier classifier_ = {};
};

}  // namespace REX_ISA
