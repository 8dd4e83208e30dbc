// Entry points of the fused tower: splits the genes of a block over threads and adds up their shares in order.
#include <exception>
#include <thread>
#include <vector>

#include "bfloat16.h"
#include "float32.h"

namespace fused {

template <class Tower>
void run(Block& block) {
  const int64_t units = (block.genes + kGeneUnit - 1) / kGeneUnit;
  const int threads = static_cast<int>(block.threads < units ? block.threads : units);
  std::vector<std::unique_ptr<Tower>> towers(threads);
  std::vector<std::exception_ptr> failures(threads);
  auto work = [&](int t) {
    try {
      const int64_t first = units * t / threads * kGeneUnit, last = units * (t + 1) / threads * kGeneUnit;
      towers[t] = std::make_unique<Tower>(block, first, last < block.genes ? last : block.genes);
      towers[t]->run();
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
  block.loss = 0;
  if (block.objective == kPredict) return;
  for (const auto& tower : towers) tower->add_to(block);
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

// Bytes of the block, so that the caller can tell a mismatched library.
int64_t fused_block_size() { return sizeof(fused::Block); }
}
