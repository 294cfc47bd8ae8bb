// For the tests of the emulator itself.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

namespace ocvtp::test {

// A child runs the faulty kernel, silently: it must end by abort.
inline void expect_abort(const char* fault, unsigned threads, std::size_t shared_bytes,
                         const std::function<void()>& kernel) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
    emulate(1, threads, shared_bytes, kernel);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "not caught: %s", fault);
}

}  // namespace ocvtp::test
