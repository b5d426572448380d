#include "large_results.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
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
  bool warm;  // the system may not take it
};

void unmap(const Piece& piece) { (void)::munmap(piece.pages, piece.bytes); }

// Says whether the system knows how to take it.
bool cool(const Piece& piece) { return ::madvise(piece.pages, piece.bytes, MADV_FREE) == 0; }

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

std::size_t most_warm() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), size = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || size <= 0) return 0;
  return std::min(kWarm, static_cast<std::size_t>(pages) / 32 * static_cast<std::size_t>(size));
}

class Kept {
 public:
  Kept() : most_warm_(most_warm()) { pieces_.reserve(kPieces); }

  // The smallest piece that is large enough, unless that is more than twice as large as it needs to be; of
  // several the one that was given last.
  std::optional<Piece> take(std::size_t bytes) {
    std::optional<Piece> found;
    if (const auto lock = soon()) {
      auto best = pieces_.end();
      for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
        const bool fits = bytes <= piece->bytes && piece->bytes / 2 <= bytes;
        if (fits && (best == pieces_.end() || piece->bytes <= best->bytes)) best = piece;
      }
      if (best != pieces_.end()) {
        found = *best;
        pieces_.erase(best);
      }
    }
    if (!found || put_to_use(*found)) return found;
    unmap(*found);
    return std::nullopt;
  }

  void give(Piece piece) {
    if (piece.bytes > kKept) return unmap(piece);
    set_aside(piece);
    piece.warm = piece.bytes <= most_warm_;
    if (!piece.warm) return put_cooled(piece);
    const Pieces more = put(piece);
    for (std::size_t k = 0; k < more.count; ++k) put_cooled(more.all[k]);
  }

  void release() {
    Unmapped gone;
    if (const auto lock = soon()) {
      for (const Piece& piece : pieces_) gone.add(piece);
      pieces_.clear();
    }
  }

 private:
  static constexpr std::size_t kPieces = kKept / kLeast + 1;  // one more than are kept

  struct Pieces {  // without allocations, for destructors
    std::array<Piece, kPieces> all;
    std::size_t count = 0;

    void add(const Piece& piece) { all[count++] = piece; }
  };

  // Unmaps at the end of its scope, without the lock that is taken after it.
  struct Unmapped : Pieces {
    ~Unmapped() {
      for (std::size_t k = 0; k < count; ++k) unmap(all[k]);
    }
  };

  // Those that were given first make room: where too much is kept they go, and where too much is warm they
  // are returned. Only a warm piece makes that too much.
  Pieces put(const Piece& piece) {
    Unmapped gone;
    Pieces warm;
    const auto lock = soon();
    if (!lock) {
      gone.add(piece);
      return warm;
    }
    pieces_.insert(piece.warm ? pieces_.end() : first_warm(), piece);
    move_first(pieces_.begin(), kKept, gone);
    if (piece.warm) move_first(first_warm(), most_warm_, warm);
    return warm;
  }

  void put_cooled(Piece piece) {
    piece.warm = false;
    if (!cool(piece)) return unmap(piece);
    (void)put(piece);
  }

  std::vector<Piece>::iterator first_warm() {
    return std::find_if(pieces_.begin(), pieces_.end(), [](const Piece& piece) { return piece.warm; });
  }

  // So many of the pieces from `begin` on that the rest is no more than `most` bytes.
  void move_first(std::vector<Piece>::iterator begin, std::size_t most, Pieces& to) {
    std::size_t bytes = 0;
    for (auto piece = begin; piece != pieces_.end(); ++piece) bytes += piece->bytes;
    auto end = begin;
    for (; bytes > most; ++end) {
      bytes -= end->bytes;
      to.add(*end);
    }
    pieces_.erase(begin, end);
  }

  // Others hold the lock for microseconds. In a process that was forked meanwhile it is never free.
  std::unique_lock<std::mutex> soon() {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    for (int tries = 0; !lock && tries < 1000; ++tries) {
      std::this_thread::yield();
      (void)lock.try_lock();
    }
    return lock;
  }

  const std::size_t most_warm_;
  std::mutex mutex_;
  std::vector<Piece> pieces_;  // those that were given first come first; no warm one before one that is not
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
  return Piece{pages, whole, false};
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

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  const std::size_t element = dtype == ScalarType::Bool ? 1 : like.element_size();
  if (const std::size_t bytes = bytes_of_piece(sizes, element)) {
    std::optional<Piece> piece = kept().take(bytes);
    if (!piece) piece = mapped(bytes);
    if (piece) {
      std::vector<int64_t> strides(sizes.size());
      int64_t step = 1;
      for (std::size_t d = sizes.size(); d-- > 0; step *= sizes[d]) strides[d] = step;
      return torch::stable::from_blob(piece->pages, sizes, strides, like.device(), dtype,
                                      [freed = *piece](void*) { kept().give(freed); });
    }
  }
  return torch::stable::new_empty(like, sizes, dtype);
}

#else

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
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
