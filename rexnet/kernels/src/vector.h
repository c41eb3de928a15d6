// Eight floats at a time: the unit of all kernels. GCC and Clang vector extensions, so one source serves every
// instruction set; the build compiles it once for each that it dispatches to.
#pragma once
#include <cstdint>
#include <cstring>

namespace REX_ISA {

constexpr int64_t LANES = 8;
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4)));

#define REX_INLINE static inline __attribute__((always_inline))

REX_INLINE v8 load(const float* p) { return *reinterpret_cast<const v8u*>(p); }
REX_INLINE void store(float* p, v8 x) { *reinterpret_cast<v8u*>(p) = x; }
REX_INLINE v8 splat(float x) { return v8{x, x, x, x, x, x, x, x}; }
#if defined(__AVX__)  // GCC makes two instructions of the other lines, which compute the same
REX_INLINE v8 larger(v8 a, v8 b) { return __builtin_ia32_maxps256(a, b); }
REX_INLINE v8 smaller(v8 a, v8 b) { return __builtin_ia32_minps256(a, b); }
#else
REX_INLINE v8 larger(v8 a, v8 b) { return a > b ? a : b; }
REX_INLINE v8 smaller(v8 a, v8 b) { return a < b ? a : b; }
#endif

// Channels of panel p out of `count`; those beyond the last are 0.
REX_INLINE v8 load_channels(const float* p, int64_t panel, int64_t count) {
  if ((panel + 1) * LANES <= count) return load(p + panel * LANES);
  float values[LANES] = {};
  std::memcpy(values, p + panel * LANES, sizeof(float) * (count - panel * LANES));
  return load(values);
}
REX_INLINE void store_channels(float* p, int64_t panel, int64_t count, v8 x) {
  if ((panel + 1) * LANES <= count) return store(p + panel * LANES, x);
  float values[LANES];
  store(values, x);
  std::memcpy(p + panel * LANES, values, sizeof(float) * (count - panel * LANES));
}

// e^x by the range reduction and polynomial of the Cephes library (expf): relative error below 2e-7.
REX_INLINE v8 exponential(v8 x) {
  x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
  const v8 shifted = x * 1.44269504f + shift;
  const v8 n = shifted - shift;
  const v8 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  v8 y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const v8i exponent = (reinterpret_cast<v8i>(shifted) - 0x4b400000 + 127) << 23;
  return y * reinterpret_cast<v8>(exponent);
}
}  // namespace REX_ISA
