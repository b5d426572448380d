#include "large_results.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <mutex>
#include <optional>
#include <thread>

#include "export.h"
#include "new_pages.h"

namespace solo_attn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(__linux__) && defined(MADV_FREE)
namespace {

constexpr std::size_t kLeast = std::size_t{32} << 20, kMost = std::size_t{1} << 46;  // bytes of a result
constexpr std::size_t kKept = std::size_t{1} << 30;                                  // of all kept pieces

struct Piece {  // whole huge pages
  void* pages;
  std::size_t bytes;
};

void unmap(const Piece& piece) { (void)::munmap(piece.pages, piece.bytes); }

// From now on the system may take it, but for pages that a child process still has. The next children do not
// get it: memory that two processes have is copied page by page where one of them writes. Says whether the
// system knows how to take it.
bool set_aside(const Piece& piece) {
  if (::madvise(piece.pages, piece.bytes, MADV_FREE) != 0) return false;
#if defined(MADV_WIPEONFORK)
  (void)::madvise(piece.pages, piece.bytes, MADV_WIPEONFORK);
#endif
  return true;
}

bool put_to_use(const Piece& piece) {
#if defined(MADV_WIPEONFORK)
  return ::madvise(piece.pages, piece.bytes, MADV_KEEPONFORK) == 0 || errno == EINVAL;  // before Linux 4.14
#else
  return true;
#endif
}

class Kept {
 public:
  Kept() { pieces_.reserve(kPieces); }

  // The smallest piece that is large enough, unless that is more than twice as large as it needs to be.
  std::optional<Piece> take(std::size_t bytes) {
    std::optional<Piece> found;
    if (const auto lock = soon()) {
      auto best = pieces_.end();
      for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
        const bool fits = bytes <= piece->bytes && piece->bytes / 2 <= bytes;
        if (fits && (best == pieces_.end() || piece->bytes < best->bytes)) best = piece;
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

  // Those that were kept for longest make room.
  void give(const Piece& piece) {
    if (piece.bytes > kKept || !set_aside(piece)) return unmap(piece);
    Unmapped gone;
    if (const auto lock = soon()) {
      pieces_.push_back(piece);
      std::size_t all = 0, count = 0;
      for (const Piece& one : pieces_) all += one.bytes;
      for (; all > kKept; ++count) {
        all -= pieces_[count].bytes;
        gone.add(pieces_[count]);
      }
      pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<std::ptrdiff_t>(count));
    } else {
      gone.add(piece);
    }
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

  // Unmaps at the end of its scope, without the lock that is taken after it; no allocation, for destructors.
  class Unmapped {
   public:
    void add(const Piece& piece) { pieces_[count_++] = piece; }
    ~Unmapped() {
      for (std::size_t k = 0; k < count_; ++k) unmap(pieces_[k]);
    }

   private:
    std::array<Piece, kPieces> pieces_;
    std::size_t count_ = 0;
  };

  // Others hold the lock for microseconds. In a process that was forked meanwhile it is never free.
  std::unique_lock<std::mutex> soon() {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    for (int tries = 0; !lock && tries < 1000; ++tries) {
      std::this_thread::yield();
      (void)lock.try_lock();
    }
    return lock;
  }

  std::mutex mutex_;
  std::vector<Piece> pieces_;  // the oldest first
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
  if (before > 0) unmap({all, before});
  unmap({pages + whole, kHugePage - before});
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

// `done` is called with the piece when the tensor is freed.
Tensor tensor_of(const Piece& piece, const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                 void (*done)(const Piece&)) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (std::size_t d = sizes.size(); d-- > 0; step *= sizes[d]) strides[d] = step;
  return torch::stable::from_blob(piece.pages, sizes, strides, like.device(), dtype,
                                  [piece, done](void*) { done(piece); });
}

}  // namespace

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  const std::size_t element = dtype == ScalarType::Bool ? 1 : like.element_size();
  if (const std::size_t bytes = bytes_of_piece(sizes, element)) {
    std::optional<Piece> piece = kept().take(bytes);
    if (!piece) piece = mapped(bytes);
    if (piece) return tensor_of(*piece, like, sizes, dtype, [](const Piece& freed) { kept().give(freed); });
  }
  return torch::stable::new_empty(like, sizes, dtype);
}

std::optional<Tensor> blank_masks(const Tensor& like, const std::vector<int64_t>& sizes) {
  const std::size_t bytes = bytes_of_piece(sizes, 1);
  const std::optional<Piece> piece = bytes > 0 ? mapped(bytes) : std::nullopt;
  if (!piece) return std::nullopt;
  return tensor_of(*piece, like, sizes, ScalarType::Bool, unmap);
}

#else

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

std::optional<Tensor> blank_masks(const Tensor&, const std::vector<int64_t>&) { return std::nullopt; }

#endif

}  // namespace solo_attn

// Gives all memory that is kept back to the system, unless another thread holds the lock for very long.
SOLO_ATTN_EXPORT void solo_attn_release_memory() {
#if defined(__linux__) && defined(MADV_FREE)
  solo_attn::kept().release();
#endif
}
