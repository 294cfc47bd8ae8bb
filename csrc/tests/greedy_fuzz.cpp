// Every greedy kernel on random shapes against the rule told in plain loops, as kernels_fuzz.
//   greedy_fuzz [count [seed [isa]]]
#include "fuzz_expansion.h"
#include "fuzz_greedy.h"

using namespace ocvtp::test;

template <class T>
static void fuzz(Run& run) {
  fuzz_farthest<T>(run);
  fuzz_pivot<T>(run);
  fuzz_dpp<T>(run);
  fuzz_facility<T>(run);
  fuzz_match<T>(run);
  fuzz_centrifugal<T>(run);
  fuzz_merge<T>(run);
  fuzz_variance<T>(run);
}

int main(int argc, char** argv) {
  const int64_t count = argc > 1 ? std::atoll(argv[1]) : 200;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  if (argc > 3 && !ocvtp::use_isa(argv[3])) {
    std::printf("%s: not on this CPU, nothing run\n", argv[3]);
    return 0;
  }
  int64_t failures = 0;
  for (int64_t shape = 0; shape < count && failures == 0; ++shape) {
    Random random(seed + static_cast<uint64_t>(shape));
    Run run{random, shape / 2 % 4 == 3};
    if (shape % 2)
      fuzz<double>(run);
    else
      fuzz<float>(run);
    failures += run.failures;
    if (run.failures)
      std::fprintf(stderr, "shape %lld of seed %llu\n", static_cast<long long>(shape),
                   static_cast<unsigned long long>(seed));
  }
  std::printf("%s: %lld shapes, %lld failures\n", ocvtp::isa().name, static_cast<long long>(count),
              static_cast<long long>(failures));
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
