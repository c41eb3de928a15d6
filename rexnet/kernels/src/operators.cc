// MindSpore's view of the kernels: `ops.Custom` hands over arrays of pointers and shapes, here they get names.
// Compiled once for each instruction set; dispatch.cc chooses among the tables at the end.
#include "table.h"

#include "network.h"

namespace REX_ISA {
namespace {

float* at(void** params, int64_t i) { return static_cast<float*>(params[i]); }

void read_geometry(Bottleneck* b, const int64_t* input, bool images) {
  b->images = images ? input[0] : input[1];
  const int64_t height = input[2], width = input[3];
  b->map.height = images ? (height - 1) / 2 + 1 : height;
  b->map.width = images ? (width - 1) / 2 + 1 : width;
  b->map.out_height = (b->map.height - 1) / b->stride + 1;
  b->map.out_width = (b->map.width - 1) / b->stride + 1;
  b->source = {nullptr, images ? 0 : b->images * b->map.size() * LANES, height, width, b->map.height, b->map.width};
}

// Inputs: x, scale (not of the first), 5 each of three convolutions, 8 of the gate if there is one.
// Outputs: y; in training also e, d, o and what the backward pass needs of statistics and gate.
int bottleneck_forward(const Call& call, bool images, int64_t stride, bool training) {
  rex::Operation op;
  Bottleneck b = {};
  b.stride = stride;
  read_geometry(&b, call.shapes[0], images);
  const int64_t base = images ? 1 : 2, num_outputs = training ? 5 : 1;
  b.gated = call.count - num_outputs > base + 15;
  b.source.data = at(call.params, 0);
  b.scale = images ? nullptr : at(call.params, 1);
  float* const* const output = reinterpret_cast<float**>(call.params + call.count - num_outputs);
  const int64_t wide = padded(call.shapes[base][0]), out = padded(call.shapes[base + 10][0]), n = b.images;
  float* saved;
  if (training) {
    b.e = output[1], b.d = output[2], b.o = output[3], saved = output[4];
  } else {
    b.e = op.take(wide * n * b.map.size());
    b.d = op.take(wide * n * b.map.out_size());
    b.o = op.take(out * n * b.map.out_size());
    const int64_t reduced = b.gated ? padded(call.shapes[base + 15][0]) : 0;
    saved = op.take(4 * wide + 2 * out + 2 * reduced + n * (2 * wide + reduced));
  }
  b.expansion = read_conv(call.params + base, call.shapes + base, true, &saved);
  b.depthwise = read_conv(call.params + base + 5, call.shapes + base + 5, true, &saved);
  b.projection = read_conv(call.params + base + 10, call.shapes + base + 10, true, &saved);
  if (b.gated) b.gate = read_gate(call.params + base + 15, call.shapes + base + 15, true, n, &saved);
  if (!images && stride == 1 && b.expansion.in <= b.projection.out) b.shortcut = b.source.data;
  forward(b, output[0], training, op);
  return 0;
}

// Inputs: dy, x, scale (not of the first), e, d, o, saved, 3 each of three convolutions, 4 of the gate.
// Outputs: dx (not of the first), the gradients of 3 each of three convolutions, 6 of the gate.
int bottleneck_backward(const Call& call, bool images, int64_t stride) {
  rex::Operation op;
  Bottleneck b = {};
  b.stride = stride;
  read_geometry(&b, call.shapes[1], images);
  const int64_t base = images ? 2 : 3;
  b.source.data = at(call.params, 1);
  b.scale = images ? nullptr : at(call.params, 2);
  b.e = at(call.params, base), b.d = at(call.params, base + 1), b.o = at(call.params, base + 2);
  float* saved = at(call.params, base + 3);
  void** const params = call.params + base + 4;
  int64_t** const shapes = call.shapes + base + 4;
  b.expansion = read_conv(params, shapes, false, &saved);
  b.depthwise = read_conv(params + 3, shapes + 3, false, &saved);
  b.projection = read_conv(params + 6, shapes + 6, false, &saved);
  const int64_t plain = base + 4 + 9 + (images ? 9 : 10);
  b.gated = call.count > plain;
  if (b.gated) b.gate = read_gate(params + 9, shapes + 9, false, b.images, &saved);
  if (!images && stride == 1 && b.expansion.in <= b.projection.out) b.shortcut = b.source.data;
  float* outputs[16] = {};
  const int64_t first = base + 4 + 9 + (b.gated ? 4 : 0);
  for (int64_t i = first; i < call.count; i++) outputs[i - first + (images ? 1 : 0)] = at(call.params, i);
  backward(b, at(call.params, 0), outputs, op);
  return 0;
}

Head read_head(const Call& call, int64_t input, int64_t conv, bool forward, float* saved) {
  Head head = {};
  const int64_t* const shape = call.shapes[input];
  head.images = shape[1], head.size = shape[2] * shape[3];
  head.source = {at(call.params, input), head.images * head.size * LANES, 0, 0, 0, 0};
  head.conv = read_conv(call.params + conv, call.shapes + conv, forward, &saved);
  return head;
}

// Inputs: x, 5 of the convolution. Outputs: pooled; in training also e and saved.
int head_forward(const Call& call, bool training) {
  rex::Operation op;
  const int64_t wide = padded(call.shapes[1][0]);
  float* const saved = training ? at(call.params, 8) : op.take(2 * wide);
  Head head = read_head(call, 0, 1, true, saved);
  head.e = training ? at(call.params, 7) : op.take(wide * head.images * head.size);
  forward(head, at(call.params, 6), training, op);
  return 0;
}

// Inputs: gradient of pooled, x, e, saved, 3 of the convolution. Outputs: dx, weight, gamma, beta.
int head_backward(const Call& call) {
  rex::Operation op;
  Head head = read_head(call, 1, 4, false, at(call.params, 3));
  head.e = at(call.params, 2);
  float* outputs[4];
  for (int i = 0; i < 4; i++) outputs[i] = at(call.params, 7 + i);
  backward(head, at(call.params, 0), outputs, op);
  return 0;
}

// See Network.
int network_gradient(const Call& call) {
  rex::Operation op;
  Network(call, op).run();
  return 0;
}

}  // namespace

extern const Table table;
const Table table = {bottleneck_forward, bottleneck_backward, head_forward, head_backward, network_gradient};

}  // namespace REX_ISA
