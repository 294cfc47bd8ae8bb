// Every CPU kernel on random shapes against plain loops in a wider type; meant for sanitizers too.
//   kernels_fuzz [count [seed [isa]]]
// Inputs of one shape in four hold NaN, infinities and huge numbers: those must only stay within
// their buffers and come out alike however the work is divided.
#include "fuzz.h"
#include "fuzz_maps.h"
#include "fuzz_rows.h"
#include "fuzz_selection.h"

using namespace ocvtp::test;

template <class T>
static void fuzz(Run& run) {
  fuzz_layer_norm<T>(run);
  fuzz_bias_gelu<T>(run);
  fuzz_mass<T>(run);
  fuzz_gru_gates<T>(run);
  fuzz_slot_softmax<T>(run);
  fuzz_slot_softmax_backward<T>(run);
  fuzz_slot_argmax<T>(run);
  fuzz_attention_received<T>(run);
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
    // A seed of its own, so that one shape can be run again alone.
    Random random(seed + static_cast<uint64_t>(shape));
    Run run{random, shape / 2 % 4 == 3};
    if (shape % 2)
      fuzz<double>(run);
    else
      fuzz<float>(run);
    fuzz_resolve(run);
    failures += run.failures;
    if (run.failures)
      std::fprintf(stderr, "shape %lld of seed %llu\n", static_cast<long long>(shape),
                   static_cast<unsigned long long>(seed));
  }
  std::printf("%s: %lld shapes, %lld failures\n", ocvtp::isa().name, static_cast<long long>(count),
              static_cast<long long>(failures));
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
