// A product with the integers of one expert out of many, for the few rows that go to each: they are read once, and one output
// channel at a time is dequantized where it stays in a core's own cache.
//   y[r][n] = sum over k of w[n][k] x[r][k],  w[n][k] = s[n][g] (q[n][k] - z[n][g]) for k in group g
// Rows are sorted by expert; of four bits, number 2j is the low half of byte j.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES)));

inline Lanes load(const float* from) {
  Lanes found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

// A weight is loaded once for all rows. A sum waits four cycles for the one before it, so eight of them go on side by side.
template <int ROWS>
inline void dots(const float* w, const float* x, int64_t stride, int64_t n, float* y, int64_t outputs) {
  constexpr int BESIDE = 8 / ROWS;
  Lanes sums[ROWS][BESIDE] = {};
  int64_t i = 0;
  for (; i + BESIDE * LANES <= n; i += BESIDE * LANES)
    for (int j = 0; j < BESIDE; ++j) {
      const Lanes weight = load(w + i + j * LANES);
      for (int r = 0; r < ROWS; ++r) sums[r][j] += weight * load(x + r * stride + i + j * LANES);
    }
  for (int r = 0; r < ROWS; ++r) {
    float sum = 0.0f;
    for (int j = 0; j < BESIDE; ++j)
      for (int64_t l = 0; l < LANES; ++l) sum += sums[r][j][l];
    for (int64_t k = i; k < n; ++k) sum += w[k] * x[r * stride + k];
    y[r * outputs] = sum;
  }
}

inline void eight(const uint8_t* q, float s, float z, float* w, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) w[i] = s * (static_cast<float>(static_cast<int32_t>(q[i])) - z);
}

// The even numbers of a group, then its odd ones.
inline void four(const uint8_t* q, float s, float z, float* w, int64_t n) {
  const int64_t half = n / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const int32_t both = q[i];
    w[i] = s * (static_cast<float>(both & 15) - z);
    w[half + i] = s * (static_cast<float>(both >> 4) - z);
  }
}

}  // namespace

extern "C" void grouped_integers(const float* x, const uint8_t* q, const float* s, const uint8_t* z, const int64_t* ends, float* y,
                                 int64_t rows, int64_t experts, int64_t outputs, int64_t inputs, int64_t groups, int bits,
                                 int threads) {
  const int64_t group = inputs / groups, bytes = inputs * bits / 8, half = group / 2;
  std::vector<float> apart(bits == 4 ? rows * inputs : 0);
  for (int64_t r = 0; bits == 4 && r < rows; ++r)
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t k = 0; k < half; ++k) {
        const int64_t at = r * inputs + g * group;
        apart[at + k] = x[at + 2 * k];
        apart[at + half + k] = x[at + 2 * k + 1];
      }
  const float* given = bits == 4 ? apart.data() : x;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> weight(inputs);
    float* w = weight.data();
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t first = e ? ends[e - 1] : 0, last = ends[e];
      if (first >= last) continue;
#pragma omp for nowait
      for (int64_t n = 0; n < outputs; ++n) {
        const int64_t at = e * outputs + n;
        for (int64_t g = 0; g < groups; ++g) {
          const uint8_t* numbers = q + at * bytes + g * group * bits / 8;
          (bits == 4 ? four : eight)(numbers, s[at * groups + g], z[at * groups + g], w + g * group, group);
        }
        int64_t r = first;
        for (; r + 4 <= last; r += 4) dots<4>(w, given + r * inputs, inputs, inputs, y + r * outputs + n, outputs);
        const float* rest = given + r * inputs;
        float* found = y + r * outputs + n;
        switch (last - r) {
          case 3: dots<3>(w, rest, inputs, inputs, found, outputs); break;
          case 2: dots<2>(w, rest, inputs, inputs, found, outputs); break;
          case 1: dots<1>(w, rest, inputs, inputs, found, outputs); break;
        }
      }
    }
  }
}
