// What a step does to the weights, in one pass over memory and in place: `rexnet.optimizer.Sgd`, and the moving
// average of `rexnet.flat.Average`. Each element is computed from its own values alone, so threads change no bit.
#include "flat.h"

namespace {

struct Sgd {
  float divisor, lr, momentum;
  bool nesterov;

  // `decays` holds one value for each element or one for all.
  template <bool EACH>
  void update(int64_t count, const float* __restrict gradients, const float* __restrict decays,
              float* __restrict velocities, float* __restrict weights) const {
    for (int64_t i = 0; i < count; ++i) {
      const float gradient = gradients[i] / divisor + decays[EACH ? i : 0] * weights[i];
      const float velocity = momentum * velocities[i] + gradient;
      velocities[i] = velocity;
      weights[i] -= lr * (nesterov ? gradient + momentum * velocity : velocity);
    }
  }
};

}  // namespace

// Inputs: gradients (k or more,), divisor (), lr (), go (), (momentum, nesterov), decays (1 or k,), velocities (k,),
// then the weights a_1 .. a_n of k elements in all; velocities and weights are written in place, unless go is 0.
// Output: one number, for whoever has to come after it.
REX_EXPORT int sgd_update(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  constexpr int FIRST = 7;
  float* const* const values = reinterpret_cast<float**>(data);
  const float *gradients = values[0], *decays = values[5];
  const Sgd sgd = {*values[1], *values[2], values[4][0], values[4][1] != 0};
  const bool each = rex::size_of(ranks[5], shapes[5]) > 1;
  if (*values[3] != 0) {
    const rex::Flat weights(count - 1 - FIRST, data + FIRST, ranks + FIRST, shapes + FIRST);
    weights.for_pieces([&](float* to, int64_t at, int64_t size) {
      if (each) sgd.update<true>(size, gradients + at, decays + at, values[6] + at, to);
      else sgd.update<false>(size, gradients + at, decays, values[6] + at, to);
    });
  }
  *values[count - 1] = 0;
  return 0;
}

// Inputs: average (k,), decay (), then a_1 .. a_n of k elements in all; average = decay * average + (1 - decay) * a in
// place. Output: one number, for whoever has to come after it.
REX_EXPORT int average_flat(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  float* const average = static_cast<float*>(data[0]);
  const float decay = *static_cast<const float*>(data[1]), rest = 1 - decay;
  rex::Flat(count - 3, data + 2, ranks + 2, shapes + 2).for_pieces([&](const float* values, int64_t at, int64_t size) {
    for (int64_t i = 0; i < size; ++i) average[at + i] = average[at + i] * decay + values[i] * rest;
  });
  *static_cast<float*>(data[count - 1]) = 0;
  return 0;
}
