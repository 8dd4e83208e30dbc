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
          const int64_t g = block.y_index[i] - first;
          if (g >= 0 && g < genes) row[g] = block.y_value[i];
        }
      }
      for (int64_t i = 0; i < block.held_out_width; ++i) {
        const int64_t g = block.held_out[cell * block.held_out_width + i] - first;
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

// The pairs of one cell with genes first + offset .. + valid: reads the tower's part of the predictor from `f`,
// leaves the unscaled gradient there (0 beyond `valid`), writes the scaled gradient to the block, returns the loss.
inline double pair_losses(Strip& strip, int64_t cell, int64_t offset, int valid, int padded, float* f) {
  const Block& b = strip.block;
  const int64_t place = cell * b.genes + strip.first + offset;
  const float* targets = strip.target_row(cell) + offset;
  const float log_size = b.log_size == nullptr ? 0.0f : b.log_size[cell];
  const float size = std::exp(log_size);
  double total = 0;
  for (int i = 0; i < padded; i += kLanes) {
    const int n = valid - i < kLanes ? valid - i : kLanes;
    if (n <= 0) {
      store(f + i, Vec{});
      continue;
    }
    Vec y = splat(NAN), f0{}, theta = splat(1.0f), slope_dispersion{};
    std::memcpy(&y, targets + i, n * sizeof(float));
    if (b.f0 != nullptr) std::memcpy(&f0, b.f0 + place + i, n * sizeof(float));
    IntVec in = y == y;
    if (b.mask != nullptr)
      for (int k = 0; k < n; ++k) in[k] &= b.mask[place + i + k] ? -1 : 0;
    y = keep(in, y);
    const Vec predictor = load(f + i) + f0;
    Loss loss;
    switch (b.objective) {
      case kPoisson:
        loss = poisson(predictor + log_size, y, b.max_log_mean);
        break;
      case kNegativeBinomial:
        std::memcpy(&theta, strip.dispersion + offset + i, n * sizeof(float));
        loss = negative_binomial(predictor + log_size, y, theta, b.max_log_mean, &slope_dispersion);
        slope_dispersion = keep(in, slope_dispersion);
        for (int k = 0; k < n; ++k) strip.dlog_dispersion[offset + i + k] += slope_dispersion[k];
        break;
      case kSquared:
        loss = squared(predictor, y, size);
        break;
      default:
        loss = binary(predictor, y);
    }
    const Vec slope = keep(in, loss.slope), scaled = slope * b.scale;
    store(f + i, slope);
    if (b.f != nullptr) std::memcpy(b.f + place + i, &scaled, n * sizeof(float));
    total += sum(keep(in, loss.value));
  }
  return total;
}

// Prediction's counterpart: adds f0 to the tower's part and writes the predictor.
inline void write_predictor(const Block& b, int64_t cell, int64_t gene, int valid, const float* f) {
  const int64_t place = cell * b.genes + gene;
  for (int i = 0; i < valid; i += kLanes) {
    const int n = valid - i < kLanes ? valid - i : kLanes;
    Vec f0{};
    if (b.f0 != nullptr) std::memcpy(&f0, b.f0 + place + i, n * sizeof(float));
    f0 += load(f + i);
    std::memcpy(b.f + place + i, &f0, n * sizeof(float));
  }
}

}  // namespace fused
