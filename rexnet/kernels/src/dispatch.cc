// The exported functions, which `ops.Custom` finds by name: they run the kernels of the best instruction set that both
// this processor and the build have, or of another that was chosen. An operator that fails returns 1, on which MindSpore
// raises.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "table.h"

namespace baseline { extern const Table table; }
#if defined(REX_X86_64)
namespace x86_64_v3 { extern const Table table; }
namespace x86_64_v4 { extern const Table table; }
#endif

namespace {

struct Choice {
  const char* name;
  const Table* table;
};

// Best first, of those that this processor has.
const std::vector<Choice>& choices() {
  static const std::vector<Choice> found = [] {
    std::vector<Choice> found;
#if defined(REX_X86_64)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back({"x86-64-v4", &x86_64_v4::table});
      found.push_back({"x86-64-v3", &x86_64_v3::table});
    }
#endif
    found.push_back({"baseline", &baseline::table});
    return found;
  }();
  return found;
}

std::atomic<const Choice*>& chosen() {
  static std::atomic<const Choice*> choice{[] {
    const char* const asked = std::getenv("REX_KERNELS");
    for (const Choice& one : choices())
      if (asked && !std::strcmp(asked, one.name)) return &one;
    return &choices().front();
  }()};
  return choice;
}

template <class Work>
int guard(const char* name, Work&& work) {
  try {
    return work(*chosen().load()->table);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rexnet kernels: %s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace

#define REX_VISIBLE extern "C" __attribute__((visibility("default")))
#define REX_EXPORT REX_VISIBLE int
#define REX_ARGUMENTS int count, void **params, int *, int64_t **shapes, const char **, void *, void *
#define REX_OPERATOR(name, call) \
  REX_EXPORT name(REX_ARGUMENTS) { \
    return guard(#name, [&](const Table& table) { return table.call; }); \
  }

#define REX_CALL Call{count, params, shapes}
REX_OPERATOR(first_train, bottleneck_forward(REX_CALL, true, 1, true))
REX_OPERATOR(first_eval, bottleneck_forward(REX_CALL, true, 1, false))
REX_OPERATOR(first_grad, bottleneck_backward(REX_CALL, true, 1))
// MindSpore keeps one gradient for each function's name: with and without gate are two, though the code is one.
REX_OPERATOR(plain1_train, bottleneck_forward(REX_CALL, false, 1, true))
REX_OPERATOR(gated1_train, bottleneck_forward(REX_CALL, false, 1, true))
REX_OPERATOR(plain1_eval, bottleneck_forward(REX_CALL, false, 1, false))
REX_OPERATOR(gated1_eval, bottleneck_forward(REX_CALL, false, 1, false))
REX_OPERATOR(plain1_grad, bottleneck_backward(REX_CALL, false, 1))
REX_OPERATOR(gated1_grad, bottleneck_backward(REX_CALL, false, 1))
REX_OPERATOR(plain2_train, bottleneck_forward(REX_CALL, false, 2, true))
REX_OPERATOR(gated2_train, bottleneck_forward(REX_CALL, false, 2, true))
REX_OPERATOR(plain2_eval, bottleneck_forward(REX_CALL, false, 2, false))
REX_OPERATOR(gated2_eval, bottleneck_forward(REX_CALL, false, 2, false))
REX_OPERATOR(plain2_grad, bottleneck_backward(REX_CALL, false, 2))
REX_OPERATOR(gated2_grad, bottleneck_backward(REX_CALL, false, 2))
REX_OPERATOR(head_train, head_forward(REX_CALL, true))
REX_OPERATOR(head_eval, head_forward(REX_CALL, false))
REX_OPERATOR(head_grad, head_backward(REX_CALL))
REX_OPERATOR(network_gradient, network_gradient(REX_CALL))

// The names of those that can be chosen, best first; null after the last one.
REX_VISIBLE const char* instruction_set(int i) {
  return i < static_cast<int>(choices().size()) ? choices()[i].name : nullptr;
}

REX_VISIBLE const char* chosen_instruction_set() { return chosen().load()->name; }

// For every operator that begins from now on.
REX_VISIBLE void choose_instruction_set(int i) { chosen() = &choices().at(i); }
