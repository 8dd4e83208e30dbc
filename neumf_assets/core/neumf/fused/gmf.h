// Matrix factorisation of a block under the Poisson likelihood: product, exponential, loss and both gradients of a
// tile of pairs while it lies in registers and the first cache.
//
// Every pair costs its mean; only what was observed costs its count besides, and is added entry by entry.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
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
constexpr int kManyCells = 8;  // the same where there is one operand more to have at hand
constexpr int kAtOnce = 4;     // dimensions
#else
constexpr int kTileCells = 4;
constexpr int kManyCells = 6;
constexpr int kAtOnce = 2;
#endif
constexpr int kTileVecs = 2;
constexpr int kTileGenes = kTileVecs * kLanes;
constexpr float kLowest = -87.0f;

// Genes [first, last) of a block, as one thread sees them; its memory is used again for the next block.
class Gmf {
 public:
  // `embedding(g, row)` writes the embedding of a gene of the block into a row.
  template <class Embedding>
  void set(const GmfBlock& b, const float* cells, int64_t from, int64_t to, const Embedding& embedding) {
    block = &b, cell = cells, first = from, last = to, loss = 0;
    size = b.size, padded = round_up(b.size, kLanes), rows = round_up(b.cells, kTileCells);
    tiles = std::max<int64_t>(0, (to - from + kTileGenes - 1) / kTileGenes);
    gene.need(tiles * kTileGenes * padded);
    for (int64_t g = 0; g < tiles * kTileGenes; ++g) {
      float* row = gene + g * padded;
      const int64_t filled = g < to - from ? size : 0;
      if (filled) embedding(from + g, row);
      std::memset(row + filled, 0, (padded - filled) * sizeof(float));
    }
    across.need(size * kTileGenes);
    dacross.need(size * kTileGenes);
    mean.need(rows * kTileGenes);
    log_mean.need(rows * kTileGenes);
    dcell.zero(rows * padded);
    dcell_offset.zero(rows);
    dgene.need(tiles * kTileGenes * size);
    dgene_bias.need(tiles * kTileGenes);
    sort_held_out();
    cursor.resize(b.cells);
    for (int64_t c = 0; c < b.cells; ++c) {
      const int32_t* begin = b.y_index + b.y_start[c];
      cursor[c] = std::lower_bound(begin, begin + b.y_length[c], static_cast<int32_t>(first)) - b.y_index;
    }
  }

  void run() {
    for (int64_t t = 0; t < tiles; ++t) tile(t);
  }

  void add_to(GmfBlock& b) const {
    b.loss += loss;
    for (int64_t c = 0; c < b.cells; ++c) {
      for (int k = 0; k < size; ++k) b.dcell[c * size + k] += dcell[c * padded + k];
      b.dcell_offset[c] += dcell_offset[c];
    }
    std::memcpy(b.dgene + first * size, dgene, (last - first) * size * sizeof(float));
    std::memcpy(b.dgene_bias + first, dgene_bias, (last - first) * sizeof(float));
  }

  // What a step of Adam takes: gradients of the genes, [genes, size], and of their biases; of the cells, [cells,
  // padded] and [cells], as far as these genes add to them; and their loss.
  float* genes_gradients() const { return dgene; }
  float* bias_gradients() const { return dgene_bias; }
  const float* cells_gradients() const { return dcell; }
  const float* offset_gradients() const { return dcell_offset; }
  double summed_loss() const { return loss; }

 private:
  struct Held {
    int32_t cell, column;
  };
  const GmfBlock* block = nullptr;
  const float* cell = nullptr;  // [rows, padded]
  int64_t first = 0, last = 0, padded = 0, rows = 0, tiles = 0;
  int size = 0;
  Reused gene, across, dacross, mean, log_mean, dcell, dcell_offset, dgene, dgene_bias;
  std::vector<Held> held;             // by tile
  std::vector<int64_t> held_from;     // where each tile's begin
  std::vector<int64_t> cursor;        // each cell's next entry
  double loss = 0;

  void sort_held_out() {
    const int64_t count = block->held_out == nullptr ? 0 : block->held_out_width * block->cells;
    held_from.assign(tiles + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t g = block->held_out[i] - first;
      if (g >= 0 && g < last - first) ++held_from[g / kTileGenes + 1];
    }
    for (int64_t t = 0; t < tiles; ++t) held_from[t + 1] += held_from[t];
    held.resize(tiles ? held_from[tiles] : 0);
    std::vector<int64_t> next(held_from.begin(), held_from.end());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t g = block->held_out[i] - first;
      if (g < 0 || g >= last - first) continue;
      held[next[g / kTileGenes]++] = {static_cast<int32_t>(i / block->held_out_width),
                                      static_cast<int32_t>(g % kTileGenes)};
    }
  }

  void tile(int64_t t) {
    const int64_t at = t * kTileGenes, there = std::min<int64_t>(kTileGenes, last - first - at);
    float bias[kTileGenes], used[kTileGenes];
    for (int64_t j = 0; j < kTileGenes; ++j) {
      bias[j] = j < there ? block->gene_bias[first + at + j] : 0.0f;
      used[j] = j < there ? 1.0f : 0.0f;
    }
    for (int64_t j = 0; j < kTileGenes; ++j)
      for (int k = 0; k < size; ++k) across[k * kTileGenes + j] = gene[(at + j) * padded + k];
    Vec total[kTileVecs] = {}, dbias[kTileVecs] = {};
    for_all_cells([&](auto many, int64_t c) { means<decltype(many)::value>(c, bias, used, total); });
    for (int v = 0; v < kTileVecs; ++v) loss += sum(total[v]);
    leave_out(t);
    observe(at, there);
    std::memset(dacross, 0, size * kTileGenes * sizeof(float));
    for (int64_t c = 0; c < rows; c += kTileCells) genes_gradient(c, dbias);
    for_all_cells([&](auto many, int64_t c) { cells_gradient<decltype(many)::value>(c, at, there); });
    for (int v = 0; v < kTileVecs; ++v) store(dgene_bias + at + v * kLanes, dbias[v]);
    for (int64_t j = 0; j < there; ++j)
      for (int k = 0; k < size; ++k) dgene[(at + j) * size + k] = dacross[k * kTileGenes + j];
  }

  // Calls with the number of cells (as a type) and the first of them, until all rows have been.
  template <class Work>
  void for_all_cells(const Work& work) const {
    int64_t c = 0;
    for (; c + kManyCells <= rows; c += kManyCells) work(std::integral_constant<int, kManyCells>{}, c);
    for (; c + 4 <= rows; c += 4) work(std::integral_constant<int, 4>{}, c);
    for (; c < rows; c += 2) work(std::integral_constant<int, 2>{}, c);
  }

  // Log means and means of some cells' pairs, and the loss as if nothing had been observed.
  template <int kCells>
  void means(int64_t c, const float* bias, const float* used, Vec* total) {
    Vec s[kCells][kTileVecs];
    const float* own = cell + c * padded;
    for (int i = 0; i < kCells; ++i) {
      const float offset = c + i < block->cells ? block->cell_offset[c + i] : kLowest;
      for (int v = 0; v < kTileVecs; ++v) s[i][v] = load(bias + v * kLanes) + offset;
    }
    for (int k = 0; k < size; ++k) {
      Vec q[kTileVecs];
      for (int v = 0; v < kTileVecs; ++v) q[v] = load(across + k * kTileGenes + v * kLanes);
      for (int i = 0; i < kCells; ++i) {
        const Vec p = splat(own[i * padded + k]);
        for (int v = 0; v < kTileVecs; ++v) s[i][v] += p * q[v];
      }
    }
    const Vec highest = splat(block->max_log_mean);
    for (int i = 0; i < kCells; ++i) {
      const float there = c + i < block->cells ? 1.0f : 0.0f;
      for (int v = 0; v < kTileVecs; ++v) {
        const int64_t place = (c + i) * kTileGenes + v * kLanes;
        store(log_mean + place, s[i][v]);
        const Vec m = exponential(at_least(at_most(s[i][v], highest), splat(kLowest))) *
                      (load(used + v * kLanes) * there);
        total[v] += m;
        store(mean + place, keep(s[i][v] <= highest, m));
      }
    }
  }

  // Takes back what is held out, and marks it.
  void leave_out(int64_t t) {
    for (int64_t i = held_from[t]; i < held_from[t + 1]; ++i) {
      const int64_t place = held[i].cell * kTileGenes + held[i].column;
      if (std::isnan(log_mean[place])) continue;  // named twice
      loss -= log_mean[place] <= block->max_log_mean ? mean[place] : std::exp(block->max_log_mean);
      log_mean[place] = NAN;
      mean[place] = 0;
    }
  }

  // Turns means into slopes, mean - count, where something was observed.
  void observe(int64_t at, int64_t there) {
    for (int64_t c = 0; c < block->cells; ++c) {
      const int64_t end = block->y_start[c] + block->y_length[c], until = first + at + there;
      int64_t entry = cursor[c];
      for (; entry < end && block->y_index[entry] < until; ++entry) {
        const int64_t place = c * kTileGenes + block->y_index[entry] - first - at;
        const float score = log_mean[place], y = block->y_value[entry];
        if (std::isnan(score)) continue;
        loss -= static_cast<double>(y) * std::min(score, block->max_log_mean);
        if (score <= block->max_log_mean) mean[place] -= y;
      }
      cursor[c] = entry;
    }
  }

  // What the slopes of some cells add to the genes' gradient, and to that of both biases.
  void genes_gradient(int64_t c, Vec* dbias) {
    Vec s[kTileCells][kTileVecs];
    const float* own = cell + c * padded;
    for (int i = 0; i < kTileCells; ++i) {
      Vec row = {};
      for (int v = 0; v < kTileVecs; ++v) {
        s[i][v] = load(mean + (c + i) * kTileGenes + v * kLanes);
        dbias[v] += s[i][v];
        row += s[i][v];
      }
      dcell_offset[c + i] += sum(row);
    }
    int k = 0;
    for (; k + kAtOnce <= size; k += kAtOnce) genes_gradient_of<kAtOnce>(own, s, k);
    for (; k < size; ++k) genes_gradient_of<1>(own, s, k);
  }

  // Several dimensions at a time, whose sums do not wait for each other.
  template <int kMany>
  void genes_gradient_of(const float* own, const Vec (*s)[kTileVecs], int k) {
    Vec q[kMany][kTileVecs];
    for (int n = 0; n < kMany; ++n)
      for (int v = 0; v < kTileVecs; ++v) q[n][v] = load(dacross + (k + n) * kTileGenes + v * kLanes);
    for (int i = 0; i < kTileCells; ++i)
      for (int n = 0; n < kMany; ++n) {
        const Vec p = splat(own[i * padded + k + n]);
        for (int v = 0; v < kTileVecs; ++v) q[n][v] += s[i][v] * p;
      }
    for (int n = 0; n < kMany; ++n)
      for (int v = 0; v < kTileVecs; ++v) store(dacross + (k + n) * kTileGenes + v * kLanes, q[n][v]);
  }

  // What the slopes of a tile add to the gradient of some cells: vectors along the embedding.
  template <int kCells>
  void cells_gradient(int64_t c, int64_t at, int64_t there) {
    for (int64_t k = 0; k < padded; k += kTileVecs * kLanes) {
      if (k + kLanes < padded)
        cells_gradient_of<kCells, kTileVecs>(c, at, there, k);
      else
        cells_gradient_of<kCells, 1>(c, at, there, k);
    }
  }

  template <int kCells, int kVecs>
  void cells_gradient_of(int64_t c, int64_t at, int64_t there, int64_t k) {
    Vec d[kCells][kVecs];
    for (int i = 0; i < kCells; ++i)
      for (int v = 0; v < kVecs; ++v) d[i][v] = load(dcell + (c + i) * padded + k + v * kLanes);
    for (int64_t j = 0; j < there; ++j) {
      Vec q[kVecs];
      for (int v = 0; v < kVecs; ++v) q[v] = load(gene + (at + j) * padded + k + v * kLanes);
      for (int i = 0; i < kCells; ++i) {
        const Vec m = splat(mean[(c + i) * kTileGenes + j]);
        for (int v = 0; v < kVecs; ++v) d[i][v] += m * q[v];
      }
    }
    for (int i = 0; i < kCells; ++i)
      for (int v = 0; v < kVecs; ++v) store(dcell + (c + i) * padded + k + v * kLanes, d[i][v]);
  }
};

// A step of Adam on some rows of a table. Mirrored by `AdamStep` in library.py.
struct AdamStep {
  int64_t rows, columns;
  double beta1, beta2;   // 1 - 0.999 has few digits left in float32
  float epsilon, share;  // share: how much of the prior's pull belongs to this step
  float rate_share;      // of the rates below
  int32_t threads;
  const int64_t* row;                  // [rows] or null: all, in order
  const float* gradient;               // [rows, columns]
  const float* rate;                   // [columns]
  const float* decay;                  // [columns]: prior precision
  float* table;                        // [.., columns], and its moments and counts of steps
  float* first;
  float* second;
  float* steps;
};

// What of Adam's step is the same for all numbers of a row.
struct AdamOfRow {
  float epsilon, new1, old2, new2;
};

// Adam's step of one row. A function of its own, since only of its parameters compilers believe that they lie apart:
// inlined, numbers would be moved one by one.
__attribute__((noinline)) inline void adam_row(int64_t columns, const AdamOfRow a, float* __restrict x,
                                               float* __restrict m, float* __restrict s,
                                               const float* __restrict gradient, const float* __restrict pull,
                                               const float* __restrict rate) {
  for (int64_t k = 0; k < columns; ++k) {
    const float g = gradient[k] + pull[k] * x[k];
    m[k] += a.new1 * (g - m[k]);
    s[k] = a.old2 * s[k] + a.new2 * g * g;
    x[k] -= rate[k] * (m[k] / (std::sqrt(s[k]) + a.epsilon));
  }
}

inline void adam(const AdamStep& a, int64_t from, int64_t to) {
  std::vector<float> scaled(a.columns), pulled(a.columns);
  for (int64_t k = 0; k < a.columns; ++k) pulled[k] = a.share * a.decay[k];
  const AdamOfRow same{a.epsilon, static_cast<float>(1 - a.beta1), static_cast<float>(a.beta2),
                       static_cast<float>(1 - a.beta2)};
  float known = -1;
  for (int64_t r = from; r < to; ++r) {
    const int64_t at = a.row ? a.row[r] : r;
    const float taken = a.steps[at] += 1;
    if (taken != known) {  // most rows have been used equally often
      known = taken;
      const double bias1 = 1 - std::pow(a.beta1, taken), bias2 = 1 - std::pow(a.beta2, taken);
      for (int64_t k = 0; k < a.columns; ++k) scaled[k] = a.rate_share * a.rate[k] * (std::sqrt(bias2) / bias1);
    }
    const int64_t own = at * a.columns;
    adam_row(a.columns, same, a.table + own, a.first + own, a.second + own, a.gradient + r * a.columns, pulled.data(),
             scaled.data());
  }
}

}  // namespace fused
