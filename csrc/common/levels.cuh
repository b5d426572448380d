// Several levels of cells in one launch: each level has cells, sizes and bands of its own, and its blocks
// follow those of the level before.
#pragma once

#include <optional>
#include <vector>

#include "walk.cuh"

namespace solo_attn {

constexpr int kMostLevels = 8;  // of a call

// What a kernel is told of each level, passed as `const __grid_constant__`: constant memory, of which a block
// reads its level's part. `begins` counts what is shared out, blocks or cells; a level may have none of them.
template <class Level>
class LevelTable {
 public:
  void add(const Level& level, int64_t share) {
    levels_[count_] = level;
    begins_[count_++] = static_cast<uint32_t>(total_);
    for (int k = count_; k < kMostLevels; ++k) begins_[k] = ~0u;
    total_ += share;
  }
  SOLO_ATTN_HOST_DEVICE int64_t total() const { return total_; }
  // Of a block: as many as the level that needs most.
  int threads() const {
    int most = kWarp;
    for (int k = 0; k < count_; ++k) most = std::max(most, levels_[k].plan.threads);
    return most;
  }
  // The level of number `index`, which is then counted from that level's first on.
  __device__ __forceinline__ const Level& of(uint32_t& index) const {
    int level = 0;
#pragma unroll
    for (int k = 1; k < kMostLevels; ++k) level += index >= begins_[k] ? 1 : 0;
    index -= begins_[level];
    return levels_[level];
  }

 private:
  int count_ = 0;
  uint32_t begins_[kMostLevels] = {};
  int64_t total_ = 0;
  Level levels_[kMostLevels] = {};
};

// Of a level, where its blocks' sums begin, and how many belong to each of its cells.
struct LevelParts {
  int64_t begin;
  int64_t each;
};

using OptionalTensors = std::vector<std::optional<Tensor>>;

// What an op on chosen cells of several levels is given, checked and contiguous.
class LevelInputs {
 public:
  LevelInputs(const char* op, const std::vector<Tensor>& coarse, const OptionalTensors& attention) {
    const auto count = static_cast<int64_t>(coarse.size());
    check(count > 0 && count <= kMostLevels, op, ": expected coarse_logits of 1 to ", kMostLevels,
          " levels, got ", count);
    for (size_t k = 0; k < coarse.size(); ++k) {
      levels_.emplace_back(op, coarse[k], attention[k]);
      check(coarse[k].scalar_type() == coarse[0].scalar_type() && same_device(coarse[k], coarse[0]), op,
            ": expected coarse_logits of one dtype and device, ", described(coarse[0]), ", got ",
            described(coarse[k]));
      cells_ += coarse[k].size(0);
    }
    check(cells_ < int64_t{1} << 31, op, ": expected fewer than 2^31 cells of all levels, got ", cells_);
  }
  size_t size() const { return levels_.size(); }
  const CellInputs& operator[](size_t level) const { return levels_[level]; }
  const Tensor& first() const { return levels_[0].coarse(); }
  ScalarType dtype() const { return first().scalar_type(); }
  int64_t cells() const { return cells_; }  // of all levels

 private:
  std::vector<CellInputs> levels_;
  int64_t cells_ = 0;
};

// Attention as an op of several levels takes it: a list of all levels' or an empty one, in which a tensor
// without elements says that the level has none.
inline OptionalTensors optional_levels(const char* op, const std::vector<Tensor>& coarse,
                                       const std::vector<Tensor>& attention) {
  check(attention.empty() || attention.size() == coarse.size(), op, ": expected attention of none or of ",
        coarse.size(), " levels as coarse_logits has, got ", attention.size());
  OptionalTensors found(coarse.size());
  for (size_t k = 0; k < attention.size(); ++k) {
    if (attention[k].numel() > 0) found[k] = attention[k];
  }
  return found;
}

}  // namespace solo_attn
