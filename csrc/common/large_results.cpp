#include "large_results.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <mutex>

#include "export.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace solo_attn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(MADV_FREE)
namespace {

constexpr std::size_t kLeast = std::size_t{32} << 20, kMost = std::size_t{1} << 46;  // bytes of a piece
constexpr std::size_t kKept = std::size_t{1} << 30;                                  // of all kept ones
constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Piece {
  void* pages;
  std::size_t bytes;
};

// Of whole huge pages, which newer systems then align.
std::optional<Piece> mapped(std::size_t bytes) {
  const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* pages = ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return std::nullopt;
  return Piece{pages, whole};
}

void unmap(const Piece& piece) { (void)::munmap(piece.pages, piece.bytes); }

// Nobody waits for the lock: in a process that was forked while another thread held it, it is never free.
class Kept {
 public:
  // The smallest piece that is large enough, unless that is more than twice as large as it needs to be.
  std::optional<Piece> take(std::size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return std::nullopt;
    auto best = pieces_.end();
    for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
      const bool fits = bytes <= piece->bytes && piece->bytes / 2 <= bytes;
      if (fits && (best == pieces_.end() || piece->bytes < best->bytes)) best = piece;
    }
    if (best == pieces_.end()) return std::nullopt;
    const Piece found = *best;
    pieces_.erase(best);
    return found;
  }

  // Those that were kept for longest make room.
  void give(const Piece& piece) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || piece.bytes > kKept || ::madvise(piece.pages, piece.bytes, MADV_FREE) != 0) {
      return unmap(piece);
    }
    pieces_.push_back(piece);
    std::size_t all = 0;
    for (const Piece& one : pieces_) all += one.bytes;
    for (; all > kKept; pieces_.erase(pieces_.begin())) {
      all -= pieces_.front().bytes;
      unmap(pieces_.front());
    }
  }

  void release() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (const Piece& piece : pieces_) unmap(piece);
    pieces_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<Piece> pieces_;  // the oldest first
};

// It is never destroyed, since results may be freed while the process ends.
Kept& kept() {
  static Kept* const all = new Kept;
  return *all;
}

// Bytes of a tensor that gets a piece of its own, or 0.
std::size_t bytes_of_piece(const std::vector<int64_t>& sizes, std::size_t element) {
  double about = static_cast<double>(element);
  std::size_t bytes = element;
  for (const int64_t size : sizes) {
    about *= static_cast<double>(size);
    bytes *= static_cast<std::size_t>(size);
  }
  return about < kLeast || about > kMost ? 0 : bytes;
}

// A contiguous tensor in a piece; `done` is called with the piece when the tensor is freed.
Tensor tensor_of(const Piece& piece, const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                 void (*done)(const Piece&)) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (std::size_t d = sizes.size(); d-- > 0; step *= sizes[d]) strides[d] = step;
  return torch::stable::from_blob(piece.pages, sizes, strides, like.device(), dtype,
                                  [piece, done](void*) { done(piece); });
}

}  // namespace

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes) {
  const std::size_t bytes = bytes_of_piece(sizes, like.element_size());
  if (bytes > 0) {
    std::optional<Piece> piece = kept().take(bytes);
    if (!piece) piece = mapped(bytes);
    if (piece) {
      return tensor_of(*piece, like, sizes, like.scalar_type(),
                       [](const Piece& freed) { kept().give(freed); });
    }
  }
  return torch::stable::new_empty(like, sizes);
}

std::optional<Tensor> blank_masks(const Tensor& like, const std::vector<int64_t>& sizes) {
  const std::size_t bytes = bytes_of_piece(sizes, 1);
  const std::optional<Piece> piece = bytes > 0 ? mapped(bytes) : std::nullopt;
  if (!piece) return std::nullopt;
  return tensor_of(*piece, like, sizes, ScalarType::Bool, unmap);
}

#else

Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes);
}

std::optional<Tensor> blank_masks(const Tensor&, const std::vector<int64_t>&) { return std::nullopt; }

#endif

}  // namespace solo_attn

// Gives all memory that is kept back to the system.
SOLO_ATTN_EXPORT void solo_attn_release_memory() {
#if defined(MADV_FREE)
  solo_attn::kept().release();
#endif
}
