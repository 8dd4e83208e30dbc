// The tower in bfloat16 on Intel's AMX tiles, accumulated in float32.
//
// A group is two cells with the same 16 genes: 32 pairs. Units are rows and pairs are lanes throughout, so that the
// first layer, the loss and the masks of the rectifiers are whole-vector operations. A matrix takes one of these
// forms, always as tiles of 16 rows x 64 bytes:
//   rows      [units][32 pairs] bfloat16: left operand of the products that sum over pairs (weight gradients)
//   columns   [units / 2][16 pairs][2 units], one run of tiles for each half of the group: right operand of the
//             products that sum over units (forward, and gradients by activations)
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

#define FUSED_INLINE __attribute__((always_inline)) inline

constexpr int kPairs = 32;          // of a group
constexpr int kGenes = 16;          // of a group
constexpr int kGroups = 8;          // groups whose activations are held at once; divides 8
constexpr int kBlock = 32;          // units whose pre-activations are in flight
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
FUSED_INLINE void multiply22(Tiles a0, Tiles a1, Tiles b0, Tiles b1, int depth, const Accumulator (&c)[2][2],
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
FUSED_INLINE void multiply12(Tiles a, Tiles b0, Tiles b1, int depth, const Accumulator& c0, const Accumulator& c1,
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

FUSED_INLINE void multiply21(Tiles a0, Tiles a1, Tiles b, int depth, const Accumulator& c0, const Accumulator& c1) {
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

FUSED_INLINE void multiply11(Tiles a, Tiles b, int depth, const Accumulator& c) {
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

FUSED_INLINE __m512i row_of(const float* z) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(z + 16), _mm512_load_ps(z));
}

// Transposes 16 x 16 double words; rows of the source lie `stride` bytes apart, column r goes to row `place(r)`.
template <class Place>
FUSED_INLINE void transpose(const void* from, int64_t stride, void* to, Place&& place) {
  __m512i r[16];
  for (int lane = 0; lane < 4; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const char* p = static_cast<const char*>(from) + i * stride + lane * 16;
      __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)p));
      v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)(p + 4 * stride)), 1);
      v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)(p + 8 * stride)), 2);
      r[i] = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)(p + 12 * stride)), 3);
    }
    const __m512i t0 = _mm512_unpacklo_epi32(r[0], r[1]), t1 = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i t2 = _mm512_unpacklo_epi32(r[2], r[3]), t3 = _mm512_unpackhi_epi32(r[2], r[3]);
    char* line = static_cast<char*>(to);
    _mm512_store_si512(line + 64 * place(4 * lane), _mm512_unpacklo_epi64(t0, t2));
    _mm512_store_si512(line + 64 * place(4 * lane + 1), _mm512_unpackhi_epi64(t0, t2));
    _mm512_store_si512(line + 64 * place(4 * lane + 2), _mm512_unpacklo_epi64(t1, t3));
    _mm512_store_si512(line + 64 * place(4 * lane + 3), _mm512_unpackhi_epi64(t1, t3));
  }
}

// Double word of layer l where double word r of layer l + 1 belongs.
constexpr int moved_back(int r) { return ((r / 2 % 4) * 2 + r / 8) * 2 + r % 2; }
static_assert(moved(2 * moved_back(6)) == 2 * 6 && moved(2 * moved_back(9)) == 2 * 9, "inverse of each other");

// One thread's share of a block: its genes with all cells.
template <bool kTraining>
class Bfloat16Tower {
 public:
  Bfloat16Tower(const Block& block, int64_t first, int64_t last) : b(block), strip(block, first, last) {
    top = b.depth - 1;
    for (int l = 0; l < b.depth; ++l) {
      units[l] = b.width[l];
      high[l] = static_cast<int>(round_up(units[l], 16) / 16);
      deep[l] = static_cast<int>(round_up(units[l], 32) / 32);
      prepare_layer(l);
    }
    prepare_first_layer();
    prepare_orders();
    for (Buffer<float>& z : scratch) z.reset(kBlock * kPairs);
    for (Buffer<float>& z : summit) z.reset(deep[top] * kBlock * kPairs);
    dout.reset(units[top] * kLanes);
    ones.reset(512);
    std::fill_n(ones.memory.get(), 32, to_bfloat16(1));
  }

  void run() {
    TileSession session;
    for (int64_t gene = strip.first; gene < strip.last; gene += kGenes) {
      valid = static_cast<int>(strip.last - gene < kGenes ? strip.last - gene : kGenes);
      gather_genes(gene);
      for (int64_t cell = 0; cell < b.cells; cell += 2 * kGroups) {
        const int64_t left = (b.cells - cell + 1) / 2;
        groups = static_cast<int>(left < kGroups ? left : kGroups);
        forward(cell, gene - strip.first);
        if (kTraining) backward(cell);
      }
      if (kTraining) scatter_genes(gene);
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
        for (int k = 0; k < units[l - 1]; ++k)
          block.dweight[l][j * units[l - 1] + k] += b.scale * dweight_at(l, j, k);
        block.dbias[l][j] += b.scale * dweight_at(l, j, 16 * high[l - 1]);
      }
    for (int j = 0; j < units[top]; ++j) block.dout[j] += b.scale * sum(load(dout + j * kLanes));
  }

 private:
  const Block& b;
  Strip strip;
  int units[kMaxDepth], high[kMaxDepth], deep[kMaxDepth];  // of layer l: units, and tiles of 16 and of 32 units
  int top, valid, groups;
  double loss = 0;
  int top_place[kPairs], top_order[kPairs];  // place of a pair in the order of the last layer, and its inverse
  alignas(64) uint16_t return_order[2][32];
  Buffer<float> a, c, dc, da, dout, dweight[kMaxDepth], bias[kMaxDepth];
  Buffer<float> scratch[2], summit[2];  // pre-activations, or gradients by activations; summit: of the last layer
  Buffer<uint16_t> weight[kMaxDepth], transposed[kMaxDepth];  // left operands: [16 units][32 inputs] tiles
  Buffer<uint16_t> rows[kMaxDepth], columns[kMaxDepth];       // activations; columns: then their gradients
  Buffer<uint16_t> slope_rows, crossed[kMaxDepth];            // gradients by pre-activations
  Buffer<uint16_t> first_slope_rows, two_hot, ones;

  static const char* bytes(const void* p) { return static_cast<const char*>(p); }
  static char* bytes(void* p) { return static_cast<char*>(p); }

  float dweight_at(int l, int j, int k) const {
    return dweight[l][(k / 16 * high[l] + j / 16) * 256 + k % 16 * 16 + j % 16];
  }

  void prepare_layer(int l) {
    const int padded = high[l] * 16;
    rows[l].reset(kGroups * padded * kPairs);
    columns[l].reset((l == 0 ? 2 : kGroups) * deep[l] * 1024);
    crossed[l].reset(kGroups * high[l] * 512);
    if (l == 0) return;
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

  void prepare_first_layer() {
    const int padded = high[0] * 16;
    c.reset(padded * kGenes);
    a.reset(round_up(b.cells, 2) * padded);
    for (int64_t cell = 0; cell < b.cells; ++cell)
      std::memcpy(a + cell * padded, b.a + cell * units[0], units[0] * sizeof(float));
    slope_rows.reset(kBlock * kPairs);
    if (!kTraining) return;
    dc.reset(padded * kGenes);
    da.reset(round_up(b.cells, 16) * padded);
    first_slope_rows.reset(kGroups * padded * kPairs);
    // rows of 32 double words; seen through a window of 16, pairs of the first cell count for one column, those of
    // the second for the next
    two_hot.reset(16 * 64);
    for (int r = 0; r < 16; ++r)
      for (int i = 0; i < 2; ++i) two_hot[r * 64 + 2 * (r < 8 ? 15 : 16) + i] = to_bfloat16(1);
  }

  void prepare_orders() {
    for (int p = 0; p < kPairs; ++p) {
      top_place[p] = p;
      for (int l = 0; l < top; ++l) top_place[p] = moved(top_place[p]);
      top_order[top_place[p]] = p;
    }
    for (int p = 0; p < kPairs; ++p) {
      return_order[p / 16][p % 16 * 2] = static_cast<uint16_t>(moved(p));
      return_order[p / 16][p % 16 * 2 + 1] = static_cast<uint16_t>(moved(p) + 32);
    }
  }

  void gather_genes(int64_t gene) {
    alignas(64) float rows[kGenes * 16];
    for (int k = 0; k < units[0]; k += 16) {
      const int n = units[0] - k < 16 ? units[0] - k : 16;
      std::memset(rows, 0, sizeof rows);
      for (int p = 0; p < valid; ++p)
        std::memcpy(rows + p * 16, b.c + (gene + p) * units[0] + k, n * sizeof(float));
      transpose(rows, 64, c + k * kGenes, [](int r) { return r; });
    }
    if (kTraining) std::memset(dc, 0, high[0] * 16 * kGenes * sizeof(float));
  }

  void scatter_genes(int64_t gene) {
    alignas(64) float rows[kGenes * 16];
    for (int k = 0; k < units[0]; k += 16) {
      const int n = units[0] - k < 16 ? units[0] - k : 16;
      transpose(dc + k * kGenes, 64, rows, [](int r) { return r; });
      for (int p = 0; p < valid; ++p)
        for (int i = 0; i < n; ++i) b.dc[(gene + p) * units[0] + k + i] = b.scale * rows[p * 16 + i];
    }
  }

  uint16_t* rows_of(int l, int g) const { return rows[l] + g * high[l] * 16 * kPairs; }
  uint16_t* columns_of(int l, int g) const { return columns[l] + (l == 0 ? g % 2 : g) * deep[l] * 1024; }
  float* pre_activations(int l, int block, int g) const { return l == top ? summit[g % 2] : scratch[block % 2]; }

  // z = left [2 of high tiles from m, deep tiles] times columns of both halves; `work` is done beside it.
  template <class Work>
  FUSED_INLINE void multiply_columns(const uint16_t* left, int m, int high, int deep, const uint16_t* columns,
                                     const float* bias, float* z, Work&& work) {
    const Tiles lower{bytes(columns), kTileBytes}, upper{bytes(columns) + deep * kTileBytes, kTileBytes};
    const char *start = bytes(bias) + m * kTileBytes, *next = start + kTileBytes;
    if (bias == nullptr) start = next = nullptr;
    char* to = bytes(z);
    const Tiles first{bytes(left) + m * deep * kTileBytes, kTileBytes};
    const Tiles second{first.p + deep * kTileBytes, kTileBytes};
    constexpr int64_t below = 16 * kScratchRow;
    if (m + 1 < high)
      multiply22(first, second, lower, upper, deep,
                 {{Accumulator{start, to, kScratchRow}, Accumulator{start, to + 64, kScratchRow}},
                  {Accumulator{next, to + below, kScratchRow}, Accumulator{next, to + below + 64, kScratchRow}}},
                 work);
    else
      multiply12(first, lower, upper, deep, Accumulator{start, to, kScratchRow},
                 Accumulator{start, to + 64, kScratchRow}, work);
  }

  void first_layer(int64_t cell, int g) {
    const int n = units[0], half = deep[0] * 512;
    const float *a0 = a + cell * high[0] * 16, *a1 = a0 + high[0] * 16, *genes = c;
    uint16_t *to = rows_of(0, g), *line = columns_of(0, g);
    const __m512i zero = _mm512_setzero_si512();
    for (int k = 0; k < n; k += 2, genes += 2 * kGenes, line += 32) {
      const __m512 c0 = _mm512_load_ps(genes), c1 = _mm512_load_ps(genes + kGenes);
      const __m512 even0 = _mm512_add_ps(_mm512_set1_ps(a0[k]), c0), even1 = _mm512_add_ps(_mm512_set1_ps(a1[k]), c0);
      const __m512 odd0 = _mm512_add_ps(_mm512_set1_ps(a0[k + 1]), c1);
      const __m512 odd1 = _mm512_add_ps(_mm512_set1_ps(a1[k + 1]), c1);
      const __m512i even = _mm512_max_epi16((__m512i)_mm512_cvtne2ps_pbh(even1, even0), zero);
      const __m512i odd = _mm512_max_epi16((__m512i)_mm512_cvtne2ps_pbh(odd1, odd0), zero);
      if (kTraining) {
        _mm512_store_si512(to + k * kPairs, even);
        _mm512_store_si512(to + (k + 1) * kPairs, odd);
      }
      _mm512_store_si512(line, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(line + half, _mm512_unpackhi_epi16(even, odd));
    }
  }

  // While a block's products run, the vector units work on the block before.
  void forward(int64_t cell, int64_t offset) {
    first_layer(cell, 0);
    for (int l = 1; l <= top; ++l) {
      const int parts = deep[l];
      int block = 0;
      for (int g = 0; g < groups; ++g)
        for (int part = 0; part < parts; ++part, ++block) {
          float* z = pre_activations(l, block, g) + (l == top ? part * kBlock * kPairs : 0);
          auto work = [&]() __attribute__((always_inline)) {
            if (l == 1 && part == 0 && g + 1 < groups) first_layer(cell + 2 * (g + 1), g + 1);
            if (block > 0) finish_forward(l, block - 1, cell, offset);
          };
          multiply_columns(weight[l], 2 * part, high[l], deep[l - 1], columns_of(l - 1, g), bias[l], z, work);
        }
      finish_forward(l, block - 1, cell, offset);
    }
  }

  void finish_forward(int l, int block, int64_t cell, int64_t offset) {
    const int g = block / deep[l], part = block % deep[l];
    if (l < top)
      rectify(l, g, part, scratch[block % 2]);
    else if (part + 1 == deep[l])
      score(cell + 2 * g, offset, g);
  }

  int rows_in(int l, int part) const { return units[l] - part * kBlock < kBlock ? units[l] - part * kBlock : kBlock; }

  void rectify(int l, int g, int part, const float* z) {
    const int n = rows_in(l, part), half = deep[l] * 512;
    uint16_t *to = rows_of(l, g) + part * kBlock * kPairs, *line = columns_of(l, g) + part * 512;
    const __m512i zero = _mm512_setzero_si512();
    for (int j = 0; j < n; j += 2, z += 2 * kPairs, to += 2 * kPairs, line += 32) {
      const __m512i even = _mm512_max_epi16(row_of(z), zero), odd = _mm512_max_epi16(row_of(z + kPairs), zero);
      if (kTraining) {
        _mm512_store_si512(to, even);
        _mm512_store_si512(to + kPairs, odd);
      }
      _mm512_store_si512(line, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(line + half, _mm512_unpackhi_epi16(even, odd));
    }
  }

  // The predictor of a group, its loss, and the gradient by the last layer's pre-activations.
  void score(int64_t cell, int64_t offset, int g) {
    const float* z = summit[g % 2];
    const __m512 zero = _mm512_setzero_ps();
    __m512 lower = zero, upper = zero;
    for (int j = 0; j < units[top]; ++j) {
      const __m512 weight = _mm512_set1_ps(b.out[j]);
      lower = _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(z + j * kPairs), zero), lower);
      upper = _mm512_fmadd_ps(weight, _mm512_max_ps(_mm512_load_ps(z + j * kPairs + 16), zero), upper);
    }
    alignas(64) float f[2][kGenes];
    _mm512_store_ps(f[0], _mm512_permutex2var_ps(lower, _mm512_loadu_si512(top_place), upper));
    _mm512_store_ps(f[1], _mm512_permutex2var_ps(lower, _mm512_loadu_si512(top_place + 16), upper));
    for (int i = 0; i < 2; ++i) {
      if (cell + i >= b.cells)
        std::memset(f[i], 0, sizeof f[i]);
      else if (kTraining)
        loss += pair_losses(strip, cell + i, offset, valid, kGenes, f[i]);
      else
        write_predictor(b, cell + i, strip.first + offset, valid, f[i]);
    }
    if (kTraining) top_slopes(g, z, _mm512_load_ps(f[0]), _mm512_load_ps(f[1]));
  }

  void top_slopes(int g, const float* z, __m512 f0, __m512 f1) {
    const __m512 lower = _mm512_permutex2var_ps(f0, _mm512_loadu_si512(top_order), f1);
    const __m512 upper = _mm512_permutex2var_ps(f0, _mm512_loadu_si512(top_order + 16), f1);
    const __m512 zero = _mm512_setzero_ps();
    for (int part = 0; part < deep[top]; ++part) {
      const int n = rows_in(top, part);
      for (int i = 0; i < n; ++i) {
        const int j = part * kBlock + i;
        const __m512 z0 = _mm512_load_ps(z + j * kPairs), z1 = _mm512_load_ps(z + j * kPairs + 16);
        const __m512 weight = _mm512_set1_ps(b.out[j]);
        const __mmask16 on0 = _mm512_cmp_ps_mask(z0, zero, _CMP_GT_OQ);
        const __mmask16 on1 = _mm512_cmp_ps_mask(z1, zero, _CMP_GT_OQ);
        __m512 total = _mm512_load_ps(dout + j * kLanes);
        total = _mm512_mask3_fmadd_ps(z0, lower, total, on0);
        total = _mm512_mask3_fmadd_ps(z1, upper, total, on1);
        _mm512_store_ps(dout + j * kLanes, total);
        const __m512bh slope =
            _mm512_cvtne2ps_pbh(_mm512_maskz_mul_ps(on1, upper, weight), _mm512_maskz_mul_ps(on0, lower, weight));
        _mm512_store_si512(slope_rows + i * kPairs, (__m512i)slope);
      }
      spread_slopes(top, g, part);
    }
  }

  // Gradient by layer l's pre-activations, from that by its activations.
  void hidden_slopes(int l, int g, int part, const float* z) {
    const int n = rows_in(l, part);
    const uint16_t* active = rows_of(l, g) + part * kBlock * kPairs;
    uint16_t* to = slope_rows;
    for (int j = 0; j < n; ++j, z += kPairs, active += kPairs, to += kPairs) {
      const __m512i line = _mm512_load_si512(active);
      const __mmask32 on = _mm512_test_epi16_mask(line, line);
      const __m512 lower = _mm512_load_ps(z), upper = _mm512_load_ps(z + 16);
      _mm512_store_si512(to, (__m512i)_mm512_maskz_cvtne2ps_pbh(on, upper, lower));
    }
    spread_slopes(l, g, part);
  }

  // The block of gradients in slope_rows to columns, and crossed.
  void spread_slopes(int l, int g, int part) {
    const int n = rows_in(l, part), half = deep[l] * 512;
    uint16_t* line = columns_of(l, g) + part * 512;
    const uint16_t* from = slope_rows;
    const __m512i order0 = _mm512_load_si512(return_order[0]), order1 = _mm512_load_si512(return_order[1]);
    for (int j = 0; j < n; j += 2, from += 2 * kPairs, line += 32) {
      const __m512i even = _mm512_load_si512(from), odd = _mm512_load_si512(from + kPairs);
      _mm512_store_si512(line, _mm512_permutex2var_epi16(even, order0, odd));
      _mm512_store_si512(line + half, _mm512_permutex2var_epi16(even, order1, odd));
    }
    uint16_t* to = crossed[l] + (g * high[l] + 2 * part) * 512;
    transpose(slope_rows, 64, to, moved_back);
    if (n > 16) transpose(slope_rows + 512, 64, to + 512, moved_back);
  }

  // Gradients by the first layer's sums: added up over cells here, and over genes in cell_gradient.
  void first_slopes(int g, int part, const float* z) {
    const int n = rows_in(0, part);
    const uint16_t* active = rows_of(0, g) + part * kBlock * kPairs;
    uint16_t* to = first_slope_rows + g * high[0] * 512 + part * kBlock * kPairs;
    float* total = dc + part * kBlock * kGenes;
    for (int k = 0; k < n; ++k, z += kPairs, active += kPairs, to += kPairs, total += kGenes) {
      const __m512i line = _mm512_load_si512(active);
      const __mmask32 on = _mm512_test_epi16_mask(line, line);
      const __m512 lower = _mm512_load_ps(z), upper = _mm512_load_ps(z + 16);
      __m512 sum = _mm512_load_ps(total);
      sum = _mm512_mask_add_ps(sum, _cvtu32_mask16(_cvtmask32_u32(on)), sum, lower);
      sum = _mm512_mask_add_ps(sum, _cvtu32_mask16(_cvtmask32_u32(_kshiftri_mask32(on, 16))), sum, upper);
      _mm512_store_ps(total, sum);
      _mm512_store_si512(to, (__m512i)_mm512_maskz_cvtne2ps_pbh(on, upper, lower));
    }
  }

  void backward(int64_t cell) {
    for (int l = top; l > 0; --l) {
      const int parts = deep[l - 1];
      int block = 0;
      for (int g = 0; g < groups; ++g)
        for (int part = 0; part < parts; ++part, ++block)
          multiply_columns(transposed[l], 2 * part, high[l - 1], deep[l], columns_of(l, g), nullptr,
                           scratch[block % 2], [&]() __attribute__((always_inline)) {
                             if (block > 0) finish_backward(l, block - 1);
                           });
      finish_backward(l, block - 1);
      weight_gradient(l);
    }
    cell_gradient(cell);
  }

  void finish_backward(int l, int block) {
    const int g = block / deep[l - 1], part = block % deep[l - 1];
    if (l == 1)
      first_slopes(g, part, scratch[block % 2]);
    else
      hidden_slopes(l - 1, g, part, scratch[block % 2]);
  }

  void weight_gradient(int l) {
    const int64_t row_step = high[l - 1] * kTileBytes, crossed_step = high[l] * kTileBytes;
    auto left = [&](int m) __attribute__((always_inline)) {
      if (m == high[l - 1]) return Tiles{bytes(ones.memory.get()), 0};
      return Tiles{bytes(rows[l - 1].memory.get()) + m * kTileBytes, row_step};
    };
    auto right = [&](int n) __attribute__((always_inline)) { return Tiles{bytes(crossed[l].memory.get()) + n * kTileBytes, crossed_step}; };
    auto accumulator = [&](int m, int n) __attribute__((always_inline)) {
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

  // Sums the genes of each cell into the column of its accumulators.
  void cell_gradient(int64_t cell) {
    char* total = bytes(da.memory.get()) + cell / 16 * high[0] * kTileBytes;
    const Tiles right{bytes(two_hot.memory.get()) + 4 * (15 - cell % 16), -8, 128};
    const int64_t step = high[0] * kTileBytes;
    auto left = [&](int m) __attribute__((always_inline)) {
      return Tiles{bytes(first_slope_rows.memory.get()) + m * kTileBytes, step};
    };
    auto accumulator = [&](int m) __attribute__((always_inline)) {
      return Accumulator{total + m * kTileBytes, total + m * kTileBytes, 64};
    };
    int m = 0;
    for (; m + 2 <= high[0]; m += 2)
      multiply21(left(m), left(m + 1), right, groups, accumulator(m), accumulator(m + 1));
    if (m < high[0]) multiply11(left(m), right, groups, accumulator(m));
  }
};

}  // namespace fused
#endif
