// Plays kernels on the CPU: see cuda_shim.h.
//
// Reported, as an exception of the launch: a lane that a barrier or a warp's exchange waits for in vain; two
// barriers met at once; lanes that touch the same bytes with nothing between them that orders it, one of them
// writing (in shared memory and, between blocks too, in global memory); shared memory read before it was
// written; a kernel that began early and touches what the one before touches, and has not waited for it; less
// shared memory allowed to a kernel than before. What lanes touch is seen where the kernels are compiled with
// -fsanitize=thread: its calls come here instead of to its own library.
#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
namespace {

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

// What was done to a word or a byte, and when. An epoch is the time of one block between two barriers: none
// occurs twice, so it tells blocks and launches apart too.
struct Access {
  uint32_t epoch = 0;  // 0: nothing was done
  uint32_t warp_epoch : 20, lane : 10, atomic : 1, shared : 1;
};

struct Last {
  Access write, read, other_read;  // other_read: the last by another lane or block than read's
};

// The last accesses to 1 KB of memory: to its words, or to their bytes once one of these is accessed alone.
constexpr size_t kPage = 1024, kWord = 4;
constexpr size_t kSpare = 4096;  // that are kept from launch to launch: 120 MB at most
struct Page {
  bool split[kPage / kWord];
  Last words[kPage / kWord];
  std::unique_ptr<Last[]> bytes;
};
using Pages = std::unordered_map<uintptr_t, std::unique_ptr<Page>>;

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
  uint32_t epoch = 0;
  uint32_t block_epoch = 0, launch_epoch = 0, launch_before_epoch = 0;  // the first of each
  std::vector<std::pair<uint32_t, unsigned>> begun;  // of the launch's blocks: the first epoch, the block
  size_t dynamic_bytes = 0;
  bool early = false;
  std::unordered_map<const void*, size_t> allowed;
  std::unordered_map<int, Shared> shared;
  Pages pages, pages_before;  // of this launch and the one before
  std::vector<std::unique_ptr<Page>> spare;
  std::array<std::pair<uintptr_t, Page*>, 256> found;  // of `pages`, lately
};

Machine the_machine;
Machine& machine() { return the_machine; }

Lane& current() { return *machine().lanes[machine().current]; }

template <class... Parts>
void tell(const Parts&... parts) {
  if (!machine().report.empty()) return;  // the first is the cause of the others
  std::ostringstream text;
  ((text << machine().op << ": block " << machine().block << ": ") << ... << parts);
  machine().report = text.str();
  machine().watched = nullptr;
}

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
  ++m.epoch;
  for (int k = 0; k < m.count; ++k) {
    m.lanes[k]->state = State::ready;
    m.ready.push_back(k);
  }
  shuffle(m.ready);
  return true;
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

void run_block() {
  Machine& m = machine();
  m.shared.clear();
  m.block_epoch = ++m.epoch;
  m.begun.emplace_back(m.epoch, m.block);
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
  m.early = early;
  for (auto& entry : m.pages_before) {
    if (m.spare.size() < kSpare) m.spare.push_back(std::move(entry.second));
  }
  m.pages_before = std::move(m.pages);
  m.pages.clear();
  m.found.fill({~uintptr_t(0), nullptr});
  m.launch_before_epoch = m.launch_epoch;
  m.launch_epoch = m.epoch + 1;
  m.begun.clear();
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

namespace {

// Whether nothing orders an earlier access before this one.
bool unordered(const Access& before, const Access& now) {
  const Machine& m = machine();
  if (before.epoch < m.launch_epoch) return false;
  if (before.epoch < m.block_epoch) return !now.shared;
  if (before.lane == now.lane || before.epoch != now.epoch) return false;
  return before.lane / 32 != now.lane / 32 || before.warp_epoch == now.warp_epoch;
}

Page& page_of(uintptr_t address) {
  Machine& m = machine();
  const uintptr_t number = address / kPage;
  auto& [found_number, found] = m.found[number % m.found.size()];
  if (found_number != number) {
    auto& page = m.pages[number];
    if (!page && m.spare.empty()) page = std::make_unique<Page>();
    if (!page) {  // what it holds is of launches long ago, which the epochs say
      page = std::move(m.spare.back());
      m.spare.pop_back();
      std::fill(std::begin(page->split), std::end(page->split), false);
    }
    found_number = number;
    found = page.get();
  }
  return *found;
}

// Whether the launch before wrote this byte, or read what is to be written now.
bool of_the_launch_before(uintptr_t address, bool write) {
  const Machine& m = machine();
  const auto found = m.pages_before.find(address / kPage);
  if (found == m.pages_before.end()) return false;
  const Page& page = *found->second;
  const size_t at = address % kPage;
  const Last& last = page.split[at / kWord] ? page.bytes[at] : page.words[at / kWord];
  const auto before = [&](const Access& access) {
    return access.epoch >= m.launch_before_epoch && access.epoch < m.launch_epoch && !access.shared;
  };
  return before(last.write) || (write && before(last.read));
}

bool is_shared(uintptr_t address) {
  for (const auto& entry : machine().shared) {
    const auto begin = reinterpret_cast<uintptr_t>(entry.second.memory.get());
    if (address >= begin && address < begin + entry.second.bytes) return true;
  }
  return false;
}

// Of a conflict: the block whose time this was.
unsigned block_at(uint32_t epoch) {
  const auto& begun = machine().begun;
  const auto after = std::upper_bound(begun.begin(), begun.end(), std::make_pair(epoch, ~0u));
  return (after - 1)->second;
}

// One access to a word or a byte, or what is wrong with it. Whether it is to go on.
bool touch(Last& last, const Access& now, bool write) {
  const Machine& m = machine();
  const Access* conflict = nullptr;
  if (unordered(last.write, now) && !(now.atomic && last.write.atomic)) conflict = &last.write;
  if (write) {
    if (!(now.atomic && last.read.atomic) && unordered(last.read, now)) conflict = &last.read;
    if (!(now.atomic && last.other_read.atomic) && unordered(last.other_read, now)) {
      conflict = &last.other_read;
    }
  }
  if (conflict != nullptr) {
    tell("lane ", m.current, " ", write ? "writes " : "reads ", now.shared ? "shared" : "global",
         " memory after line ", current().line, " that lane ", conflict->lane, " of block ",
         block_at(conflict->epoch), " touches too");
    return false;
  }
  if (now.shared && !write && last.write.epoch < m.block_epoch) {
    tell("lane ", m.current, " reads shared memory that nobody wrote, after line ", current().line);
    return false;
  }
  if (write) {
    last.write = now;
  } else {
    if (last.read.lane != now.lane || last.read.epoch < m.block_epoch) last.other_read = last.read;
    last.read = now;
  }
  return true;
}

void note(const void* pointer, size_t bytes, bool write, bool atomic) {
#if defined(__SANITIZE_ADDRESS__)
  return;  // this build sees no plain access, without which those of atomics tell nothing
#endif
  const Machine& m = machine();
  if (m.watched == nullptr) return;
  const Lane& lane = *m.watched;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - reinterpret_cast<uintptr_t>(lane.stack.get()) < kStack) return;
  if (address - reinterpret_cast<uintptr_t>(m.seen) < sizeof(m.seen)) return;
  Access now;
  now.epoch = m.epoch;
  now.warp_epoch = lane.warp_epoch;
  now.lane = static_cast<unsigned>(m.current);
  now.atomic = atomic;
  now.shared = is_shared(address);
  for (size_t k = 0; k < bytes;) {
    Page& page = page_of(address + k);
    const size_t at = (address + k) % kPage, word = at / kWord;
    const bool whole = !page.split[word] && at % kWord == 0 && bytes - k >= kWord;
    if (!whole && !page.split[word]) {
      if (!page.bytes) page.bytes.reset(new Last[kPage]);
      std::fill_n(&page.bytes[word * kWord], kWord, page.words[word]);
      page.split[word] = true;
    }
    const size_t step = whole ? kWord : 1;
    for (size_t j = 0; m.early && !now.shared && !lane.waited && j < step; ++j) {
      if (of_the_launch_before(address + k + j, write)) {
        return tell("lane ", m.current, " ", write ? "writes " : "reads ",
                    "memory of the launch before, for which it has not waited");
      }
    }
    if (!touch(whole ? page.words[word] : page.bytes[at], now, write)) return;
    k += step;
  }
}

}  // namespace

void note_atomic(const void* address, size_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)  // where nothing else is noted, they would seem to read what nobody wrote
  note(address, bytes, false, true);
  note(address, bytes, true, true);
#endif
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

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { shim::note(p, n, false, false); }
void __tsan_write_range(void* p, size_t n) { shim::note(p, n, true, false); }

#define SHIM_ACCESS(bytes)                                                           \
  void __tsan_read##bytes(void* p) { shim::note(p, bytes, false, false); }           \
  void __tsan_write##bytes(void* p) { shim::note(p, bytes, true, false); }           \
  void __tsan_unaligned_read##bytes(void* p) { shim::note(p, bytes, false, false); } \
  void __tsan_unaligned_write##bytes(void* p) { shim::note(p, bytes, true, false); }
SHIM_ACCESS(1)
SHIM_ACCESS(2)
SHIM_ACCESS(4)
SHIM_ACCESS(8)
SHIM_ACCESS(16)

// Of the launch code: reference counts and the guards of static variables.
#define SHIM_ATOMIC(bits, T)                                                                         \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, 5); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, 5); }           \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, 5); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, 5); }
SHIM_ATOMIC(8, uint8_t)
SHIM_ATOMIC(32, uint32_t)
SHIM_ATOMIC(64, uint64_t)
}
