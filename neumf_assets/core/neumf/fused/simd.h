// Vectors of the widest kind that the compiler targets, spelled with the GCC/Clang vector extension.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <cstdlib>
#include <new>

namespace fused {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float Quad __attribute__((vector_size(16)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec keep(IntVec condition, Vec v) { return (Vec)(condition & (IntVec)v); }
inline Vec choose(IntVec condition, Vec yes, Vec no) {
  return (Vec)((condition & (IntVec)yes) | (~condition & (IntVec)no));
}
inline Vec relu(Vec v) { return keep(v > Vec{}, v); }
inline Vec at_least(Vec v, Vec low) { return choose(v < low, low, v); }
inline Vec at_most(Vec v, Vec high) { return choose(v > high, high, v); }

inline float sum(Vec v) {
  Quad part[kLanes / 4], total{};
  std::memcpy(part, &v, sizeof v);
  for (const Quad& q : part) total += q;
  return (total[0] + total[2]) + (total[1] + total[3]);
}

// e^x within 2 units in the last place for |x| <= 87 (callers clamp): 2^n times a polynomial on
// [-ln2/2, ln2/2].
inline Vec exponential(Vec x) {
  const Vec shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec n = (x * 1.44269504088896341f + shifter) - shifter;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec exponent = __builtin_convertvector(n, IntVec) + 127;
  return p * (Vec)(exponent << 23);
}

// ln(x) for finite x > 0, relative error about 1e-7.
inline Vec logarithm(Vec x) {
  IntVec bits = (IntVec)x;
  IntVec exponent = ((bits >> 23) & 255) - 126;
  Vec m = (Vec)((bits & 0x007fffff) | 0x3f000000);  // mantissa in [0.5, 1)
  const IntVec small = m < 0.707106781186547524f;
  exponent = exponent + small;  // a true lane is -1
  m = m + keep(small, m) - 1.0f;
  Vec p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Vec square = m * m;
  const Vec e = __builtin_convertvector(exponent, Vec);
  return m + (p * m * square - 0.5f * square - 2.12194440e-4f * e) + 0.693359375f * e;
}

// Zeroed memory on a cache-line boundary.
template <class T>
struct Buffer {
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> memory;
  Buffer() = default;
  explicit Buffer(int64_t n) { reset(n); }
  void reset(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 127) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes);
    if (p == nullptr) throw std::bad_alloc();
    std::memset(p, 0, bytes);
    memory.reset(static_cast<T*>(p));
  }
  operator T*() const { return memory.get(); }
};

// Memory on a cache-line boundary that is kept for the next use.
class Reused {
 public:
  // At least n floats, of any value.
  void need(int64_t n) {
    if (n > size) memory.reset(size = n);
  }
  void zero(int64_t n) {
    need(n);
    if (n) std::memset(memory, 0, n * sizeof(float));
  }
  operator float*() const { return memory; }

 private:
  Buffer<float> memory;
  int64_t size = 0;
};

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace fused
