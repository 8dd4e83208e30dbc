// The tower in float32, for every machine: pairs are rows, units are lanes, every layer a small matrix product.
#pragma once
#include <algorithm>

#include "objective.h"

namespace fused {

#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int kRows = 6;  // 16 registers: 6 x 2 accumulators, and operands
#else
constexpr int kRows = 8;
#endif
constexpr int kRowUnit = 4;  // rows of a product are a multiple of it
constexpr int kTile = 64;  // pairs whose activations and gradients stay in the first-level cache

// C[rows, n] (+)= A[rows, depth] B[depth, n]. A is strided both ways, so that it also serves transposed.
// rows is a multiple of kRowUnit, n of kLanes. `start` holds what a row of C begins with; null: C itself.
struct Product {
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  const float* start;
  const float* mask;  // what C keeps: only where this, laid out as C, is positive; null: all of it
  bool rectify;
};

template <int R, int N>
inline void multiply_block(const Product& p, int row, int column, int depth) {
  Vec acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      acc[r][n] = load((p.start ? p.start : p.c + (row + r) * p.c_row) + column + n * kLanes);
  const float* a = p.a + row * p.a_row;
  for (int k = 0; k < depth; ++k, a += p.a_column) {
    Vec b[N];
    for (int n = 0; n < N; ++n) b[n] = load(p.b + k * p.b_row + column + n * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(a[r * p.a_row]);
      for (int n = 0; n < N; ++n) acc[r][n] += x * b[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      const int64_t at = (row + r) * p.c_row + column + n * kLanes;
      if (p.rectify) acc[r][n] = relu(acc[r][n]);
      if (p.mask) acc[r][n] = keep(load(p.mask + at) > Vec{}, acc[r][n]);
      store(p.c + at, acc[r][n]);
    }
}

template <int N>
inline void multiply_columns(const Product& p, int rows, int column, int depth) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows) multiply_block<kRows, N>(p, r, column, depth);
  for (; r + 4 <= rows; r += 4) multiply_block<4, N>(p, r, column, depth);
  for (; r < rows; r += 2) multiply_block<2, N>(p, r, column, depth);
}

inline void multiply(const Product& p, int rows, int columns, int depth) {
  int n = 0;
  for (; n + 2 * kLanes <= columns; n += 2 * kLanes) multiply_columns<2>(p, rows, n, depth);
  for (; n < columns; n += kLanes) multiply_columns<1>(p, rows, n, depth);
}

// One thread's parameters (padded with zeros to whole vectors), gradients and tile buffers.
class Float32Tower {
 public:
  Float32Tower(const Block& block, int64_t first, int64_t last) : b(block), strip(block, first, last) {
    const int unit = kLanes < kRowUnit ? kRowUnit : kLanes;
    for (int l = 0; l < b.depth; ++l) {
      width[l] = static_cast<int>(round_up(b.width[l], unit));
      h[l].reset(kTile * width[l]);
      g[l].reset(kTile * width[l]);
      if (l > 0) pack_layer(l);
    }
    top = b.depth - 1;
    pack(out, b.out, 1, b.width[top], width[top]);
    dout.reset(width[top]);
    zeros.reset(*std::max_element(width, width + b.depth));
    a.reset(width[0]);
    c.reset(kTile * width[0]);
    dc.reset(kTile * width[0]);
    f.reset(kTile);
    if (b.objective != kPredict) da.reset(b.cells * width[0]);
  }

  void run() {
    for (int64_t gene = strip.first; gene < strip.last; gene += kTile) {
      valid = static_cast<int>(strip.last - gene < kTile ? strip.last - gene : kTile);
      rows = static_cast<int>(round_up(valid, kRowUnit));
      for (int p = 0; p < valid; ++p)
        std::memcpy(c + p * width[0], b.c + (gene + p) * b.width[0], b.width[0] * sizeof(float));
      std::memset(dc, 0, kTile * width[0] * sizeof(float));
      for (int64_t cell = 0; cell < b.cells; ++cell) tile(cell, gene);
      if (b.objective == kPredict) continue;
      for (int p = 0; p < valid; ++p)
        for (int k = 0; k < b.width[0]; ++k) b.dc[(gene + p) * b.width[0] + k] = dc[p * width[0] + k] * b.scale;
    }
    for (int64_t g = 0; strip.dlog_dispersion && g < strip.last - strip.first; ++g)
      b.dlog_dispersion[strip.first + g] = static_cast<float>(strip.dlog_dispersion[g] * b.scale);
  }

  // Adds this thread's share of what all threads contribute to.
  void add_to(Block& block) const {
    block.loss += loss;
    add(block.da, b.cells, b.width[0], da, width[0]);
    for (int l = 1; l < b.depth; ++l) {
      add(block.dweight[l], b.width[l], b.width[l - 1], dweight[l], width[l - 1]);
      add(block.dbias[l], 1, b.width[l], dbias[l], width[l]);
    }
    add(block.dout, 1, b.width[top], dout, width[top]);
  }

 private:
  const Block& b;
  Strip strip;
  int width[kMaxDepth], top, valid, rows;
  double loss = 0;
  Buffer<float> weight[kMaxDepth], transposed[kMaxDepth], bias[kMaxDepth], dweight[kMaxDepth], dbias[kMaxDepth];
  Buffer<float> h[kMaxDepth], g[kMaxDepth];  // activations and gradients by pre-activations, [pairs, units]
  Buffer<float> out, dout, zeros, a, c, da, dc, f;

  static void pack(Buffer<float>& to, const float* from, int n, int columns, int padded) {
    to.reset(static_cast<int64_t>(n) * padded);
    for (int i = 0; i < n; ++i) std::memcpy(to + i * padded, from + i * columns, columns * sizeof(float));
  }

  void pack_layer(int l) {
    weight[l].reset(width[l] * width[l - 1]);
    transposed[l].reset(width[l] * width[l - 1]);
    for (int j = 0; j < b.width[l]; ++j)
      for (int k = 0; k < b.width[l - 1]; ++k)
        weight[l][j * width[l - 1] + k] = transposed[l][k * width[l] + j] = b.weight[l][j * b.width[l - 1] + k];
    pack(bias[l], b.bias[l], 1, b.width[l], width[l]);
    dweight[l].reset(width[l] * width[l - 1]);
    dbias[l].reset(width[l]);
  }

  void add(float* to, int64_t n, int columns, const float* from, int padded) const {
    for (int64_t i = 0; i < n; ++i)
      for (int k = 0; k < columns; ++k) to[i * columns + k] += from[i * padded + k] * b.scale;
  }

  void tile(int64_t cell, int64_t gene) {
    forward(cell);
    if (b.objective == kPredict) {
      write_predictor(b, cell, gene, valid, f);
      return;
    }
    loss += pair_losses(strip, cell, gene - strip.first, valid, kTile, f);
    backward(cell);
  }

  void forward(int64_t cell) {
    std::memcpy(a, b.a + cell * b.width[0], b.width[0] * sizeof(float));
    for (int p = 0; p < rows; ++p)
      for (int k = 0; k < width[0]; k += kLanes)
        store(h[0] + p * width[0] + k, relu(load(a + k) + load(c + p * width[0] + k)));
    for (int l = 1; l < b.depth; ++l) {
      const int n = width[l];
      multiply({h[l - 1], width[l - 1], 1, transposed[l], n, h[l], n, bias[l], nullptr, true}, rows, n, width[l - 1]);
    }
    for (int p = 0; p < rows; ++p) {
      Vec total{};
      for (int k = 0; k < width[top]; k += kLanes) total += load(out + k) * load(h[top] + p * width[top] + k);
      f[p] = sum(total);
    }
  }

  void backward(int64_t cell) {
    const int n = width[top];
    for (int k = 0; k < n; k += kLanes) {
      Vec total = load(dout + k);
      for (int p = 0; p < rows; ++p) {
        const Vec unit = load(h[top] + p * n + k), slope = splat(f[p]);
        total += unit * slope;
        store(g[top] + p * n + k, keep(unit > Vec{}, slope * load(out + k)));
      }
      store(dout + k, total);
    }
    for (int l = top; l > 0; --l) backward_layer(l);
    for (int k = 0; k < width[0]; k += kLanes) {
      float* row = da + cell * width[0] + k;
      Vec total = load(row);
      for (int p = 0; p < rows; ++p) {
        const Vec slope = load(g[0] + p * width[0] + k);
        total += slope;
        store(dc + p * width[0] + k, load(dc + p * width[0] + k) + slope);
      }
      store(row, total);
    }
  }

  // From the gradient by layer l's pre-activations to those of its weights and of layer l - 1.
  void backward_layer(int l) {
    const int n = width[l], m = width[l - 1];
    for (int k = 0; k < n; k += kLanes) {
      Vec total = load(dbias[l] + k);
      for (int p = 0; p < rows; ++p) total += load(g[l] + p * n + k);
      store(dbias[l] + k, total);
    }
    multiply({g[l], 1, n, h[l - 1], m, dweight[l], m, nullptr, nullptr, false}, n, m, rows);
    multiply({g[l], n, 1, weight[l], m, g[l - 1], m, zeros, h[l - 1], false}, rows, m, n);
  }
};

}  // namespace fused
