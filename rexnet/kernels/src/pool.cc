#include "pool.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace rex {
namespace {

constexpr int SPINS = 20000;  // some 50 microseconds: the pause between two phases of an operator

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A round is one call of run(). `ticket_` holds the round's number (above) and how many items are still to be taken
// (below), so a thread that wakes late finds an item of the current round or none, and nobody waits for a thread that
// has taken no item; what is read after taking one cannot change before that one is done. On a busy machine that
// is what counts: the caller does all the work by itself until a helper gets a CPU.
class Pool {
 public:
  explicit Pool(int64_t helpers) {
    for (int64_t i = 0; i < helpers; i++) std::thread([this] { serve(); }).detach();
  }
  void run(int64_t count, const std::function<void(int64_t)>& work) {
    work_.store(&work, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ticket_.store((((ticket_.load() >> 32) + 1) << 32) + static_cast<uint64_t>(count), std::memory_order_release);
    }
    if (sleepers_.load()) wake_.notify_all();
    while (take_item()) {
    }
    for (int i = 0; done_.load(std::memory_order_acquire) != count; i++) i < SPINS ? relax() : (void)sched_yield();
  }

 private:
  static int64_t left(uint64_t ticket) { return static_cast<int64_t>(ticket & 0xffffffff); }

  bool take_item() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (left(ticket)) {
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
      (*work_.load(std::memory_order_relaxed))(count_.load(std::memory_order_relaxed) - left(ticket));
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }
  void serve() {
    for (int idle = 0;;) {
      if (take_item()) {
        idle = 0;
      } else if (idle++ < SPINS) {
        relax();
      } else {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return left(ticket_.load(std::memory_order_acquire)) > 0; });
        sleepers_.fetch_sub(1);
        idle = 0;
      }
    }
  }
  std::atomic<const std::function<void(int64_t)>*> work_{nullptr};
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> count_{0}, done_{0}, sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

struct Memory {
  float* data;
  int64_t floats;
};
std::mutex operation_mutex;
std::vector<Memory> memories;  // the last one is being handed out; if they are several, the next operation joins them
int64_t used = 0;              // of the last one
int64_t taken = 0, most = 0;   // of all of them, now and at most in any operation

Memory allocate(int64_t floats) {
  const size_t page = size_t{2} << 20;
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + page - 1) / page * page;
  void* data = std::aligned_alloc(page, bytes);
  if (!data) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {static_cast<float*>(data), static_cast<int64_t>(bytes / sizeof(float))};
}

void free_from(size_t first) {
  for (; memories.size() > first; memories.pop_back()) std::free(memories.back().data);
}

}  // namespace

int64_t num_threads() {
  static const int64_t count = [] {
    cpu_set_t mask;  // of the process's first thread: MindSpore may bind its own threads more narrowly
    if (sched_getaffinity(getpid(), sizeof(mask), &mask) != 0) return int64_t{1};
    return std::max<int64_t>(1, CPU_COUNT(&mask));
  }();
  return count;
}

void parallel(int64_t count, const std::function<void(int64_t)>& work) {
  if (num_threads() == 1 || count <= 1) {
    for (int64_t i = 0; i < count; i++) work(i);
    return;
  }
  static Pool* const pool = new Pool(num_threads() - 1);  // never destroyed: its threads end with the process
  pool->run(count, work);
}

Operation::Operation() {
  operation_mutex.lock();
  used = taken = 0;
  if (memories.size() == 1 && memories[0].floats >= most) return;
  free_from(0);
  if (most) memories = {allocate(most)};
}
Operation::~Operation() { operation_mutex.unlock(); }

float* Operation::take(int64_t floats) {
  floats = (floats + 15) / 16 * 16;
  if (memories.empty() || used + floats > memories.back().floats) {
    memories.push_back(allocate(floats));
    used = 0;
  }
  float* const data = memories.back().data + used;
  used += floats;
  taken += floats;
  most = std::max(most, taken);
  return data;
}

Scope::Scope(Operation&) : num_memories_(memories.size()), used_(used), taken_(taken) {}
Scope::~Scope() {
  free_from(num_memories_);
  used = used_, taken = taken_;
}

}  // namespace rex
