// Many arrays as one vector and back: one operator in the graph where MindSpore's own would take one or more an array.
#include "flat.h"

#include <cstring>

// Inputs a_1 .. a_k -> the vector of them one after the other.
REX_EXPORT int gather_flat(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  float* const out = static_cast<float*>(data[count - 1]);
  rex::Flat(count - 1, data, ranks, shapes).for_pieces([&](const float* values, int64_t at, int64_t size) {
    std::memcpy(out + at, values, size * sizeof(float));
  });
  return 0;
}

// Inputs the vector and a_1 .. a_k, which are written in place -> one number, for whoever has to come after it.
REX_EXPORT int scatter_flat(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  const float* const in = static_cast<const float*>(data[0]);
  rex::Flat(count - 2, data + 1, ranks + 1, shapes + 1).for_pieces([&](float* values, int64_t at, int64_t size) {
    std::memcpy(values, in + at, size * sizeof(float));
  });
  *static_cast<float*>(data[count - 1]) = 0;
  return 0;
}
