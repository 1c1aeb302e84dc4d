// A product with the integers of one expert out of many, for the few rows that go to each: they are read once, and become floats
// in registers.
//   y[r][n] = sum over g of s[n][g] sum over k in group g of (q[n][k] - z[n][g]) x[r][k]
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

typedef uint8_t Bytes __attribute__((vector_size(LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));

template <class Vector>
inline Vector load(const void* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

inline Whole whole(Bytes q) {
#ifdef __x86_64__
  __asm__("" : "+x"(q));  // g++ 12 would fetch them from memory one by one
#endif
  return __builtin_convertvector(q, Whole);
}

// One output channel of some rows: sums of s (q - z) x. A weight is made once for all rows, and a sum waits four cycles for the one
// before it, so that eight of them go on side by side, in registers, over a group. Of four bits the even numbers of a group come
// before its odd ones.
template <int ROWS, int BITS>
void channel(const uint8_t* q, const float* s, const uint8_t* z, const float* x, int64_t inputs, int64_t groups, float* y,
             int64_t outputs) {
  constexpr int BESIDE = 8 / ROWS, PARTS = 8 / BITS, STEP = BESIDE / PARTS;
  const int64_t bytes = inputs / groups / PARTS;
  Lanes sums[ROWS] = {};
  float rest[ROWS] = {};
  for (int64_t g = 0; g < groups; ++g, q += bytes, x += bytes * PARTS) {
    const float scale = s[g], zero = z[g];
    Lanes here[ROWS][BESIDE] = {};
    const auto take = [&](int64_t i, int j) {
      const Whole both = whole(load<Bytes>(q + i));
#pragma GCC unroll 2
      for (int part = 0; part < PARTS; ++part) {
        const Lanes weight = __builtin_convertvector(BITS == 8 ? both : part ? both >> 4 : both & 15, Lanes) - zero;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) here[r][j * PARTS + part] += weight * load<Lanes>(x + r * inputs + part * bytes + i);
      }
    };
    int64_t i = 0;
    for (; i + STEP * LANES <= bytes; i += STEP * LANES)
#pragma GCC unroll 8
      for (int j = 0; j < STEP; ++j) take(i + j * LANES, j);
    for (; i + LANES <= bytes; i += LANES) take(i, 0);
    for (; i < bytes; ++i)
      for (int part = 0; part < PARTS; ++part) {
        const float weight = scale * ((BITS == 8 ? q[i] : part ? q[i] >> 4 : q[i] & 15) - zero);
        for (int r = 0; r < ROWS; ++r) rest[r] += weight * x[r * inputs + part * bytes + i];
      }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      Lanes total = here[r][0];
#pragma GCC unroll 8
      for (int j = 1; j < BESIDE; ++j) total += here[r][j];
      sums[r] += scale * total;
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float sum = rest[r];
    for (int64_t l = 0; l < LANES; ++l) sum += sums[r][l];
    y[r * outputs] = sum;
  }
}

// All rows of an expert for one of its output channels.
template <int BITS>
void rows_of(const uint8_t* q, const float* s, const uint8_t* z, const float* x, int64_t inputs, int64_t groups, float* y,
             int64_t outputs, int64_t rows) {
  for (; rows >= 4; rows -= 4, x += 4 * inputs, y += 4 * outputs) channel<4, BITS>(q, s, z, x, inputs, groups, y, outputs);
  if (rows == 3) channel<3, BITS>(q, s, z, x, inputs, groups, y, outputs);
  if (rows == 2) channel<2, BITS>(q, s, z, x, inputs, groups, y, outputs);
  if (rows == 1) channel<1, BITS>(q, s, z, x, inputs, groups, y, outputs);
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
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t first = e ? ends[e - 1] : 0, last = ends[e];
    if (first >= last) continue;
#pragma omp for nowait
    for (int64_t n = 0; n < outputs; ++n) {
      const int64_t at = e * outputs + n;
      (bits == 4 ? rows_of<4> : rows_of<8>)(q + at * bytes, s + at * groups, z + at * groups, given + first * inputs, inputs, groups,
                                            y + first * outputs + n, outputs, last - first);
    }
  }
}
