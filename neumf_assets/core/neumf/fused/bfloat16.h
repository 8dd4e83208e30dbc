// The tower in bfloat16 on Intel's AMX tiles, accumulated in float32.
//
// A group is one cell with 32 genes. Units are rows and pairs are lanes throughout, so that the first layer, the
// loss and the masks of the rectifiers are whole-vector operations. A matrix takes one of these forms, always as
// tiles of 16 rows x 64 bytes:
//   rows      [units][32 pairs] bfloat16: left operand of the products that sum over pairs (weight gradients)
//   columns   [units / 2][16 pairs][2 units], one tile for each half of the group: right operand of the products
//             that sum over units (forward, and gradients by activations)
//   crossed   [pairs / 2][16 units][2 pairs]: right operand of the products that sum over pairs
// `columns` comes from two lines of `rows` by unpacking 16-bit words within 128-bit lanes. That permutes the pairs
// in blocks of four: block 2 q + h goes to place q of half h. So the pairs of layer l lie in an order that is this
// permutation, l times. Going back, gradients return to the order of the layer below as they are put into columns.
#pragma once
#include "objective.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__linux__)
#define FUSED_BFLOAT16 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace fused {

#define TILE_LOAD(t, p, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"(static_cast<long>(stride)) : "memory")
#define TILE_STORE(t, p, stride) \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"(static_cast<long>(stride)) : "memory")
#define TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::)
#define TILE_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

constexpr int kPairs = 32;          // of a group
constexpr int kGroups = 4;          // groups (cells) whose activations are held at once; divides 16
constexpr int kTileBytes = 1024;
constexpr int kScratchRow = kPairs * sizeof(float);

inline bool allow_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  static const bool allowed = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return allowed;
}

// Eight full tiles while it lives.
struct TileSession {
  TileSession() {
    alignas(64) uint8_t config[64] = {1};
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = 64;
      config[48 + t] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileSession() { asm volatile("tilerelease" ::); }
};

// Tiles along the summed dimension of a product: the first one, bytes to the next one, bytes between rows.
struct Tiles {
  const char* p;
  int64_t step;
  int64_t row = 64;
};
struct Accumulator {
  const char* start;  // null: zero
  char* c;
  int64_t row;  // bytes between rows of c; those of start lie 64 apart
};

#define ACCUMULATOR_BEGIN(t, x)  \
  if ((x).start == nullptr) {    \
    TILE_ZERO(t);                \
  } else {                       \
    TILE_LOAD(t, (x).start, 64); \
  }
#define ACCUMULATOR_END(t, x) TILE_STORE(t, (x).c, (x).row)

// `work` is vector work to do while the products run: stores leave the core in program order, so that a store of a
// tile that is still being computed would hold up all later ones.
template <class Work>
inline void multiply22(Tiles a0, Tiles a1, Tiles b0, Tiles b1, int depth, const Accumulator (&c)[2][2],
                       Work&& work) {
  ACCUMULATOR_BEGIN(0, c[0][0]);
  ACCUMULATOR_BEGIN(1, c[0][1]);
  ACCUMULATOR_BEGIN(2, c[1][0]);
  ACCUMULATOR_BEGIN(3, c[1][1]);
  for (int k = 0; k < depth; ++k) {
    TILE_LOAD(4, a0.p + k * a0.step, a0.row);
    TILE_LOAD(6, b0.p + k * b0.step, b0.row);
    TILE_MULTIPLY(0, 4, 6);
    TILE_LOAD(7, b1.p + k * b1.step, b1.row);
    TILE_MULTIPLY(1, 4, 7);
    TILE_LOAD(5, a1.p + k * a1.step, a1.row);
    TILE_MULTIPLY(2, 5, 6);
    TILE_MULTIPLY(3, 5, 7);
  }
  work();
  ACCUMULATOR_END(0, c[0][0]);
  ACCUMULATOR_END(1, c[0][1]);
  ACCUMULATOR_END(2, c[1][0]);
  ACCUMULATOR_END(3, c[1][1]);
}

template <class Work>
inline void multiply12(Tiles a, Tiles b0, Tiles b1, int depth, const Accumulator& c0, const Accumulator& c1,
                       Work&& work) {
  ACCUMULATOR_BEGIN(0, c0);
  ACCUMULATOR_BEGIN(1, c1);
  for (int k = 0; k < depth; ++k) {
    TILE_LOAD(4, a.p + k * a.step, a.row);
    TILE_LOAD(6, b0.p + k * b0.step, b0.row);
    TILE_MULTIPLY(0, 4, 6);
    TILE_LOAD(7, b1.p + k * b1.step, b1.row);
    TILE_MULTIPLY(1, 4, 7);
  }
  work();
  ACCUMULATOR_END(0, c0);
  ACCUMULATOR_END(1, c1);
}

inline void multiply21(Tiles a0, Tiles a1, Tiles b, int depth, const Accumulator& c0, const Accumulator& c1) {
  ACCUMULATOR_BEGIN(0, c0);
  ACCUMULATOR_BEGIN(2, c1);
  for (int k = 0; k < depth; ++k) {
    TILE_LOAD(6, b.p + k * b.step, b.row);
    TILE_LOAD(4, a0.p + k * a0.step, a0.row);
    TILE_MULTIPLY(0, 4, 6);
    TILE_LOAD(5, a1.p + k * a1.step, a1.row);
    TILE_MULTIPLY(2, 5, 6);
  }
  ACCUMULATOR_END(0, c0);
  ACCUMULATOR_END(2, c1);
}

inline void multiply11(Tiles a, Tiles b, int depth, const Accumulator& c) {
  ACCUMULATOR_BEGIN(0, c);
  for (int k = 0; k < depth; ++k) {
    TILE_LOAD(4, a.p + k * a.step, a.row);
    TILE_LOAD(6, b.p + k * b.step, b.row);
    TILE_MULTIPLY(0, 4, 6);
  }
  ACCUMULATOR_END(0, c);
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Place in the order of layer l + 1 of the pair at place p of layer l.
constexpr int moved(int p) { return ((p / 4 % 2) * 4 + p / 8) * 4 + p % 4; }

inline __m512i row_of(const float* z) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(z + 16), _mm512_load_ps(z));
}

// 16 rows of 16 double words, 64 bytes apart, to columns; column r goes to row `place[r]`.
inline void cross(const uint16_t* from, uint16_t* to, const int8_t (&place)[16]) {
  __m512i r[16], t[16];
  for (int i = 0; i < 4; ++i) {
    for (int lane = 0; lane < 4; ++lane) {
      const uint16_t* p = from + i * 32 + lane * 8;
      __m512i v = _mm512_castsi128_si512(_mm_load_si128((const __m128i*)p));
      v = _mm512_inserti32x4(v, _mm_load_si128((const __m128i*)(p + 4 * 32)), 1);
      v = _mm512_inserti32x4(v, _mm_load_si128((const __m128i*)(p + 8 * 32)), 2);
      v = _mm512_inserti32x4(v, _mm_load_si128((const __m128i*)(p + 12 * 32)), 3);
      r[lane * 4 + i] = v;
    }
  }
  for (int lane = 0; lane < 16; lane += 4) {
    t[0] = _mm512_unpacklo_epi32(r[lane], r[lane + 1]);
    t[1] = _mm512_unpackhi_epi32(r[lane], r[lane + 1]);
    t[2] = _mm512_unpacklo_epi32(r[lane + 2], r[lane + 3]);
    t[3] = _mm512_unpackhi_epi32(r[lane + 2], r[lane + 3]);
    _mm512_store_si512(to + 32 * place[lane], _mm512_unpacklo_epi64(t[0], t[2]));
    _mm512_store_si512(to + 32 * place[lane + 1], _mm512_unpackhi_epi64(t[0], t[2]));
    _mm512_store_si512(to + 32 * place[lane + 2], _mm512_unpacklo_epi64(t[1], t[3]));
    _mm512_store_si512(to + 32 * place[lane + 3], _mm512_unpackhi_epi64(t[1], t[3]));
  }
}

// One thread's share of a block: its genes with all cells.
class Bfloat16Tower {
 public:
  Bfloat16Tower(const Block& block, int64_t first, int64_t last) : b(block), strip(block, first, last) {
    top = b.depth - 1;
    training = b.objective != kPredict;
    for (int l = 0; l < b.depth; ++l) {
      units[l] = b.width[l];
      high[l] = static_cast<int>(round_up(units[l], 16) / 16);
      deep[l] = static_cast<int>(round_up(units[l], 32) / 32);
      prepare_layer(l);
    }
    const int padded = high[0] * 16;
    c.reset(padded * kPairs);
    dc.reset(padded * kPairs);
    a.reset(padded);
    dslope0.reset(kGroups * padded * kPairs);
    one_hot.reset(64);
    for (int i = 30; i < 32; ++i) one_hot[i] = to_bfloat16(1);
    if (training) da.reset(round_up(b.cells, 16) * padded);
    dout.reset(units[top] * kLanes);
    for (int p = 0; p < kPairs; ++p) natural[p] = p;
    for (int l = 0; l < top; ++l)
      for (int p = 0; p < kPairs; ++p) natural[p] = moved(natural[p]);
    // natural[gene] is now its place in the order of the last layer
    for (int p = 0; p < kPairs; ++p) top_order[natural[p]] = p;
    for (int r = 0; r < 16; ++r)
      for (int p = 0; p < kPairs; ++p)
        if (moved(p) == 2 * r) place_of[r] = static_cast<int8_t>(p / 2);
    for (int half = 0; half < 2; ++half)
      for (int n = 0; n < 16; ++n) {
        return_order[half][2 * n] = static_cast<uint16_t>(moved(16 * half + n));
        return_order[half][2 * n + 1] = static_cast<uint16_t>(moved(16 * half + n) + 32);
      }
  }

  void run() {
    TileSession session;
    for (int64_t gene = strip.first; gene < strip.last; gene += kPairs) {
      valid = static_cast<int>(strip.last - gene < kPairs ? strip.last - gene : kPairs);
      gather_genes(gene);
      for (int64_t cell = 0; cell < b.cells; cell += kGroups) {
        groups = static_cast<int>(b.cells - cell < kGroups ? b.cells - cell : kGroups);
        forward(cell, gene);
        if (training) backward(cell);
      }
      if (training) scatter_genes(gene);
    }
    for (int64_t g = 0; strip.dlog_dispersion && g < strip.last - strip.first; ++g)
      b.dlog_dispersion[strip.first + g] = static_cast<float>(strip.dlog_dispersion[g] * b.scale);
  }

  void add_to(Block& block) const {
    block.loss += loss;
    for (int64_t cell = 0; cell < b.cells; ++cell)
      for (int k = 0; k < units[0]; ++k)
        block.da[cell * units[0] + k] +=
            b.scale * da[((cell / 16 * high[0] + k / 16) * 16 + k % 16) * 16 + cell % 16];
    for (int l = 1; l < b.depth; ++l)
      for (int j = 0; j < units[l]; ++j) {
        for (int k = 0; k < units[l - 1]; ++k) block.dweight[l][j * units[l - 1] + k] += b.scale * dweight_at(l, j, k);
        block.dbias[l][j] += b.scale * dweight_at(l, j, 16 * high[l - 1]);
      }
    for (int j = 0; j < units[top]; ++j) block.dout[j] += b.scale * sum(load(dout + j * kLanes));
  }

 private:
  const Block& b;
  Strip strip;
  int units[kMaxDepth], high[kMaxDepth], deep[kMaxDepth];  // of layer l: units, and tiles of 16 and of 32 units
  int top, valid, groups;
  bool training;
  double loss = 0;
  int natural[kPairs], top_order[kPairs];
  int8_t place_of[16];
  alignas(64) uint16_t return_order[2][32];
  Buffer<float> a, c, dc, da, dout, scratch[2], dweight[kMaxDepth], bias[kMaxDepth], summit;
  Buffer<uint16_t> weight[kMaxDepth], transposed[kMaxDepth];  // left operands: [16 units][32 inputs] tiles
  Buffer<uint16_t> rows[kMaxDepth], columns[kMaxDepth];       // activations; columns for two groups in turn
  Buffer<uint16_t> slope_rows[kMaxDepth], slope_columns[kMaxDepth], crossed[kMaxDepth];  // gradients
  Buffer<uint16_t> dslope0, one_hot, ones;
  alignas(64) float predictor[kGroups][kPairs];

  static const char* bytes(const void* p) { return static_cast<const char*>(p); }
  static char* bytes(void* p) { return static_cast<char*>(p); }

  float dweight_at(int l, int j, int k) const {
    return dweight[l][(k / 16 * high[l] + j / 16) * 256 + k % 16 * 16 + j % 16];
  }

  void prepare_layer(int l) {
    const int padded = high[l] * 16;
    rows[l].reset(kGroups * padded * kPairs);
    columns[l].reset((l == 0 ? 2 : kGroups) * deep[l] * 1024);
    slope_rows[l].reset(padded * kPairs);
    slope_columns[l].reset(kGroups * deep[l] * 1024);
    crossed[l].reset(kGroups * high[l] * 512);
    for (Buffer<float>& s : scratch)
      if (l == 0) s.reset(*std::max_element(b.width, b.width + b.depth) * kPairs + 16 * kPairs);
    if (l == 0) {
      ones.reset(512);
      for (int i = 0; i < 32; ++i) ones[i] = to_bfloat16(1);
      return;
    }
    if (l == top) summit.reset(kGroups * padded * kPairs);
    dweight[l].reset((high[l - 1] + 1) * high[l] * 256);
    bias[l].reset(padded * 16);
    weight[l].reset(high[l] * deep[l - 1] * 512);
    transposed[l].reset(high[l - 1] * deep[l] * 512);
    for (int j = 0; j < units[l]; ++j) {
      for (int i = 0; i < 16; ++i) bias[l][j * 16 + i] = b.bias[l][j];
      for (int k = 0; k < units[l - 1]; ++k) {
        const uint16_t w = to_bfloat16(b.weight[l][j * units[l - 1] + k]);
        weight[l][(j / 16 * deep[l - 1] + k / 32) * 512 + j % 16 * 32 + k % 32] = w;
        transposed[l][(k / 16 * deep[l] + j / 32) * 512 + k % 16 * 32 + j % 32] = w;
      }
    }
  }

  void gather_genes(int64_t gene) {
    for (int k = 0; k < units[0]; ++k)
      for (int p = 0; p < kPairs; ++p) c[k * kPairs + p] = p < valid ? b.c[(gene + p) * units[0] + k] : 0.0f;
    std::memset(dc, 0, high[0] * 16 * kPairs * sizeof(float));
  }

  void scatter_genes(int64_t gene) {
    for (int p = 0; p < valid; ++p)
      for (int k = 0; k < units[0]; ++k) b.dc[(gene + p) * units[0] + k] = b.scale * dc[k * kPairs + p];
  }

  uint16_t* rows_of(int l, int group) const { return rows[l] + group * high[l] * 16 * kPairs; }
  uint16_t* columns_of(int l, int group) const { return columns[l] + (l == 0 ? group % 2 : group) * deep[l] * 1024; }
  uint16_t* slope_columns_of(int l, int group) const { return slope_columns[l] + group * deep[l] * 1024; }

  // Two rows of units to the columns form of both halves of the group.
  static void put_columns(uint16_t* to, int unit, __m512i even, __m512i odd) {
    uint16_t* line = to + unit / 32 * 1024 + unit % 32 * 16;
    _mm512_store_si512(line, _mm512_unpacklo_epi16(even, odd));
    _mm512_store_si512(line + 512, _mm512_unpackhi_epi16(even, odd));
  }

  void put_returned_columns(uint16_t* to, int unit, __m512i even, __m512i odd) const {
    uint16_t* line = to + unit / 32 * 1024 + unit % 32 * 16;
    _mm512_store_si512(line, _mm512_permutex2var_epi16(even, _mm512_load_si512(return_order[0]), odd));
    _mm512_store_si512(line + 512, _mm512_permutex2var_epi16(even, _mm512_load_si512(return_order[1]), odd));
  }

  // z = left [high tiles x deep tiles] times columns of both halves; `work(part, parts)` runs beside it.
  template <class Work>
  void multiply_columns(const uint16_t* left, int high, int deep, const uint16_t* columns, const float* bias, float* z,
                        Work&& work) {
    const Tiles lower{bytes(columns), 2 * kTileBytes}, upper{bytes(columns) + kTileBytes, 2 * kTileBytes};
    auto accumulator = [&](int m, int half) {
      return Accumulator{bias == nullptr ? nullptr : bytes(bias) + m * kTileBytes,
                         bytes(z) + m * 16 * kScratchRow + half * 64, kScratchRow};
    };
    auto operand = [&](int m) { return Tiles{bytes(left) + m * deep * kTileBytes, kTileBytes}; };
    const int parts = (high + 1) / 2;
    int m = 0;
    for (; m + 2 <= high; m += 2)
      multiply22(operand(m), operand(m + 1), lower, upper, deep,
                 {{accumulator(m, 0), accumulator(m, 1)}, {accumulator(m + 1, 0), accumulator(m + 1, 1)}},
                 [&] { work(m / 2, parts); });
    if (m < high)
      multiply12(operand(m), lower, upper, deep, accumulator(m, 0), accumulator(m, 1), [&] { work(m / 2, parts); });
  }

  void first_layer(int64_t cell, int group) {
    std::memcpy(a, b.a + cell * units[0], units[0] * sizeof(float));
    uint16_t *to = rows_of(0, group), *in_columns = columns_of(0, group);
    const __m512i zero = _mm512_setzero_si512();
    for (int k = 0; k < units[0]; k += 2) {
      __m512i line[2];
      for (int i = 0; i < 2; ++i) {
        const __m512 side = _mm512_set1_ps(a[k + i]);
        const float* genes = c + (k + i) * kPairs;
        const __m512 lower = _mm512_add_ps(side, _mm512_load_ps(genes));
        const __m512 upper = _mm512_add_ps(side, _mm512_load_ps(genes + 16));
        line[i] = _mm512_max_epi16((__m512i)_mm512_cvtne2ps_pbh(upper, lower), zero);
        if (training) _mm512_store_si512(to + (k + i) * kPairs, line[i]);
      }
      put_columns(in_columns, k, line[0], line[1]);
    }
  }

  void rectify(int l, int group) {
    const float* z = scratch[group % 2];
    uint16_t *to = rows_of(l, group), *in_columns = columns_of(l, group);
    const __m512i zero = _mm512_setzero_si512();
    for (int j = 0; j < units[l]; j += 2) {
      const __m512i even = _mm512_max_epi16(row_of(z + j * kPairs), zero);
      const __m512i odd = _mm512_max_epi16(row_of(z + (j + 1) * kPairs), zero);
      if (training) {
        _mm512_store_si512(to + j * kPairs, even);
        _mm512_store_si512(to + (j + 1) * kPairs, odd);
      }
      put_columns(in_columns, j, even, odd);
    }
  }

  // While a group's products run, the vector units work on its neighbours.
  void forward(int64_t cell, int64_t gene) {
    first_layer(cell, 0);
    for (int l = 1; l <= top; ++l) {
      for (int g = 0; g < groups; ++g)
        forward_product(l, g, [&](int part, int) {
          if (part > 0) return;
          if (l == 1 && g + 1 < groups) first_layer(cell + g + 1, g + 1);
          if (g > 0) finish_forward(l, cell, gene, g - 1);
        });
      finish_forward(l, cell, gene, groups - 1);
    }
  }

  template <class Work>
  void forward_product(int l, int g, Work&& work) {
    float* z = l == top ? summit + g * high[top] * 16 * kPairs : scratch[g % 2];
    multiply_columns(weight[l], high[l], deep[l - 1], columns_of(l - 1, g), bias[l], z, work);
  }

  void finish_forward(int l, int64_t cell, int64_t gene, int g) {
    if (l < top) {
      rectify(l, g);
    } else {
      score(cell + g, gene, g);
      if (training) top_slopes(g);
    }
  }

  void score(int64_t cell, int64_t gene, int g) {
    float* z = summit + g * high[top] * 16 * kPairs;
    __m512 lower = _mm512_setzero_ps(), upper = lower;
    const __m512 zero = lower;
    for (int j = 0; j < units[top]; ++j) {
      const __m512 weight = _mm512_set1_ps(b.out[j]);
      lower = _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(z + j * kPairs), zero), lower);
      upper = _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(z + j * kPairs + 16), zero), upper);
    }
    float* f = predictor[g];
    _mm512_store_ps(f, _mm512_permutex2var_ps(lower, _mm512_loadu_si512(natural), upper));
    _mm512_store_ps(f + 16, _mm512_permutex2var_ps(lower, _mm512_loadu_si512(natural + 16), upper));
    if (training)
      loss += pair_losses(strip, cell, gene - strip.first, valid, kPairs, f);
    else
      write_predictor(b, cell, gene, valid, f);
  }

  // Gradient by the last layer's pre-activations, from that by the predictor.
  void top_slopes(int g) {
    const float *z = summit + g * high[top] * 16 * kPairs, *f = predictor[g];
    const __m512 f0 = _mm512_load_ps(f), f1 = _mm512_load_ps(f + 16), zero = _mm512_setzero_ps();
    const __m512 lower = _mm512_permutex2var_ps(f0, _mm512_loadu_si512(top_order), f1);
    const __m512 upper = _mm512_permutex2var_ps(f0, _mm512_loadu_si512(top_order + 16), f1);
    for (int j = 0; j < units[top]; ++j) {
      const __m512 z0 = _mm512_load_ps(z + j * kPairs), z1 = _mm512_load_ps(z + j * kPairs + 16);
      const __m512 weight = _mm512_set1_ps(b.out[j]);
      const __mmask16 on0 = _mm512_cmp_ps_mask(z0, zero, _CMP_GT_OQ), on1 = _mm512_cmp_ps_mask(z1, zero, _CMP_GT_OQ);
      __m512 total = _mm512_load_ps(dout + j * kLanes);
      total = _mm512_mask3_fmadd_ps(z0, lower, total, on0);
      total = _mm512_mask3_fmadd_ps(z1, upper, total, on1);
      _mm512_store_ps(dout + j * kLanes, total);
      const __m512bh slope =
          _mm512_cvtne2ps_pbh(_mm512_maskz_mul_ps(on1, upper, weight), _mm512_maskz_mul_ps(on0, lower, weight));
      _mm512_store_si512(slope_rows[top] + j * kPairs, (__m512i)slope);
    }
    spread_slopes(top, g);
  }

  // Gradient by layer l's pre-activations, from that by its activations.
  void hidden_slopes(int l, int g) {
    const float* z = scratch[g % 2];
    const uint16_t* active = rows_of(l, g);
    for (int j = 0; j < units[l]; ++j) {
      const __m512i line = _mm512_load_si512(active + j * kPairs);
      const __mmask32 on = _mm512_test_epi16_mask(line, line);
      _mm512_store_si512(slope_rows[l] + j * kPairs, _mm512_maskz_mov_epi16(on, row_of(z + j * kPairs)));
    }
    spread_slopes(l, g);
  }

  void spread_slopes(int l, int g) {
    uint16_t* to = slope_columns_of(l, g);
    const uint16_t* from = slope_rows[l];
    for (int j = 0; j < units[l]; j += 2)
      put_returned_columns(to, j, _mm512_load_si512(from + j * kPairs), _mm512_load_si512(from + (j + 1) * kPairs));
    for (int n = 0; n < high[l]; ++n)
      cross(slope_rows[l] + n * 512, crossed[l] + (g * high[l] + n) * 512, place_of);
  }

  // Gradients by the first layer's sums: added up over genes (as tiles) and cells (here).
  void first_slopes(int g, int part, int parts) {
    const float* z = scratch[g % 2];
    const uint16_t* active = rows_of(0, g);
    uint16_t* to = dslope0 + g * high[0] * 512;
    for (int k = units[0] * part / parts; k < units[0] * (part + 1) / parts; ++k) {
      const __m512i line = _mm512_load_si512(active + k * kPairs);
      const __mmask32 on = _mm512_test_epi16_mask(line, line);
      const __m512 lower = _mm512_load_ps(z + k * kPairs), upper = _mm512_load_ps(z + k * kPairs + 16);
      float* total = dc + k * kPairs;
      const __m512 total0 = _mm512_load_ps(total), total1 = _mm512_load_ps(total + 16);
      _mm512_store_ps(total, _mm512_mask_add_ps(total0, on & 0xffff, total0, lower));
      _mm512_store_ps(total + 16, _mm512_mask_add_ps(total1, on >> 16, total1, upper));
      _mm512_store_si512(to + k * kPairs, _mm512_maskz_mov_epi16(on, (__m512i)_mm512_cvtne2ps_pbh(upper, lower)));
    }
  }

  void backward(int64_t cell) {
    for (int l = top; l > 0; --l) {
      for (int g = 0; g < groups; ++g)
        multiply_columns(transposed[l], high[l - 1], deep[l], slope_columns_of(l, g), nullptr, scratch[g % 2],
                         [&](int part, int parts) {
                           if (g > 0) finish_backward(l, g - 1, part, parts);
                         });
      const int parts = (high[l - 1] + 1) / 2;
      for (int part = 0; part < parts; ++part) finish_backward(l, groups - 1, part, parts);
      weight_gradient(l);
    }
    cell_gradient(cell);
  }

  void finish_backward(int l, int g, int part, int parts) {
    if (l == 1)
      first_slopes(g, part, parts);
    else if (part == 0)
      hidden_slopes(l - 1, g);
  }

  void weight_gradient(int l) {
    const int64_t row_step = high[l - 1] * kTileBytes, crossed_step = high[l] * kTileBytes;
    auto left = [&](int m) {
      if (m == high[l - 1]) return Tiles{bytes(ones.memory.get()), 0};
      return Tiles{bytes(rows[l - 1].memory.get()) + m * kTileBytes, row_step};
    };
    auto right = [&](int n) { return Tiles{bytes(crossed[l].memory.get()) + n * kTileBytes, crossed_step}; };
    auto accumulator = [&](int m, int n) {
      char* tile = bytes(dweight[l].memory.get()) + (m * high[l] + n) * kTileBytes;
      return Accumulator{tile, tile, 64};
    };
    const int high_m = high[l - 1] + 1, high_n = high[l];
    for (int m = 0; m < high_m; m += 2)
      for (int n = 0; n < high_n; n += 2) {
        const bool two_m = m + 1 < high_m, two_n = n + 1 < high_n;
        if (two_m && two_n)
          multiply22(left(m), left(m + 1), right(n), right(n + 1), groups,
                     {{accumulator(m, n), accumulator(m, n + 1)}, {accumulator(m + 1, n), accumulator(m + 1, n + 1)}},
                     [] {});
        else if (two_n)
          multiply12(left(m), right(n), right(n + 1), groups, accumulator(m, n), accumulator(m, n + 1), [] {});
        else if (two_m)
          multiply21(left(m), left(m + 1), right(n), groups, accumulator(m, n), accumulator(m + 1, n));
        else
          multiply11(left(m), right(n), groups, accumulator(m, n));
      }
  }

  // Sums the genes of each cell into the column of its accumulators: the right operand is 1 in that column only.
  void cell_gradient(int64_t cell) {
    char* total = bytes(da.memory.get()) + cell / 16 * high[0] * kTileBytes;
    const char* column = bytes(one_hot.memory.get()) + 4 * (15 - cell % 16);
    const int64_t step = high[0] * kTileBytes;
    auto left = [&](int m) { return Tiles{bytes(dslope0.memory.get()) + m * kTileBytes, step}; };
    auto accumulator = [&](int m) { return Accumulator{total + m * kTileBytes, total + m * kTileBytes, 64}; };
    const Tiles right{column, -4, 0};
    int m = 0;
    for (; m + 2 <= high[0]; m += 2) multiply21(left(m), left(m + 1), right, groups, accumulator(m), accumulator(m + 1));
    if (m < high[0]) multiply11(left(m), right, groups, accumulator(m));
  }
};

}  // namespace fused
#endif
