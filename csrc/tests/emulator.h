// Runs a CUDA kernel on the CPU: the blocks of a grid in turn, each thread of a block as a fiber.
// Barriers and warp exchanges switch fibers. What hardware leaves undefined ends the program with
// a message: a barrier that a running thread misses, a shuffle that a named lane does not reach or
// that reads a lane which is not named, a write past the dynamic shared memory.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <type_traits>
#include <vector>

#include "emulator_types.h"

namespace ocvtp::emulator {

// Jumps switch fibers without asking the kernel for the signal mask, as contexts do: a fourth of
// the time. AddressSanitizer understands contexts only.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kJumps = false;
#else
constexpr bool kJumps = true;
#endif

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kCanaryBytes = 4096;

enum class State { ready, at_block_barrier, at_warp_barrier, left };

struct Fiber {
  ucontext_t context;
  jmp_buf resume;  // once `started`, where it continues
  bool started;
  State state;
  unsigned mask;
  const char* place;  // of the barrier it waits at, for the message and to tell barriers apart
  int line;
  std::uint64_t matrix_calls;  // a digest of WMMA's loads and stores, which all lanes make alike
  unsigned exchanges, x, y, z;
};

struct Warp {
  // Two buffers in turn: a lane can reach exchange i + 2 only when all have read exchange i.
  std::uint64_t values[2][kWarp];
};

using SharedLine = std::aligned_storage_t<128, 128>;  // aligned as OCVTP_SHARED is

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<SharedLine> shared;
  std::size_t shared_bytes = 0;
  unsigned char* stacks = nullptr;
  std::size_t stacks_held = 0;
  ucontext_t scheduler;
  jmp_buf scheduler_resume;
  unsigned current = 0;
  const std::function<void()>* body = nullptr;
};

inline Machine machine;
inline std::int64_t launches = 0;
inline uint3 thread_index, block_index;
inline dim3 block_extent, grid_extent;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  unsigned told = 0;
  for (std::size_t i = 0; i < machine.fibers.size() && told < 8; ++i) {
    const Fiber& fiber = machine.fibers[i];
    if (fiber.state == State::left && i != machine.current) continue;
    std::fprintf(stderr, "  block (%u,%u,%u) thread %zu: %s %s:%d\n", block_index.x, block_index.y,
                 block_index.z, i,
                 fiber.state == State::ready              ? "running, last barrier"
                 : fiber.state == State::at_block_barrier ? "at the block barrier"
                 : fiber.state == State::left             ? "has left, last barrier"
                                                          : "at the warp barrier",
                 fiber.place ? fiber.place : "none", fiber.line);
    ++told;
  }
  std::fflush(stderr);
  std::abort();
}

// From the scheduler to a fiber.
inline void enter(Fiber& fiber) {
  if (!kJumps) {
    swapcontext(&machine.scheduler, &fiber.context);
  } else if (!_setjmp(machine.scheduler_resume)) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }
}

// From the running fiber to the scheduler.
inline void yield() {
  Fiber& self = machine.fibers[machine.current];
  if (!kJumps)
    swapcontext(&self.context, &machine.scheduler);
  else if (!_setjmp(self.resume))
    _longjmp(machine.scheduler_resume, 1);
}

inline void compare_matrix_calls(std::size_t first, std::size_t last) {
  for (std::size_t i = first; i < last; ++i)
    if (machine.fibers[i].matrix_calls != machine.fibers[i / kWarp * kWarp].matrix_calls)
      fail("lanes of a warp differ in what matrices they have loaded or stored");
}

inline void release_block_barrier_if_complete() {
  const Fiber* first = nullptr;
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.state == State::left) continue;
    if (fiber.state != State::at_block_barrier) return;
    if (!first) first = &fiber;
    if (fiber.place != first->place || fiber.line != first->line)
      fail("threads of a block wait at different barriers");
  }
  for (Fiber& fiber : machine.fibers)
    if (fiber.state == State::at_block_barrier) fiber.state = State::ready;
}

inline void sync_block(const char* place, int line) {
  Fiber& self = machine.fibers[machine.current];
  self.state = State::at_block_barrier;
  self.place = place;
  self.line = line;
  yield();
}

inline void sync_warp(unsigned mask, const char* place, int line) {
  const unsigned first = machine.current / kWarp * kWarp;
  Fiber& self = machine.fibers[machine.current];
  if (!(mask >> (machine.current - first) & 1u)) fail("a lane is not in its own warp mask");
  self.state = State::at_warp_barrier;
  self.mask = mask;
  self.place = place;
  self.line = line;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    if (first + lane >= machine.fibers.size()) fail("a warp mask names a lane that is not there");
    const Fiber& other = machine.fibers[first + lane];
    if (other.state == State::left) fail("a warp mask names a lane that has left");
    if (other.state != State::at_warp_barrier) return yield();
    if (other.mask != mask || other.line != line) fail("lanes of a warp wait at different places");
  }
  if (mask == 0xffffffffu) compare_matrix_calls(first, first + kWarp);
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (mask >> lane & 1u) machine.fibers[first + lane].state = State::ready;
}

// Every lane gives a value and sees those of all lanes in the mask.
template <class T>
inline const std::uint64_t* exchange(unsigned mask, T value, const char* place, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move 64 bits at most");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  Fiber& self = machine.fibers[machine.current];
  std::uint64_t* buffer = machine.warps[machine.current / kWarp].values[self.exchanges++ & 1];
  buffer[machine.current % kWarp] = bits;
  sync_warp(mask, place, line);
  return buffer;
}

enum class Shuffle { index, exclusive_or, up, down };

template <class T>
inline T shuffle(Shuffle kind, const char* file, int line, unsigned mask, T value, int by,
                 int width = kWarp) {
  const std::uint64_t* values = exchange(mask, value, file, line);
  const int lane = static_cast<int>(machine.current % kWarp);
  const int segment = lane & ~(width - 1);
  int source = kind == Shuffle::index          ? segment | (by & (width - 1))
               : kind == Shuffle::exclusive_or ? lane ^ by
               : kind == Shuffle::up           ? lane - by
                                               : lane + by;
  if (source < segment || source >= segment + width) source = lane;
  if (!(mask >> source & 1u)) fail("a shuffle reads a lane that its mask does not name");
  T result;
  std::memcpy(&result, &values[source], sizeof result);
  return result;
}

inline unsigned ballot(const char* file, int line, unsigned mask, bool predicate) {
  const std::uint64_t* values = exchange(mask, static_cast<std::uint64_t>(predicate), file, line);
  unsigned set = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if ((mask >> lane & 1u) && values[lane]) set |= 1u << lane;
  return set;
}

inline void fiber_main() {
  (*machine.body)();
  machine.fibers[machine.current].state = State::left;
  yield();
}

inline void start_block(std::size_t threads) {
  machine.fibers.assign(threads, Fiber{});
  machine.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  if (machine.stacks_held < threads) {
    if (machine.stacks) munmap(machine.stacks, machine.stacks_held * kStackBytes);
    void* stacks = mmap(nullptr, threads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) fail("no memory for the stacks of a block");
    machine.stacks = static_cast<unsigned char*>(stacks);
    machine.stacks_held = threads;
  }
  // 0xFF bytes are NaN in every floating type: whatever is read before it is written shows.
  machine.shared.resize((machine.shared_bytes + kCanaryBytes) / sizeof(SharedLine));
  std::memset(machine.shared.data(), 0xFF, machine.shared.size() * sizeof(SharedLine));
  for (std::size_t i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = machine.stacks + i * kStackBytes;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &machine.scheduler;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.x = static_cast<unsigned>(i % block_extent.x);
    fiber.y = static_cast<unsigned>(i / block_extent.x % block_extent.y);
    fiber.z = static_cast<unsigned>(i / block_extent.x / block_extent.y);
  }
}

inline void run_block(std::size_t threads) {
  start_block(threads);
  // Every other round goes backwards, so that a missing barrier hides in neither order.
  for (bool backwards = false;; backwards = !backwards) {
    bool ran = false, running = false;
    for (std::size_t step = 0; step < threads; ++step) {
      const std::size_t i = backwards ? threads - 1 - step : step;
      Fiber& fiber = machine.fibers[i];
      if (fiber.state == State::ready) {
        machine.current = static_cast<unsigned>(i);
        thread_index = {fiber.x, fiber.y, fiber.z};
        enter(fiber);
        ran = true;
      }
      running = running || fiber.state != State::left;
    }
    if (!running) break;
    if (ran)
      release_block_barrier_if_complete();
    else
      fail("a barrier that not all live threads reach");
  }
  compare_matrix_calls(0, threads);
  const auto* const shared = reinterpret_cast<const unsigned char*>(machine.shared.data());
  for (std::size_t i = machine.shared_bytes; i < machine.shared.size() * sizeof(SharedLine); ++i)
    if (shared[i] != 0xFF) fail("a write past the end of the dynamic shared memory");
}

}  // namespace ocvtp::emulator

#define threadIdx ocvtp::emulator::thread_index
#define blockIdx ocvtp::emulator::block_index
#define blockDim ocvtp::emulator::block_extent
#define gridDim ocvtp::emulator::grid_extent

#define OCVTP_EMULATED_SHUFFLE(kind, ...) \
  ocvtp::emulator::shuffle(ocvtp::emulator::Shuffle::kind, __FILE__, __LINE__, __VA_ARGS__)
#define __syncthreads() ocvtp::emulator::sync_block(__FILE__, __LINE__)
#define __syncwarp() ocvtp::emulator::sync_warp(0xffffffffu, __FILE__, __LINE__)
#define __shfl_sync(...) OCVTP_EMULATED_SHUFFLE(index, __VA_ARGS__)
#define __shfl_xor_sync(...) OCVTP_EMULATED_SHUFFLE(exclusive_or, __VA_ARGS__)
#define __shfl_up_sync(...) OCVTP_EMULATED_SHUFFLE(up, __VA_ARGS__)
#define __shfl_down_sync(...) OCVTP_EMULATED_SHUFFLE(down, __VA_ARGS__)
#define __ballot_sync(mask, predicate) \
  ocvtp::emulator::ballot(__FILE__, __LINE__, mask, static_cast<bool>(predicate))
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0u)
#define __all_sync(mask, predicate) (__ballot_sync(mask, predicate) == (mask))

namespace ocvtp {

// kernel<<<grid, block, shared_bytes>>>: `body` calls the kernel with its arguments.
inline void emulate(dim3 grid, dim3 block, std::size_t shared_bytes,
                    const std::function<void()>& body) {
  ++emulator::launches;
  emulator::machine.body = &body;
  emulator::machine.shared_bytes = shared_bytes;
  emulator::grid_extent = grid;
  emulator::block_extent = block;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024) emulator::fail("a block has 1 to 1024 threads");
  if (shared_bytes > 227 * 1024) emulator::fail("no GPU has that much shared memory");
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        emulator::block_index = {x, y, z};
        emulator::run_block(threads);
      }
}

}  // namespace ocvtp
