// One training or prediction block as it crosses from Python: plain pointers, row-major, float32.
// The order of the fields is mirrored by `_Block` in library.py.
#pragma once
#include <cstdint>

namespace fused {

constexpr int kMaxDepth = 5;

enum Objective : int32_t { kPredict = 0, kPoisson = 1, kNegativeBinomial = 2, kSquared = 3, kBinary = 4 };
enum Precision : int32_t { kFloat32 = 0, kBfloat16 = 1 };

constexpr int64_t kGeneUnit = 16;  // genes are dealt to threads in runs of this many

struct Block {
  int64_t cells, genes;
  int32_t depth;             // hidden layers, the separated first one included
  int32_t width[kMaxDepth];  // units of each hidden layer
  int32_t objective, precision, threads;
  float max_log_mean;  // upper bound of the log mean under the exponential link
  float scale;         // every gradient is multiplied by it (the loss is not)

  const float* f0;                 // [cells, genes] or null: what the predictor holds besides the tower
  const float* a;                  // [cells, width 0], bias included
  const float* c;                  // [genes, width 0]
  const float* weight[kMaxDepth];  // l >= 1: [width l, width l-1]
  const float* bias[kMaxDepth];    // l >= 1: [width l]
  const float* out;                // [last width]
  const float* log_size;           // [cells] or null
  const float* log_dispersion;     // [genes], negative binomial only

  const float* y;            // [cells, genes], NaN leaves an entry out; null when targets come sparse
  const int64_t* y_start;    // [cells], where a cell's entries begin in y_index and y_value
  const int64_t* y_length;   // [cells]
  const int32_t* y_index;    // gene positions, in the block or where `column` leads to it
  const float* y_value;
  const uint8_t* mask;       // [cells, genes] or null; 0 leaves an entry out
  const int64_t* held_out;   // [cells, held_out_width] or null: gene positions left out; beyond the last: none
  int64_t held_out_width;
  const int32_t* column;     // [columns] or null: place in the block of a gene position; outside 0..genes-1: none
  int64_t columns;

  double loss;
  float* f;  // [cells, genes]: the predictor when predicting, its gradient when training (then null or f0 allowed)
  float* da;  // gradients, shaped as what they belong to
  float* dc;
  float* dweight[kMaxDepth];
  float* dbias[kMaxDepth];
  float* dout;
  float* dlog_dispersion;
};

}  // namespace fused
