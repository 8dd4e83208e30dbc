// All steps of an epoch of matrix factorisation in one call: every thread has some genes, whose embeddings it moves as
// soon as it knows their gradients; the cells of a step are moved by one thread once all have added their share.
#pragma once
#include <sched.h>

#include <atomic>

#include "gmf.h"

namespace fused {

// A table with the state of its optimiser. Mirrored by `EpochTable` in library.py.
struct EpochTable {
  float* value;  // [rows, columns]
  float* first;
  float* second;
  float* steps;        // [rows]
  const float* rate;   // [columns]
  const float* decay;  // [columns]
  int64_t columns;
  int64_t moved;  // whether it is trained at all
};

// Mirrored by `GmfEpoch` in library.py.
struct GmfEpoch {
  int64_t steps, genes;
  int32_t size, shifted, threads;
  float max_log_mean, bias_prior, epsilon;
  double beta1, beta2;
  EpochTable cell;   // [cells, size + 1]: the bias last
  EpochTable gene;   // [genes, size]
  EpochTable shift;  // [datasets * genes, size + 1], or 1 where genes have no embedding of their dataset
  EpochTable out;    // [1, size]
  const float* log_size;         // [cells]
  const float* expected_bias;    // [datasets * genes]
  const int64_t* y_start;        // [cells]
  const int64_t* y_length;       // [cells]
  const int32_t* y_index;
  const float* y_value;
  const int64_t* held_out;       // [.., held_out_width] or null
  const int64_t* held_out_row;   // [cells], rows of held_out
  int64_t held_out_width;
  const int64_t* order;          // cells of all steps
  const int64_t* begin;          // [steps + 1], where those of a step begin
  const int64_t* dataset;        // [steps]
  const float* rate_share;       // [steps]
  const float* share;            // [steps], of all cells
  const float* dataset_share;    // [steps], of the cells of the dataset
  double loss;
};

// Lets threads wait for each other; for so short a time that they rather turn than sleep.
class Barrier {
 public:
  explicit Barrier(int n) : threads(n) {}
  void wait() {
    const int64_t round = rounds.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived.store(0, std::memory_order_relaxed);
      rounds.store(round + 1, std::memory_order_release);
      return;
    }
    for (int turns = 0; rounds.load(std::memory_order_acquire) == round; ++turns)
      if (turns > kTurns) sched_yield();
  }

 private:
  static constexpr int kTurns = 2000;
  const int threads;
  std::atomic<int> arrived{0};
  std::atomic<int64_t> rounds{0};
};

// The steps as one thread makes them.
class EpochPart {
 public:
  EpochPart(const GmfEpoch& e, int64_t from, int64_t to) : epoch(e), first(from), last(to) {
    block.size = e.size, block.threads = 1, block.genes = e.genes;
    block.max_log_mean = e.max_log_mean;
    block.y_index = e.y_index, block.y_value = e.y_value;
    block.held_out_width = e.held_out == nullptr ? 0 : e.held_out_width;
    bias.resize(e.genes);
    block.gene_bias = bias.data();
  }

  // Gradients of a step, and the move of this thread's genes.
  void genes(int64_t step) {
    take(step);
    const int64_t offset = epoch.dataset[step] * epoch.genes;
    const EpochTable &gene = epoch.gene, &shift = epoch.shift;
    for (int64_t g = first; g < last; ++g)
      bias[g] = shift.value[(offset + g) * shift.columns + shift.columns - 1];
    gmf.set(block, cell, first, last, [&](int64_t g, float* row) {
      const float* __restrict own = gene.value + g * gene.columns;
      const float* __restrict there = shift.value + (offset + g) * shift.columns;
      if (epoch.shifted)
        for (int k = 0; k < epoch.size; ++k) row[k] = own[k] + there[k];
      else
        std::memcpy(row, own, epoch.size * sizeof(float));
    });
    gmf.run();
    loss += gmf.summed_loss();
    if (shift.moved) move_shifts(step, offset);
    if (gene.moved) move(gene, first, last - first, gmf.genes_gradients(), step, epoch.share[step]);
  }

  // The move of a step's cells and of the output's weights, from what all threads have found.
  void cells(int64_t step, const std::vector<std::unique_ptr<EpochPart>>& all) {
    const int size = epoch.size;
    const int64_t columns = size + 1, padded = round_up(size, kLanes), count = block.cells;
    const int64_t* own = epoch.order + epoch.begin[step];
    cell_gradient.assign(count * columns, 0.0f);
    out_gradient.assign(size, 0.0f);
    for (int64_t c = 0; c < count; ++c) {
      float* __restrict gradient = cell_gradient.data() + c * columns;
      for (const auto& part : all) {
        const float* __restrict found = part->gmf.cells_gradients() + c * padded;
        for (int k = 0; k < size; ++k) gradient[k] += found[k];
        gradient[size] += part->gmf.offset_gradients()[c];
      }
      const float* __restrict value = epoch.cell.value + own[c] * columns;
      for (int k = 0; k < size; ++k) {
        out_gradient[k] += gradient[k] * value[k];
        gradient[k] *= epoch.out.value[k];
      }
    }
    if (epoch.cell.moved) {
      AdamStep call = adam_of(epoch.cell, step, 1.0f);
      call.rows = count, call.row = own, call.gradient = cell_gradient.data();
      adam(call, 0, count);
    }
    if (epoch.out.moved) move(epoch.out, 0, 1, out_gradient.data(), step, epoch.share[step]);
  }

  double summed_loss() const { return loss; }

 private:
  const GmfEpoch& epoch;
  const int64_t first, last;
  GmfBlock block{};
  Gmf gmf;
  Reused cell;
  std::vector<float> bias, offset_of, shift_gradient, cell_gradient, out_gradient;
  std::vector<int64_t> start, length, held_out;
  double loss = 0;

  // The cells of a step as the block wants them.
  void take(int64_t step) {
    const int64_t* own = epoch.order + epoch.begin[step];
    const int64_t count = epoch.begin[step + 1] - epoch.begin[step], columns = epoch.size + 1;
    const int64_t padded = round_up(epoch.size, kLanes), width = block.held_out_width;
    cell.zero(round_up(count, kTileCells) * padded);
    offset_of.resize(count), start.resize(count), length.resize(count), held_out.resize(count * width);
    for (int64_t c = 0; c < count; ++c) {
      const float* __restrict value = epoch.cell.value + own[c] * columns;
      float* __restrict row = cell + c * padded;
      for (int k = 0; k < epoch.size; ++k) row[k] = value[k] * epoch.out.value[k];
      offset_of[c] = value[epoch.size] + epoch.log_size[own[c]];
      start[c] = epoch.y_start[own[c]], length[c] = epoch.y_length[own[c]];
      if (width)
        std::memcpy(held_out.data() + c * width, epoch.held_out + epoch.held_out_row[own[c]] * width,
                    width * sizeof(int64_t));
    }
    block.cells = count, block.cell_offset = offset_of.data();
    block.y_start = start.data(), block.y_length = length.data();
    block.held_out = width ? held_out.data() : nullptr;
  }

  void move_shifts(int64_t step, int64_t offset) {
    const EpochTable& shift = epoch.shift;
    const int64_t columns = shift.columns;
    const float share = epoch.dataset_share[step], prior = epoch.bias_prior * share;
    shift_gradient.resize((last - first) * columns);
    for (int64_t g = first; g < last; ++g) {
      float* gradient = shift_gradient.data() + (g - first) * columns;
      if (epoch.shifted)
        std::memcpy(gradient, gmf.genes_gradients() + (g - first) * epoch.size, epoch.size * sizeof(float));
      gradient[columns - 1] =
          gmf.bias_gradients()[g - first] + prior * (bias[g] - epoch.expected_bias[offset + g]);
    }
    move(shift, offset + first, last - first, shift_gradient.data(), step, share);
  }

  void move(const EpochTable& table, int64_t from, int64_t rows, const float* gradient, int64_t step,
            float share) {
    AdamStep call = adam_of(table, step, share);
    call.rows = rows, call.gradient = gradient;
    call.table += from * table.columns, call.first += from * table.columns, call.second += from * table.columns;
    call.steps += from;
    adam(call, 0, rows);
  }

  AdamStep adam_of(const EpochTable& table, int64_t step, float share) const {
    AdamStep call{};
    call.columns = table.columns, call.beta1 = epoch.beta1, call.beta2 = epoch.beta2;
    call.epsilon = epoch.epsilon, call.share = share, call.rate_share = epoch.rate_share[step];
    call.rate = table.rate, call.decay = table.decay, call.table = table.value;
    call.first = table.first, call.second = table.second, call.steps = table.steps;
    return call;
  }
};

}  // namespace fused
