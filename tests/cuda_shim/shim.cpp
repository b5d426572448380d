// Plays kernels on the CPU: see cuda_shim.h.
//
// Reported, as an exception of the launch: a lane that a barrier or a warp's exchange waits for in vain; two
// barriers met at once; less shared memory allowed to a kernel than before; and what watcher.cpp finds.
#include <numeric>
#include <stdexcept>
#include <utility>

#include "machine.h"
#include "watcher.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

Machine the_machine;

namespace {

// The lane that runs stops here until it is resumed.
void to_scheduler() {
  Machine& m = machine();
  Lane& lane = current();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&lane.fake_stack, m.scheduler_stack, m.scheduler_size);
#endif
  if (_setjmp(lane.here) == 0) _longjmp(m.scheduler, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(lane.fake_stack, nullptr, nullptr);
#endif
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_stack, &machine().scheduler_size);
#endif
  for (;;) {  // a fiber for each lane of one block after another: to make one costs system calls
    (*machine().body)();
    current().state = State::done;
    to_scheduler();
  }
}

// Runs a lane until it waits or returns.
__attribute__((noinline)) void resume(int index) {
  Machine& m = machine();
  Lane& lane = *m.lanes[index];
  m.current = index;
  m.watched = &lane;
  threadIdx = lane.index;
  if (_setjmp(m.scheduler) == 0) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&m.scheduler_fake_stack, lane.stack.get(), kStack);
#endif
    if (lane.started) _longjmp(lane.here, 1);
    lane.started = true;
    setcontext(&lane.start);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.scheduler_fake_stack, nullptr, nullptr);
#endif
  m.current = -1;
  m.watched = nullptr;
}

__attribute__((noinline)) void start(Lane& lane) {
  if (lane.state != State::done) {  // new, or left where it stood when something was reported
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(lane.stack.get(), kStack);
#endif
    getcontext(&lane.start);
    lane.start.uc_stack.ss_sp = lane.stack.get();
    lane.start.uc_stack.ss_size = kStack;
    lane.start.uc_link = nullptr;
    makecontext(&lane.start, enter, 0);
    lane.started = false;
  }
  lane.waited = false;
  lane.state = State::ready;
  lane.line = 0;
  lane.warp_epoch = 0;
  lane.copies.clear();
  lane.on_their_way.clear();
}

void shuffle(std::vector<int>& order) { std::shuffle(order.begin(), order.end(), machine().random); }

const char* name(State state) {
  switch (state) {
    case State::barrier:
      return "waits at the __syncthreads of line ";
    case State::warp:
      return "waits for its warp at line ";
    case State::done:
      return "has returned, last seen at line ";
    default:
      return "is ready after line ";
  }
}

// Nobody can go on: all wait at one barrier, or something is wrong.
bool open_barrier() {
  Machine& m = machine();
  const Lane& first = *m.lanes[0];
  for (int k = 0; k < m.count; ++k) {
    const Lane& lane = *m.lanes[k];
    if (lane.state != State::barrier || lane.line != first.line) {
      int other = k;
      for (int j = 0; j < m.count; ++j) {
        if (m.lanes[j]->state != lane.state || m.lanes[j]->line != lane.line) other = j;
      }
      tell("lanes wait for each other: lane ", k, " ", name(lane.state), lane.line, ", lane ", other, " ",
           name(m.lanes[other]->state), m.lanes[other]->line);
      return false;
    }
  }
  watch_barrier();
  for (int k = 0; k < m.count; ++k) {
    m.lanes[k]->state = State::ready;
    m.ready.push_back(k);
  }
  shuffle(m.ready);
  return true;
}

void run_block() {
  Machine& m = machine();
  m.shared.clear();
  watch_block();
  m.ready.resize(m.count);
  std::iota(m.ready.begin(), m.ready.end(), 0);
  shuffle(m.ready);
  for (int k = 0; k < m.count; ++k) start(*m.lanes[k]);
  for (int done = 0; done < m.count && m.report.empty();) {
    if (m.ready.empty()) {
      if (!open_barrier()) return;
      continue;
    }
    const int next = m.ready.back();
    m.ready.pop_back();
    resume(next);
    if (m.lanes[next]->state == State::done) ++done;
  }
}

}  // namespace

int allow(const void* kernel, size_t bytes) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> one_at_a_time(m.mutex);
  if (bytes < m.allowed[kernel]) {
    throw std::runtime_error(
        "a kernel was allowed less shared memory than before, which another thread may need");
  }
  m.allowed[kernel] = bytes;
  return 0;
}

void run(const char* op, const void* kernel, dim3 grid, dim3 block, size_t shared, bool early,
         const std::function<void()>& body) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> one_at_a_time(m.mutex);
  if (shared > m.allowed[kernel])
    throw std::runtime_error(std::string(op) + ": too little shared memory allowed");
  m.count = static_cast<int>(block.x * block.y * block.z);
  if (m.count % 32 != 0 || m.count == 0 || m.count > kLanes || shared > 227 << 10) {
    throw std::runtime_error(std::string(op) + ": no block of whole warps, or too much shared memory");
  }
  while (static_cast<int>(m.lanes.size()) < m.count) m.lanes.push_back(std::make_unique<Lane>());
  m.op = op;
  m.body = &body;
  m.report.clear();
  m.dynamic_bytes = shared;
  watch_launch(early);
  for (int k = 0; k < m.count; ++k) {
    const auto flat = static_cast<unsigned>(k);
    m.lanes[k]->index = dim3(flat % block.x, flat / block.x % block.y, flat / block.x / block.y);
  }
  blockDim = block;
  gridDim = grid;
  std::vector<int> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  shuffle(blocks);
  for (const int index : blocks) {
    const auto flat = static_cast<unsigned>(index);
    m.block = flat;
    blockIdx = dim3(flat % grid.x, flat / grid.x % grid.y, flat / grid.x / grid.y);
    run_block();
    if (!m.report.empty()) break;
  }
  m.shared.clear();
  if (!m.report.empty()) throw std::runtime_error(m.report);
}

// Bytes of 255, NaN as a float, until they are written.
void* shared_memory(int key, size_t bytes) {
  Shared& found = machine().shared[key];
  if (!found.memory) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes) != 0) throw std::bad_alloc();
    found.memory.reset(memory);
    std::memset(found.memory.get(), 255, bytes);
    found.bytes = bytes;
  }
  return found.memory.get();
}

void* dynamic_shared() { return shared_memory(-1, machine().dynamic_bytes); }

void device_assert(bool good, const char* text) {
  if (!good) machine().asserted = text;
}

void wait_for_previous() { current().waited = true; }

unsigned lane() { return static_cast<unsigned>(machine().current) % 32; }

void sync_block(int line) {
  current().line = line;
  current().state = State::barrier;
  to_scheduler();
}

// Lanes that are released find all values in one place: it is written again when all of them have come back.
// Where not all lanes take part it is one of each lane's own.
const uint64_t* sync_warp(unsigned mask, const uint64_t* values, int count, int line) {
  Machine& m = machine();
  Lane& mine = current();
  const int first = m.current / 32 * 32;
  mine.line = line;
  mine.mask = mask;
  std::copy(values, values + count, mine.values);
  mine.state = State::warp;
  if ((mask >> lane() & 1) == 0) tell("lane ", m.current, " is not in its own mask at line ", line);
  bool all = true;
  for (int k = 0; k < 32 && all; ++k) {
    const Lane& other = *m.lanes[first + k];
    all = (mask >> k & 1) == 0 || (other.state == State::warp && other.line == line && other.mask == mask);
  }
  const bool whole = mask == 0xffffffffu;
  if (all) {
    const auto show = [&](int to) {
      for (int k = 0; k < 32; ++k) {
        for (int j = 0; j < count; ++j) {
          m.seen[to][k * count + j] = mask >> k & 1 ? m.lanes[first + k]->values[j] : 0;
        }
      }
    };
    if (whole) show(first);
    const auto before = static_cast<std::ptrdiff_t>(m.ready.size());
    for (int k = 0; k < 32; ++k) {
      if ((mask >> k & 1) == 0) continue;
      Lane& other = *m.lanes[first + k];
      if (!whole) show(first + k);
      other.state = State::ready;
      ++other.warp_epoch;
      m.ready.push_back(first + k);
    }
    std::shuffle(m.ready.begin() + before, m.ready.end(), m.random);
  }
  to_scheduler();
  return m.seen[whole ? first : m.current];
}

void copy_async(void* shared, const void* global, int size, int bytes) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % size != 0) {
    tell("lane ", machine().current, " copies ", size, " bytes that are not aligned to as many");
  }
  current().copies.push_back({shared, global, size, bytes});
}

void copy_async_commit() {
  current().on_their_way.push_back(std::move(current().copies));
  current().copies.clear();
}

void copy_async_wait(int left) {
  auto& groups = current().on_their_way;
  for (; static_cast<int>(groups.size()) > left; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      note(copy.from, copy.bytes, false, false);
      note(copy.to, copy.size, true, false);
      std::memset(copy.to, 0, copy.size);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}

}  // namespace shim

extern "C" {

// For tests: the order of lanes and blocks from now on.
__attribute__((visibility("default"))) void solo_attn_shim_seed(uint64_t seed) {
  shim::machine().random.seed(seed);
}

// What a kernel asserted that was not so since the last question, if any: a GPU would have ended there.
__attribute__((visibility("default"))) const char* solo_attn_shim_asserted() {
  static std::string told;
  told = std::exchange(shim::machine().asserted, "");
  return told.c_str();
}
}
