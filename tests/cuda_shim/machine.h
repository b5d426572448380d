// The emulated GPU, as its lanes run (shim.cpp) and as they are watched (watcher.cpp).
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_shim.h"

namespace shim {

constexpr size_t kStack = 256 << 10;
enum class State { ready, barrier, warp, done };

struct Copy {
  void* to;
  const void* from;
  int size;
  int bytes;
};

struct Lane {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf here;
  void* fake_stack;  // ASan's
  bool started;
  bool waited;  // for the launch before
  State state = State::ready;
  int line;
  unsigned mask;
  unsigned warp_epoch;
  dim3 index;  // its threadIdx
  uint64_t values[kExchanged];
  std::vector<Copy> copies;  // not committed yet
  std::deque<std::vector<Copy>> on_their_way;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Shared {
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;
};

constexpr int kLanes = 1024;  // of a block, at most
struct Machine {
  std::mutex mutex;
  std::mt19937_64 random;
  std::vector<std::unique_ptr<Lane>> lanes;
  uint64_t seen[kLanes][32 * kExchanged];  // what a lane was given, a whole warp in the place of its first
  std::vector<int> ready;                  // the next one last
  int count = 0, current = -1;
  jmp_buf scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  const std::function<void()>* body = nullptr;
  const char* op = "";
  const Lane* watched = nullptr;  // the lane that runs, until something is reported
  std::string report, asserted;
  unsigned block = 0;
  size_t dynamic_bytes = 0;
  std::unordered_map<const void*, size_t> allowed;
  std::unordered_map<int, Shared> shared;
};

extern Machine the_machine;
inline Machine& machine() { return the_machine; }

inline Lane& current() { return *machine().lanes[machine().current]; }

template <class... Parts>
void tell(const Parts&... parts) {
  if (!machine().report.empty()) return;  // the first is the cause of the others
  std::ostringstream text;
  ((text << machine().op << ": block " << machine().block << ": ") << ... << parts);
  machine().report = text.str();
  machine().watched = nullptr;
}

}  // namespace shim
