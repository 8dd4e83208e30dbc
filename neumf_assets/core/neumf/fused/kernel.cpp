// Entry points of the fused tower: splits the genes of a block over threads and adds up their shares in order.
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "bfloat16.h"
#include "float32.h"
#include "gmf.h"
#include "gmf_epoch.h"

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

// Threads that wait for work between blocks, so that neither they nor their memory are made anew for each.
class Crew {
 public:
  // Runs work(0) here and work(1) .. work(n - 1) on the others; returns when all are done.
  void run(int n, const std::function<void(int)>& work) {
    std::unique_lock<std::mutex> turn(one_at_a_time);
    while (static_cast<int>(others.size()) < n - 1) {
      const int number = static_cast<int>(others.size()) + 1;
      others.emplace_back([this, number] { wait_for_work(number); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex);
      task = &work, wanted = n, left = n - 1, ++round;
    }
    begin.notify_all();
    work(0);
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, [this] { return left == 0; });
  }

  // The crew of this process: a forked one has no threads of its parent's.
  static Crew& here() {
    static std::mutex making;
    static Crew* crew = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(making);
    if (owner != getpid()) crew = new Crew, owner = getpid();
    return *crew;
  }

 private:
  std::mutex one_at_a_time, mutex;
  std::condition_variable begin, done;
  std::vector<std::thread> others;
  const std::function<void(int)>* task = nullptr;
  int wanted = 0, left = 0;
  int64_t round = 0;

  void wait_for_work(int number) {
    for (int64_t seen = 0;;) {
      const std::function<void(int)>* work = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex);
        begin.wait(lock, [&] { return round != seen; });
        seen = round;
        if (number < wanted) work = task;
      }
      if (work == nullptr) continue;
      (*work)(number);
      std::lock_guard<std::mutex> lock(mutex);
      if (--left == 0) done.notify_one();
    }
  }
};

void run(GmfBlock& block) {
  static thread_local Reused cell;
  const int64_t padded = round_up(block.size, kLanes), rows = round_up(block.cells, kTileCells);
  cell.zero(rows * padded);
  for (int64_t c = 0; c < block.cells; ++c)
    std::memcpy(cell + c * padded, block.cell + c * block.size, block.size * sizeof(float));
  const float* cells = cell;
  block.loss = 0;
  const int64_t units = (block.genes + kTileGenes - 1) / kTileGenes;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(block.threads, units)));
  std::vector<const Gmf*> parts(threads);
  std::vector<std::exception_ptr> failures(threads);
  auto work = [&](int t) {
    static thread_local Gmf part;
    try {
      const int64_t first = units * t / threads * kTileGenes;
      const int64_t last = std::min(block.genes, units * (t + 1) / threads * kTileGenes);
      part.set(block, cells, first, last, [&](int64_t g, float* row) {
        std::memcpy(row, block.gene + g * block.size, block.size * sizeof(float));
      });
      part.run();
      parts[t] = &part;
    } catch (...) {
      failures[t] = std::current_exception();
    }
  };
  if (threads == 1)
    work(0);
  else
    Crew::here().run(threads, work);
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  for (const Gmf* part : parts) part->add_to(block);
}

void run(GmfEpoch& epoch) {
  const int64_t units = (epoch.genes + kTileGenes - 1) / kTileGenes;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(epoch.threads, units)));
  std::vector<std::unique_ptr<EpochPart>> parts(threads);
  for (int t = 0; t < threads; ++t) {
    const int64_t first = units * t / threads * kTileGenes;
    const int64_t last = std::min(epoch.genes, units * (t + 1) / threads * kTileGenes);
    parts[t] = std::make_unique<EpochPart>(epoch, first, last);
  }
  Barrier barrier(threads);
  std::atomic<bool> failed{false};
  std::vector<std::exception_ptr> failures(threads);
  auto work = [&](int t) {
    for (int64_t step = 0; step < epoch.steps; ++step) {
      try {
        if (!failed) parts[t]->genes(step);
      } catch (...) {
        failures[t] = std::current_exception(), failed = true;
      }
      barrier.wait();
      try {
        if (t == 0 && !failed) parts[0]->cells(step, parts);
      } catch (...) {
        failures[t] = std::current_exception(), failed = true;
      }
      barrier.wait();
    }
  };
  if (threads == 1)
    work(0);
  else
    Crew::here().run(threads, work);
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  epoch.loss = 0;
  for (const auto& part : parts) epoch.loss += part->summed_loss();
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
    // a few rows are done before another thread would have begun
    const int threads = step->rows * step->columns < 1 << 15 ? 1 : step->threads;
    auto work = [&](int t) { fused::adam(*step, step->rows * t / threads, step->rows * (t + 1) / threads); };
    if (threads <= 1)
      work(0);
    else
      fused::Crew::here().run(threads, work);
    return 0;
  } catch (...) {
    return 1;
  }
}

// 0: done; 1: out of memory or threads, the tables are spoiled then.
int32_t fused_gmf_epoch(fused::GmfEpoch* epoch) {
  try {
    fused::run(*epoch);
    return 0;
  } catch (...) {
    return 1;
  }
}

int64_t fused_gmf_epoch_size() { return sizeof(fused::GmfEpoch); }
int64_t fused_gmf_size() { return sizeof(fused::GmfBlock); }
int64_t fused_adam_size() { return sizeof(fused::AdamStep); }

// Bytes of the block, so that the caller can tell a mismatched library.
int64_t fused_block_size() { return sizeof(fused::Block); }
}
