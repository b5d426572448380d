// Reported: lanes that touch the same bytes with nothing between them that orders it, one of them writing (in
// shared memory and, between blocks too, in global memory); shared memory read before it was written; a
// kernel that began early and touches what the one before touches, and has not waited for it. What lanes
// touch is seen where the kernels are compiled with -fsanitize=thread: its calls come here instead of to its
// own library.
#include "watcher.h"

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "machine.h"

namespace shim {
namespace {

// What was done to a word or a byte, and when. An epoch is the time of one block between two barriers: none
// occurs twice, so it tells blocks and launches apart too.
struct Access {
  uint32_t epoch = 0;  // 0: nothing was done
  uint32_t warp_epoch : 20, lane : 10, atomic : 1, shared : 1;
};

// other_read: of another lane than read's, such that a write that races with any read so far races with one
// of these two. (An atomic update may hide a plain read by its own lane from later updates alone.)
struct Last {
  Access write, read, other_read;
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

struct Watcher {
  uint32_t epoch = 0;                                                   // now
  uint32_t block_epoch = 0, launch_epoch = 0, launch_before_epoch = 0;  // the first of each
  std::vector<std::pair<uint32_t, unsigned>> begun;  // of the launch's blocks: the first epoch, the block
  bool early = false;
  Pages pages, pages_before;  // of this launch and the one before
  std::vector<std::unique_ptr<Page>> spare;
  std::array<std::pair<uintptr_t, Page*>, 256> found;  // of `pages`, lately
};

Watcher the_watcher;
Watcher& watcher() { return the_watcher; }

// Whether nothing orders an earlier access before this one.
bool unordered(const Access& before, const Access& now) {
  const Watcher& w = watcher();
  if (before.epoch < w.launch_epoch) return false;
  if (before.epoch < w.block_epoch) return !now.shared;
  if (before.lane == now.lane || before.epoch != now.epoch) return false;
  return before.lane / 32 != now.lane / 32 || before.warp_epoch == now.warp_epoch;
}

// Whether nothing orders it before what any lane of this one's warp does from now on, until a barrier.
bool from_afar(const Access& before, const Access& now) {
  const bool same_warp = before.epoch == now.epoch && before.lane / 32 == now.lane / 32;
  return !same_warp && unordered(before, now);
}

Page& page_of(uintptr_t address) {
  Watcher& w = watcher();
  const uintptr_t number = address / kPage;
  auto& [found_number, found] = w.found[number % w.found.size()];
  if (found_number != number) {
    auto& page = w.pages[number];
    if (!page && w.spare.empty()) page = std::make_unique<Page>();
    if (!page) {  // what it holds is of launches long ago, which the epochs say
      page = std::move(w.spare.back());
      w.spare.pop_back();
      std::fill(std::begin(page->split), std::end(page->split), false);
    }
    found_number = number;
    found = page.get();
  }
  return *found;
}

// Whether the launch before wrote this byte, or read what is to be written now.
bool of_the_launch_before(uintptr_t address, bool write) {
  const Watcher& w = watcher();
  const auto found = w.pages_before.find(address / kPage);
  if (found == w.pages_before.end()) return false;
  const Page& page = *found->second;
  const size_t at = address % kPage;
  const Last& last = page.split[at / kWord] ? page.bytes[at] : page.words[at / kWord];
  const auto before = [&](const Access& access) {
    return access.epoch >= w.launch_before_epoch && access.epoch < w.launch_epoch && !access.shared;
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
  const auto& begun = watcher().begun;
  const auto after = std::upper_bound(begun.begin(), begun.end(), std::make_pair(epoch, ~0u));
  return (after - 1)->second;
}

// One access to a word or a byte, or what is wrong with it. Whether it is to go on.
bool touch(Last& last, const Access& now, bool write) {
  const Machine& m = machine();
  const bool writes = write || now.atomic;  // an atomic update reads and writes
  const Access* conflict = nullptr;
  if (unordered(last.write, now) && !(now.atomic && last.write.atomic)) conflict = &last.write;
  for (const Access* read : {&last.read, &last.other_read}) {
    const bool one_writes = writes || read->atomic;
    if (one_writes && !(now.atomic && read->atomic) && unordered(*read, now)) conflict = read;
  }
  if (conflict != nullptr) {
    tell("lane ", m.current, " ", writes ? "writes " : "reads ", now.shared ? "shared" : "global",
         " memory after line ", current().line, " that lane ", conflict->lane, " of block ",
         block_at(conflict->epoch), " touches too");
    return false;
  }
  if (now.shared && !write && last.write.epoch < watcher().block_epoch) {
    tell("lane ", m.current, " reads shared memory that nobody wrote, after line ", current().line);
    return false;
  }
  if (write) {
    last.write = now;
  } else {
    const bool other = last.read.lane != now.lane || last.read.epoch < watcher().block_epoch;
    if (other && !from_afar(last.other_read, now)) last.other_read = last.read;
    last.read = now;
  }
  return true;
}

}  // namespace

void watch_launch(bool early) {
  Watcher& w = watcher();
  w.early = early;
  for (auto& entry : w.pages_before) {
    if (w.spare.size() < kSpare) w.spare.push_back(std::move(entry.second));
  }
  w.pages_before = std::move(w.pages);
  w.pages.clear();
  w.found.fill({~uintptr_t(0), nullptr});
  w.launch_before_epoch = w.launch_epoch;
  w.launch_epoch = w.epoch + 1;
  w.begun.clear();
}

void watch_block() {
  Watcher& w = watcher();
  w.block_epoch = ++w.epoch;
  w.begun.emplace_back(w.epoch, machine().block);
}

void watch_barrier() { ++watcher().epoch; }

void note(const void* pointer, size_t bytes, bool write, bool atomic) {
#if defined(__SANITIZE_ADDRESS__)
  return;  // this build sees no plain access, without which those of atomics tell nothing
#endif
  const Machine& m = machine();
  const Watcher& w = watcher();
  if (m.watched == nullptr) return;
  const Lane& lane = *m.watched;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - reinterpret_cast<uintptr_t>(lane.stack.get()) < kStack) return;
  if (address - reinterpret_cast<uintptr_t>(m.seen) < sizeof(m.seen)) return;
  Access now;
  now.epoch = w.epoch;
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
    for (size_t j = 0; w.early && !now.shared && !lane.waited && j < step; ++j) {
      if (of_the_launch_before(address + k + j, write)) {
        return tell("lane ", m.current, " ", write ? "writes " : "reads ",
                    "memory of the launch before, for which it has not waited");
      }
    }
    if (!touch(whole ? page.words[word] : page.bytes[at], now, write)) return;
    k += step;
  }
}

void note_atomic(const void* address, size_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)  // where nothing else is noted, they would seem to read what nobody wrote
  note(address, bytes, false, true);
  note(address, bytes, true, true);
#endif
}

}  // namespace shim

extern "C" {

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
