// Loss and gradient of a run of pairs of one cell, given the predictor that the tower adds to f0.
#pragma once
#include "block.h"
#include "simd.h"

namespace fused {

// Genes [first, last) of the block, as one thread sees them: targets dense, dispersion on both scales.
struct Strip {
  const Block& block;
  int64_t first, last;
  Buffer<float> targets;  // [cells, last - first], only where they come sparse or with entries left out
  Buffer<float> dispersion;
  Buffer<double> dlog_dispersion;

  Strip(const Block& b, int64_t from, int64_t to) : block(b), first(from), last(to) {
    if (b.objective == kPredict) return;
    if (b.y == nullptr || b.held_out != nullptr) densify();
    if (b.objective != kNegativeBinomial) return;
    dispersion.reset(to - from);
    dlog_dispersion.reset(to - from);
    for (int64_t g = from; g < to; ++g) dispersion[g - from] = std::exp(b.log_dispersion[g]);
  }

  const float* target_row(int64_t cell) const {
    return targets ? targets + cell * (last - first) : block.y + cell * block.genes + first;
  }

 private:
  // Place of a gene position in this strip, or outside 0 .. last - first - 1.
  int64_t place(int64_t gene) const {
    if (block.column == nullptr) return gene - first;
    return gene >= 0 && gene < block.columns ? block.column[gene] - first : -1;
  }

  void densify() {
    const int64_t genes = last - first;
    targets.reset(block.cells * genes);
    for (int64_t cell = 0; cell < block.cells; ++cell) {
      float* row = targets + cell * genes;
      if (block.y != nullptr) {
        std::memcpy(row, block.y + cell * block.genes + first, genes * sizeof(float));
      } else {
        const int64_t begin = block.y_start[cell];
        for (int64_t i = begin; i < begin + block.y_length[cell]; ++i) {
          const int64_t g = place(block.y_index[i]);
          if (g >= 0 && g < genes) row[g] = block.y_value[i];
        }
      }
      for (int64_t i = 0; i < block.held_out_width; ++i) {
        const int64_t g = place(block.held_out[cell * block.held_out_width + i]);
        if (g >= 0 && g < genes) row[g] = NAN;
      }
    }
  }
};

struct Loss {
  Vec value, slope;  // per lane, 0 where the lane is left out
};

inline Vec log1p_positive(Vec x) {
  const Vec u = x + 1.0f;
  return choose(u == splat(1.0f), x, logarithm(u) * (x / (u - 1.0f)));
}

inline Loss poisson(Vec log_mean, Vec y, float max_log_mean) {
  const IntVec free = log_mean <= splat(max_log_mean);
  log_mean = at_most(log_mean, splat(max_log_mean));
  const Vec mean = exponential(at_least(log_mean, splat(-87.0f)));
  return {mean - y * log_mean, keep(free, mean - y)};
}

inline Loss squared(Vec f, Vec y, float size) {
  const Vec residual = f * size - y;
  return {residual * residual, residual * (2.0f * size)};
}

inline Loss binary(Vec f, Vec y) {
  const Vec observed = keep(y > Vec{}, splat(1.0f));
  const Vec magnitude = choose(f > Vec{}, f, -f);
  const Vec e = exponential(at_least(-magnitude, splat(-87.0f)));
  const Vec sigmoid = choose(f > Vec{}, splat(1.0f), e) / (e + 1.0f);
  return {relu(f) + log1p_positive(e) - f * observed, sigmoid - observed};
}

// psi(x) for x > 0: recurrence up to 8, then the asymptotic series.
inline double digamma(double x) {
  double shift = 0;
  for (; x < 8; x += 1) shift += 1 / x;
  const double inverse = 1 / (x * x);
  const double series =
      inverse * (1. / 12 - inverse * (1. / 120 - inverse * (1. / 252 - inverse * (1. / 240 - inverse / 132))));
  return std::log(x) - 0.5 / x - series - shift;
}

// lgamma(y + theta) - lgamma(theta) - y log theta, and its derivative by log theta.
inline void log_rising_factorial(double y, double theta, double* value, double* slope) {
  if (y == std::floor(y) && y <= 24) {
    double product = 1, inverse = 0;
    for (int i = 0; i < static_cast<int>(y); ++i) {
      product *= 1 + i / theta;
      inverse += 1 / (theta + i);
    }
    *value = std::log(product);
    *slope = theta * inverse - y;
  } else {
    *value = std::lgamma(y + theta) - std::lgamma(theta) - y * std::log(theta);
    *slope = theta * (digamma(y + theta) - digamma(theta)) - y;
  }
}

// `slope_dispersion` receives the derivative by log theta of each lane.
inline Loss negative_binomial(Vec log_mean, Vec y, Vec theta, float max_log_mean, Vec* slope_dispersion) {
  const IntVec free = log_mean <= splat(max_log_mean);
  log_mean = at_most(log_mean, splat(max_log_mean));
  const Vec mean = exponential(at_least(log_mean, splat(-87.0f)));
  const Vec log_ratio = log1p_positive(mean / theta);
  const Vec pull = (y + theta) * mean / (theta + mean);
  Vec value = (y + theta) * log_ratio - y * log_mean;
  Vec slope = theta * log_ratio - pull;
  for (int i = 0; i < kLanes; ++i) {
    if (!(y[i] > 0)) continue;
    double rising, by_log_theta;
    log_rising_factorial(y[i], theta[i], &rising, &by_log_theta);
    value[i] -= static_cast<float>(rising);
    slope[i] -= static_cast<float>(by_log_theta);
  }
  *slope_dispersion = slope;
  return {value, keep(free, pull - y)};
}

// Up to one vector from memory; lanes beyond n become `rest`.
inline Vec load_some(const float* p, int n, float rest) {
  if (n >= kLanes) return load(p);
  Vec v = splat(rest);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_some(float* p, Vec v, int n) {
  if (n >= kLanes) return store(p, v);
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

// A vector of pairs of one cell, at most `n` of them: adds what the block holds besides the tower to the predictor,
// writes the scaled gradient to the block, returns the unscaled one, 0 where an entry is left out.
template <int objective>
inline Vec vector_losses(Strip& strip, int64_t cell, int64_t offset, int n, Vec predictor, Vec* total) {
  const Block& b = strip.block;
  const int64_t place = cell * b.genes + strip.first + offset;
  Vec y = load_some(strip.target_row(cell) + offset, n, NAN);
  if (b.f0 != nullptr) predictor += load_some(b.f0 + place, n, 0);
  IntVec in = y == y;
  if (b.mask != nullptr)
    for (int k = 0; k < n && k < kLanes; ++k) in[k] &= b.mask[place + k] ? -1 : 0;
  y = keep(in, y);
  const float log_size = b.log_size == nullptr ? 0.0f : b.log_size[cell];
  Loss loss;
  if (objective == kPoisson) {
    loss = poisson(predictor + log_size, y, b.max_log_mean);
  } else if (objective == kNegativeBinomial) {
    Vec by_dispersion;
    const Vec theta = load_some(strip.dispersion + offset, n, 1);
    loss = negative_binomial(predictor + log_size, y, theta, b.max_log_mean, &by_dispersion);
    by_dispersion = keep(in, by_dispersion);
    for (int k = 0; k < n && k < kLanes; ++k) strip.dlog_dispersion[offset + k] += by_dispersion[k];
  } else if (objective == kSquared) {
    loss = squared(predictor, y, std::exp(log_size));
  } else {
    loss = binary(predictor, y);
  }
  const Vec slope = keep(in, loss.slope);
  if (b.f != nullptr) store_some(b.f + place, slope * b.scale, n);
  *total += keep(in, loss.value);
  return slope;
}

// The pairs of one cell with genes first + offset .. + valid: reads the tower's part of the predictor from `f`,
// leaves the unscaled gradient there (0 beyond `valid`), returns the loss.
template <int objective>
inline double pair_losses(Strip& strip, int64_t cell, int64_t offset, int valid, int padded, float* f) {
  Vec total{};
  for (int i = 0; i < padded; i += kLanes) {
    const Vec slope = valid > i
                          ? vector_losses<objective>(strip, cell, offset + i, valid - i, load(f + i), &total)
                          : Vec{};
    store(f + i, slope);
  }
  return sum(total);
}

inline double pair_losses(Strip& strip, int64_t cell, int64_t offset, int valid, int padded, float* f) {
  switch (strip.block.objective) {
    case kPoisson:
      return pair_losses<kPoisson>(strip, cell, offset, valid, padded, f);
    case kNegativeBinomial:
      return pair_losses<kNegativeBinomial>(strip, cell, offset, valid, padded, f);
    case kSquared:
      return pair_losses<kSquared>(strip, cell, offset, valid, padded, f);
    default:
      return pair_losses<kBinary>(strip, cell, offset, valid, padded, f);
  }
}

// Prediction's counterpart: adds f0 to the tower's part and writes the predictor.
inline void write_predictor(const Block& b, int64_t cell, int64_t gene, int valid, const float* f) {
  const int64_t place = cell * b.genes + gene;
  for (int i = 0; i < valid; i += kLanes) {
    Vec predictor = load(f + i);
    if (b.f0 != nullptr) predictor += load_some(b.f0 + place + i, valid - i, 0);
    store_some(b.f + place + i, predictor, valid - i);
  }
}

}  // namespace fused
