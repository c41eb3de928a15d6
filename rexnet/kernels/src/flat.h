// Many arrays seen as one vector, one after the other, and loops over it on all threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "pool.h"

#define REX_EXPORT extern "C" __attribute__((visibility("default")))

namespace rex {

inline int64_t size_of(int rank, const int64_t* shape) {
  int64_t size = 1;
  for (int i = 0; i < rank; ++i) size *= shape[i];
  return size;
}

class Flat {
 public:
  Flat(int count, void** data, int* ranks, int64_t** shapes) : data_(data), starts_{0} {
    for (int i = 0; i < count; ++i) starts_.push_back(starts_.back() + size_of(ranks[i], shapes[i]));
  }

  // Calls work(values, at, count) for pieces that make up the vector: `values` is where its element `at` lies. Pieces
  // end where arrays do and at multiples of BLOCK, whatever the number of threads.
  template <class Work>
  void for_pieces(Work&& work) const {
    Operation operation;  // for the threads
    const int64_t length = starts_.back();
    parallel((length + BLOCK - 1) / BLOCK, [&](int64_t block) {
      const int64_t end = std::min(length, (block + 1) * BLOCK);
      int64_t at = block * BLOCK;
      size_t i = std::upper_bound(starts_.begin(), starts_.end(), at) - starts_.begin() - 1;
      for (; at < end; at = starts_[++i]) {
        const int64_t count = std::min(end, starts_[i + 1]) - at;
        if (count > 0) work(static_cast<float*>(data_[i]) + at - starts_[i], at, count);
      }
    });
  }

 private:
  static constexpr int64_t BLOCK = 1 << 15;  // 128 KiB of each vector
  void** data_;
  std::vector<int64_t> starts_;  // of each array, and the length of all
};

}  // namespace rex
