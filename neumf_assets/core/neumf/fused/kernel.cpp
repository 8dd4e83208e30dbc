// Entry points of the fused tower: splits the genes of a block over threads and adds up their shares in order.
#include <exception>
#include <thread>
#include <vector>

#include "bfloat16.h"
#include "float32.h"
#include "gmf.h"

namespace fused {

// Deals units of genes to threads, each with a worker of its own; what they found is added up in their order.
template <class Worker, class Make, class Use>
void share_genes(int64_t genes, int64_t unit, int32_t wanted, Make make, Use use) {
  const int64_t units = (genes + unit - 1) / unit;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(wanted, units)));
  std::vector<std::unique_ptr<Worker>> workers(threads);
  std::vector<std::exception_ptr> failures(threads);
  auto work = [&](int t) {
    try {
      const int64_t first = units * t / threads * unit, last = std::min(genes, units * (t + 1) / threads * unit);
      workers[t] = make(first, last);
      workers[t]->run();
    } catch (...) {
      failures[t] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  for (const auto& worker : workers) use(*worker);
}

template <class Tower>
void run(Block& block) {
  block.loss = 0;
  share_genes<Tower>(
      block.genes, kGeneUnit, block.threads,
      [&](int64_t first, int64_t last) { return std::make_unique<Tower>(block, first, last); },
      [&](const Tower& tower) {
        if (block.objective != kPredict) tower.add_to(block);
      });
}

void run(GmfBlock& block) {
  const int64_t padded = round_up(block.size, kLanes);
  Buffer<float> cell(round_up(block.cells, kTileCells) * padded);
  for (int64_t c = 0; c < block.cells; ++c)
    std::memcpy(cell + c * padded, block.cell + c * block.size, block.size * sizeof(float));
  block.loss = 0;
  share_genes<Gmf>(
      block.genes, kTileGenes, block.threads,
      [&](int64_t first, int64_t last) { return std::make_unique<Gmf>(block, cell, first, last); },
      [&](const Gmf& part) { part.add_to(block); });
}

}  // namespace fused

extern "C" {

// 0: done; 1: out of memory or threads.
int32_t fused_block(fused::Block* block) {
  try {
#ifdef FUSED_BFLOAT16
    // a single layer has no matrix product
    if (block->precision == fused::kBfloat16 && block->depth > 1) {
      if (block->objective == fused::kPredict)
        fused::run<fused::Bfloat16Tower<false>>(*block);
      else
        fused::run<fused::Bfloat16Tower<true>>(*block);
      return 0;
    }
#endif
    fused::run<fused::Float32Tower>(*block);
    return 0;
  } catch (...) {
    return 1;
  }
}

// Whether blocks of this precision can be run here.
int32_t fused_supports(int32_t precision) {
#ifdef FUSED_BFLOAT16
  if (precision == fused::kBfloat16) return fused::allow_tiles();
#endif
  return precision == fused::kFloat32;
}

// 0: done; 1: out of memory or threads.
int32_t fused_gmf(fused::GmfBlock* block) {
  try {
    fused::run(*block);
    return 0;
  } catch (...) {
    return 1;
  }
}

int32_t fused_adam(const fused::AdamStep* step) {
  try {
    fused::adam(*step);
    return 0;
  } catch (...) {
    return 1;
  }
}

int64_t fused_gmf_size() { return sizeof(fused::GmfBlock); }
int64_t fused_adam_size() { return sizeof(fused::AdamStep); }

// Bytes of the block, so that the caller can tell a mismatched library.
int64_t fused_block_size() { return sizeof(fused::Block); }
}
