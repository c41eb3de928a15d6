// The operators of one instruction set, and what MindSpore hands to each of them.
#pragma once
#include <cstdint>

struct Call {
  int64_t count;     // of params: inputs, then outputs
  void** params;     // their data
  int64_t** shapes;  // and shapes
};

struct Table {
  int (*bottleneck_forward)(const Call& call, bool images, int64_t stride, bool training);
  int (*bottleneck_backward)(const Call& call, bool images, int64_t stride);
  int (*head_forward)(const Call& call, bool training);
  int (*head_backward)(const Call& call);
  int (*network_gradient)(const Call& call);
};
