// One step of Sophia over many fp32 tensors: reads p, g, m, h and writes p, m once, 24 bytes a parameter.
// The tensors are cut into chunks and the chunks dealt to the threads, so that many small ones cost no more than one.
#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kChunk = 16384;  // 256 KB of the four arrays: stays in a core's own cache

inline int64_t chunk(float* __restrict p, const float* __restrict g, float* __restrict m, const float* __restrict h,
                     int64_t n, float beta1, float gamma, float eps, float shrink, float lr) {
  int32_t within = 0;
#pragma omp simd reduction(+ : within)
  for (int64_t i = 0; i < n; ++i) {
    const float mean = beta1 * m[i] + (1.0f - beta1) * g[i];
    const float scaled = gamma * h[i];
    const float divisor = scaled < eps ? eps : scaled;  // a NaN stays
    const float ratio = mean / divisor;
    const float low = ratio < -1.0f ? -1.0f : ratio;
    const float clipped = low > 1.0f ? 1.0f : low;
    within += (ratio > -1.0f) & (ratio < 1.0f);
    m[i] = mean;
    p[i] = shrink * p[i] - lr * clipped;
  }
  return within;
}

}  // namespace

// pointers: p, g, m, h of tensor 0, then of tensor 1, ...
extern "C" int64_t sophia_step(int64_t tensors, float* const* pointers, const int64_t* sizes, int threads, float beta1,
                               float gamma, float eps, float shrink, float lr) {
  int64_t elements = 0;
  for (int64_t t = 0; t < tensors; ++t) elements += sizes[t];
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, elements / 32768)));
  int64_t within = 0;
#pragma omp parallel num_threads(threads) reduction(+ : within) if (threads > 1)
  for (int64_t t = 0; t < tensors; ++t) {
    float* const* at = pointers + 4 * t;
    const int64_t n = sizes[t], chunks = (n + kChunk - 1) / kChunk;
#pragma omp for schedule(static) nowait
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t start = c * kChunk;
      within += chunk(at[0] + start, at[1] + start, at[2] + start, at[3] + start, std::min(kChunk, n - start), beta1,
                      gamma, eps, shrink, lr);
    }
  }
  return within;
}
