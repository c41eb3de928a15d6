// Threads of the process's CPU set, started once; one operator at a time uses them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace rex {

// Number of CPUs in the affinity mask of the process when first asked.
int64_t num_threads();

// Calls work(item) for every item of 0 .. count - 1 on all threads and returns when all are done. Which thread takes
// which item is open, so an item must write nothing that another one writes: then the bits do not depend on it.
void parallel(int64_t count, const std::function<void(int64_t)>& work);

// Scratch memory that lives until the operator ends. One operator at a time holds it (and the threads).
class Operation {
 public:
  Operation();
  ~Operation();
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  float* take(int64_t floats);  // 64-byte aligned, not initialised
};

// What is taken while it lives is given back at its end.
class Scope {
 public:
  explicit Scope(Operation& operation);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  size_t num_memories_;
  int64_t used_, taken_;
};

}  // namespace rex
