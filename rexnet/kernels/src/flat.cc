// Many arrays as one vector and back: one operator in the graph where MindSpore's own would take one or more an array.
#include <cstdint>
#include <cstring>

namespace {

int64_t size_of(int rank, const int64_t* shape) {
  int64_t size = 1;
  for (int i = 0; i < rank; ++i) size *= shape[i];
  return size;
}

}  // namespace

#define REX_EXPORT extern "C" __attribute__((visibility("default")))

// Inputs a_1 .. a_k -> the vector of them one after the other.
REX_EXPORT int gather_flat(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  float* out = static_cast<float*>(data[count - 1]);
  for (int i = 0; i + 1 < count; ++i) {
    const int64_t size = size_of(ranks[i], shapes[i]);
    std::memcpy(out, data[i], size * sizeof(float));
    out += size;
  }
  return 0;
}

// Inputs the vector and a_1 .. a_k, which are written in place -> one number, for whoever has to come after it.
REX_EXPORT int scatter_flat(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  const float* in = static_cast<const float*>(data[0]);
  for (int i = 1; i + 1 < count; ++i) {
    const int64_t size = size_of(ranks[i], shapes[i]);
    std::memcpy(data[i], in, size * sizeof(float));
    in += size;
  }
  *static_cast<float*>(data[count - 1]) = 0;
  return 0;
}
