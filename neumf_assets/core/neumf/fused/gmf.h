// Matrix factorisation of a block under the Poisson likelihood: product, exponential, loss and both gradients of a
// tile of pairs while it lies in registers and the first cache.
//
// Every pair costs its mean; only what was observed costs its count besides, and is added entry by entry.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace fused {

// Mirrored by `GmfBlock` in library.py.
struct GmfBlock {
  int64_t cells, genes;
  int32_t size, threads;
  float max_log_mean;
  int32_t unused;
  const float* cell;         // [cells, size]
  const float* gene;         // [genes, size]
  const float* cell_offset;  // [cells]: bias and log size
  const float* gene_bias;    // [genes]
  const int64_t* y_start;    // [cells], where a cell's entries begin in y_index and y_value
  const int64_t* y_length;   // [cells]
  const int32_t* y_index;    // gene of each entry, ascending within a cell
  const float* y_value;
  const int64_t* held_out;  // [cells, held_out_width] or null: genes left out; beyond the last: none
  int64_t held_out_width;
  double loss;
  float* dcell;       // gradients, shaped as what they belong to
  float* dgene;
  float* dcell_offset;
  float* dgene_bias;
};

#if defined(__AVX512F__)
constexpr int kTileCells = 8;  // cells x 2 vectors of genes in registers at a time
#else
constexpr int kTileCells = 4;
#endif
constexpr int kTileVecs = 2;
constexpr int kTileGenes = kTileVecs * kLanes;
constexpr float kLowest = -87.0f;

// Genes [first, last) of a block, as one thread sees them.
class Gmf {
 public:
  Gmf(const GmfBlock& b, const float* cells, int64_t from, int64_t to)
      : block(b), cell(cells), first(from), last(to), size(b.size), padded(round_up(b.size, kLanes)) {
    const int64_t tiles = (to - from + kTileGenes - 1) / kTileGenes;
    gene.reset(tiles * kTileGenes * padded);
    for (int64_t g = 0; g < to - from; ++g)
      std::memcpy(gene + g * padded, b.gene + (from + g) * size, size * sizeof(float));
    across.reset(size * kTileGenes);
    dacross.reset(size * kTileGenes);
    mean.reset(round_up(b.cells, kTileCells) * kTileGenes);
    dcell.reset(round_up(b.cells, kTileCells) * padded);
    dgene.reset(tiles * kTileGenes * padded);
    dcell_offset.reset(round_up(b.cells, kTileCells));
    dgene_bias.reset(tiles * kTileGenes);
  }

  void run() {
    for (int64_t g = 0; g < last - first; g += kTileGenes) tile(g);
    entries();
  }

  void add_to(GmfBlock& b) const {
    b.loss += loss;
    for (int64_t c = 0; c < b.cells; ++c) {
      for (int k = 0; k < size; ++k) b.dcell[c * size + k] += dcell[c * padded + k];
      b.dcell_offset[c] += dcell_offset[c];
    }
    for (int64_t g = 0; g < last - first; ++g) {
      std::memcpy(b.dgene + (first + g) * size, dgene + g * padded, size * sizeof(float));
      b.dgene_bias[first + g] = dgene_bias[g];
    }
  }

 private:
  const GmfBlock& block;
  const float* cell;  // [cells rounded up, padded]
  int64_t first, last;
  int size;
  int64_t padded;
  Buffer<float> gene, across, dacross, mean, dcell, dgene, dcell_offset, dgene_bias;
  double loss = 0;

  // All pairs of a tile of genes as if nothing had been observed.
  void tile(int64_t at) {
    const int64_t there = std::min<int64_t>(kTileGenes, last - first - at);
    float bias[kTileGenes], used[kTileGenes];
    for (int64_t j = 0; j < kTileGenes; ++j) {
      bias[j] = j < there ? block.gene_bias[first + at + j] : 0.0f;
      used[j] = j < there ? 1.0f : 0.0f;
    }
    for (int k = 0; k < size; ++k)
      for (int64_t j = 0; j < kTileGenes; ++j) across[k * kTileGenes + j] = gene[(at + j) * padded + k];
    std::memset(dacross, 0, size * kTileGenes * sizeof(float));
    Vec total[kTileVecs] = {}, dbias[kTileVecs] = {};
    for (int64_t c = 0; c < block.cells; c += kTileCells) means(c, bias, used, total, dbias);
    for (int v = 0; v < kTileVecs; ++v) loss += sum(total[v]);
    for (int v = 0; v < kTileVecs; ++v) store(dgene_bias + at + v * kLanes, dbias[v]);
    for (int k = 0; k < size; ++k)
      for (int64_t j = 0; j < there; ++j) dgene[(at + j) * padded + k] += dacross[k * kTileGenes + j];
    for (int64_t c = 0; c < block.cells; c += kTileCells) cells_gradient(c, at, there);
  }

  // Means of some cells' pairs, their loss, and what they add to the genes' gradient.
  void means(int64_t c, const float* bias, const float* used, Vec* total, Vec* dbias) {
    Vec s[kTileCells][kTileVecs];
    const float* own = cell + c * padded;
    for (int i = 0; i < kTileCells; ++i) {
      const float offset = c + i < block.cells ? block.cell_offset[c + i] : kLowest;
      for (int v = 0; v < kTileVecs; ++v) s[i][v] = load(bias + v * kLanes) + offset;
    }
    for (int k = 0; k < size; ++k) {
      Vec q[kTileVecs];
      for (int v = 0; v < kTileVecs; ++v) q[v] = load(across + k * kTileGenes + v * kLanes);
      for (int i = 0; i < kTileCells; ++i) {
        const Vec p = splat(own[i * padded + k]);
        for (int v = 0; v < kTileVecs; ++v) s[i][v] += p * q[v];
      }
    }
    const Vec highest = splat(block.max_log_mean);
    for (int i = 0; i < kTileCells; ++i) {
      const float there = c + i < block.cells ? 1.0f : 0.0f;
      Vec row = {};
      for (int v = 0; v < kTileVecs; ++v) {
        const IntVec free = s[i][v] <= highest;
        const Vec m = exponential(at_least(at_most(s[i][v], highest), splat(kLowest))) *
                      (load(used + v * kLanes) * there);
        total[v] += m;
        s[i][v] = keep(free, m);
        dbias[v] += s[i][v];
        row += s[i][v];
        store(mean + (c + i) * kTileGenes + v * kLanes, s[i][v]);
      }
      dcell_offset[c + i] += sum(row);
    }
    for (int k = 0; k < size; ++k) {
      float* d = dacross + k * kTileGenes;
      Vec q[kTileVecs];
      for (int v = 0; v < kTileVecs; ++v) q[v] = load(d + v * kLanes);
      for (int i = 0; i < kTileCells; ++i) {
        const Vec p = splat(own[i * padded + k]);
        for (int v = 0; v < kTileVecs; ++v) q[v] += s[i][v] * p;
      }
      for (int v = 0; v < kTileVecs; ++v) store(d + v * kLanes, q[v]);
    }
  }

  // What the means of a tile add to the gradient of some cells: vectors along the embedding.
  void cells_gradient(int64_t c, int64_t at, int64_t there) {
    for (int64_t k = 0; k < padded; k += kTileVecs * kLanes) {
      if (k + kLanes < padded)
        cells_gradient_of<kTileVecs>(c, at, there, k);
      else
        cells_gradient_of<1>(c, at, there, k);
    }
  }

  template <int kVecs>
  void cells_gradient_of(int64_t c, int64_t at, int64_t there, int64_t k) {
    Vec d[kTileCells][kVecs];
    for (int i = 0; i < kTileCells; ++i)
      for (int v = 0; v < kVecs; ++v) d[i][v] = load(dcell + (c + i) * padded + k + v * kLanes);
    for (int64_t j = 0; j < there; ++j) {
      Vec q[kVecs];
      for (int v = 0; v < kVecs; ++v) q[v] = load(gene + (at + j) * padded + k + v * kLanes);
      for (int i = 0; i < kTileCells; ++i) {
        const Vec m = splat(mean[(c + i) * kTileGenes + j]);
        for (int v = 0; v < kVecs; ++v) d[i][v] += m * q[v];
      }
    }
    for (int i = 0; i < kTileCells; ++i)
      for (int v = 0; v < kVecs; ++v) store(dcell + (c + i) * padded + k + v * kLanes, d[i][v]);
  }

  // What was observed, and what is held out: entry by entry.
  void entries() {
    std::vector<int64_t> left_out(last - first, -1);
    for (int64_t c = 0; c < block.cells; ++c) {
      for (int64_t i = 0; i < block.held_out_width; ++i) {
        const int64_t g = block.held_out[c * block.held_out_width + i] - first;
        if (g < 0 || g >= last - first || left_out[g] == c) continue;
        left_out[g] = c;
        const float log_mean = predicted(c, g);
        const float m = std::exp(std::max(std::min(log_mean, block.max_log_mean), kLowest));
        loss -= m;
        if (log_mean <= block.max_log_mean) push(c, g, -m);
      }
      const int32_t* begin = block.y_index + block.y_start[c];
      const int32_t* end = begin + block.y_length[c];
      const int32_t* entry = std::lower_bound(begin, end, static_cast<int32_t>(first));
      for (; entry < end && *entry < last; ++entry) {
        const int64_t g = *entry - first;
        if (left_out[g] == c) continue;
        const float y = block.y_value[entry - block.y_index], log_mean = predicted(c, g);
        loss -= static_cast<double>(y) * std::min(log_mean, block.max_log_mean);
        if (log_mean <= block.max_log_mean) push(c, g, -y);
      }
    }
  }

  float predicted(int64_t c, int64_t g) const {
    Vec total = {};
    for (int64_t k = 0; k < padded; k += kLanes) total += load(cell + c * padded + k) * load(gene + g * padded + k);
    return sum(total) + block.cell_offset[c] + block.gene_bias[first + g];
  }

  // Adds a slope of the loss by a pair's log mean to the gradients.
  void push(int64_t c, int64_t g, float slope) {
    float *dc = dcell + c * padded, *dg = dgene + g * padded;
    const float *p = cell + c * padded, *q = gene + g * padded;
    for (int64_t k = 0; k < padded; k += kLanes) {
      store(dc + k, load(dc + k) + load(q + k) * slope);
      store(dg + k, load(dg + k) + load(p + k) * slope);
    }
    dcell_offset[c] += slope;
    dgene_bias[g] += slope;
  }
};

// A step of Adam on some rows of a table. Mirrored by `AdamStep` in library.py.
struct AdamStep {
  int64_t rows, columns;
  double beta1, beta2;   // 1 - 0.999 has few digits left in float32
  float epsilon, share;  // share: how much of the prior's pull belongs to this step
  const int64_t* row;                  // [rows] or null: all, in order
  const float* gradient;               // [rows, columns]
  const float* rate;                   // [columns]
  const float* decay;                  // [columns]: prior precision
  float* table;                        // [.., columns], and its moments and counts of steps
  float* first;
  float* second;
  float* steps;
};

inline void adam(const AdamStep& a) {
  std::vector<float> scaled(a.columns);
  const float new1 = 1 - a.beta1, old2 = a.beta2, new2 = 1 - a.beta2;
  float known = -1;
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t at = a.row ? a.row[r] : r;
    const float taken = a.steps[at] += 1;
    if (taken != known) {  // most rows have been used equally often
      known = taken;
      const double bias1 = 1 - std::pow(a.beta1, taken), bias2 = 1 - std::pow(a.beta2, taken);
      for (int64_t k = 0; k < a.columns; ++k) scaled[k] = a.rate[k] * (std::sqrt(bias2) / bias1);
    }
    float *x = a.table + at * a.columns, *m = a.first + at * a.columns, *s = a.second + at * a.columns;
    const float* gradient = a.gradient + r * a.columns;
    for (int64_t k = 0; k < a.columns; ++k) {
      const float g = gradient[k] + a.share * a.decay[k] * x[k];
      m[k] += new1 * (g - m[k]);
      s[k] = old2 * s[k] + new2 * g * g;
      x[k] -= scaled[k] * (m[k] / (std::sqrt(s[k]) + a.epsilon));
    }
  }
}

}  // namespace fused
