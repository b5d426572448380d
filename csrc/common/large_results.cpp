#include "large_results.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "export.h"
#include "new_pages.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace solo_attn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(__linux__) && defined(MADV_FREE)
namespace {

constexpr std::size_t kLeast = std::size_t{4} << 20, kMost = std::size_t{1} << 46;  // bytes of a result
constexpr std::size_t kKept = std::size_t{1} << 30;                                 // of all kept pieces
constexpr std::size_t kWarm = std::size_t{512} << 20;  // of those that the system may not take

struct Piece {  // whole huge pages
  void* pages;
  std::size_t bytes;
};

void unmap(const Piece& piece) { (void)::munmap(piece.pages, piece.bytes); }

// The next children do not get it: memory that two processes have is copied page by page where one of them
// writes.
void set_aside(const Piece& piece) {
#if defined(MADV_WIPEONFORK)
  (void)::madvise(piece.pages, piece.bytes, MADV_WIPEONFORK);
#endif
}

bool put_to_use(const Piece& piece) {
#if defined(MADV_WIPEONFORK)
  return ::madvise(piece.pages, piece.bytes, MADV_KEEPONFORK) == 0 || errno == EINVAL;  // before Linux 4.14
#else
  return true;
#endif
}

// From now on the system may take it. Says whether it knows how to.
bool cool(const Piece& piece) { return ::madvise(piece.pages, piece.bytes, MADV_FREE) == 0; }

// Bytes of memory: the machine's, or in a container, which sees its own control group as the first, as many
// as that may have.
double memory() {
  double most = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    double limit = 0;  // the file may also say "max"
    if (std::ifstream(path) >> limit) most = std::min(most, limit);
  }
  return most;
}

class Kept {
 public:
  Kept() : most_warm_(static_cast<std::size_t>(std::clamp(memory() / 32, 0.0, double{kWarm}))) {
    warm_.reserve(kKept / kLeast);
    cool_.reserve(kKept / kLeast);
  }

  // The smallest warm piece that is large enough, or else the smallest of the others; none that is more than
  // twice as large as it needs to be.
  std::optional<Piece> take(std::size_t bytes) {
    std::optional<Piece> found;
    if (const auto lock = soon()) {
      found = take_from(warm_, bytes);
      if (!found) found = take_from(cool_, bytes);
    }
    if (!found || put_to_use(*found)) return found;
    unmap(*found);
    return std::nullopt;
  }

  // Those that were given first are cooled to make room, and those that were cooled first go.
  void give(const Piece& piece) {
    if (piece.bytes > kKept) return unmap(piece);
    set_aside(piece);
    if (piece.bytes > most_warm_) return give_cooled(piece);
    while (const auto old = first_warm_beyond(most_warm_ - piece.bytes)) give_cooled(*old);
    if (!add(piece, warm_)) give_cooled(piece);
  }

  void release() {
    lost_ = false;
    while (const auto piece = first_beyond(0)) unmap(*piece);
  }

 private:
  using Pieces = std::vector<Piece>;  // those that were added first come first

  static std::size_t bytes_of(const Pieces& pieces) {
    std::size_t bytes = 0;
    for (const Piece& piece : pieces) bytes += piece.bytes;
    return bytes;
  }

  static std::optional<Piece> take_from(Pieces& pieces, std::size_t bytes) {
    auto best = pieces.end();
    for (auto piece = pieces.begin(); piece != pieces.end(); ++piece) {
      const bool fits = bytes <= piece->bytes && piece->bytes / 2 <= bytes;
      if (fits && (best == pieces.end() || piece->bytes <= best->bytes)) best = piece;
    }
    if (best == pieces.end()) return std::nullopt;
    const Piece found = *best;
    pieces.erase(best);
    return found;
  }

  static std::optional<Piece> first_of(Pieces& pieces) {
    if (pieces.empty()) return std::nullopt;
    const Piece first = pieces.front();
    pieces.erase(pieces.begin());
    return first;
  }

  // Where more than `most` bytes are kept, one that is no longer kept. One at a time, since others may have
  // the lock while the system takes its time with each.
  std::optional<Piece> first_beyond(std::size_t most) {
    const auto lock = soon();
    if (!lock || bytes_of(warm_) + bytes_of(cool_) <= most) return std::nullopt;
    return first_of(cool_.empty() ? warm_ : cool_);
  }

  std::optional<Piece> first_warm_beyond(std::size_t most) {
    const auto lock = soon();
    return lock && bytes_of(warm_) > most ? first_of(warm_) : std::nullopt;
  }

  void give_cooled(const Piece& piece) {
    if (!cool(piece) || !add(piece, cool_)) unmap(piece);
  }

  // Unless others have just taken the room.
  bool add(const Piece& piece, Pieces& pieces) {
    while (const auto old = first_beyond(kKept - piece.bytes)) unmap(*old);
    const auto lock = soon();
    if (!lock || bytes_of(warm_) + bytes_of(cool_) + piece.bytes > kKept) return false;
    if (&pieces == &warm_ && bytes_of(warm_) + piece.bytes > most_warm_) return false;
    pieces.push_back(piece);
    return true;
  }

  // Others hold the lock for microseconds. In a process that was forked meanwhile it is never free, and after
  // the first time not waited for.
  std::unique_lock<std::mutex> soon() {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    for (int tries = 0; !lock && !lost_ && tries < 1000; ++tries) {
      std::this_thread::yield();
      (void)lock.try_lock();
    }
    lost_ = !lock;
    return lock;
  }

  const std::size_t most_warm_;
  std::mutex mutex_;
  std::atomic<bool> lost_{false};
  Pieces warm_, cool_;
};

// It is never destroyed, since results may be freed while the process ends.
Kept& kept() {
  static Kept* const all = new Kept;
  return *all;
}

// New pages, which are all 0.
std::optional<Piece> mapped(std::size_t bytes) {
  const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage, room = whole + kHugePage;
  const auto map = [room] {
    return ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  void* all = map();
  if (all == MAP_FAILED) {
    kept().release();  // which counts where a process may only have so much
    all = map();
  }
  if (all == MAP_FAILED) return std::nullopt;
  const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(all) % kHugePage) % kHugePage;
  char* pages = static_cast<char*>(all) + before;
  if (before > 0) (void)::munmap(all, before);
  (void)::munmap(pages + whole, kHugePage - before);
  return Piece{pages, whole};
}

// Bytes of a result that gets a piece of its own, or 0.
std::size_t bytes_of_piece(const std::vector<int64_t>& sizes, std::size_t element) {
  double about = static_cast<double>(element);
  std::size_t bytes = element;
  for (const int64_t size : sizes) {
    about *= static_cast<double>(size);
    bytes *= static_cast<std::size_t>(size);
  }
  return about < kLeast || about > kMost ? 0 : bytes;
}

}  // namespace

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype, bool* blank) {
  if (blank != nullptr) *blank = false;
  const std::size_t element = dtype == ScalarType::Bool ? 1 : like.element_size();
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (std::size_t d = sizes.size(); d-- > 0; step *= sizes[d]) strides[d] = step;
  if (const std::size_t bytes = bytes_of_piece(sizes, element)) {
    std::optional<Piece> piece = kept().take(bytes);
    const bool old = piece.has_value();
    if (!old) piece = mapped(bytes);
    if (piece) {
      if (blank != nullptr) *blank = !old;
      return torch::stable::from_blob(piece->pages, sizes, strides, like.device(), dtype,
                                      [freed = *piece](void*) { kept().give(freed); });
    }
  }
  return torch::stable::new_empty(like, sizes, dtype);
}

#else

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype, bool* blank) {
  if (blank != nullptr) *blank = false;
  return torch::stable::new_empty(like, sizes, dtype);
}

#endif

}  // namespace solo_attn

// Gives all memory that is kept back to the system, unless another thread holds the lock for very long.
SOLO_ATTN_EXPORT void solo_attn_release_memory() {
#if defined(__linux__) && defined(MADV_FREE)
  solo_attn::kept().release();
#endif
}
