// COCO's run-length encoding of a binary mask in column-major order, as runs, of which the first is of zeros,
// and as text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace solo_attn::paste_masks {

// Collects runs from the pixels at which the value changes, in ascending order.
class Runs {
 public:
  void flip(int64_t pixel) {
    counts_.push_back(pixel - last_);
    last_ = pixel;
    inside_ = !inside_;
  }
  void clear(int64_t pixel) {  // pixels are 0 from here on, until the next flip
    if (inside_) flip(pixel);
  }
  bool inside() const { return inside_; }

  // Appends the runs of the pixels from `begin` on, which were collected as if all pixels before were 0.
  void append(const Runs& next, int64_t begin) {
    const bool joined = inside_ && !next.counts_.empty() && next.counts_[0] == begin;
    if (!joined) clear(begin);
    int64_t pixel = joined ? begin : 0;
    for (size_t i = joined ? 1 : 0; i < next.counts_.size(); ++i) flip(pixel += next.counts_[i]);
  }

  // Ends the last run at `pixels`, and returns COCO's text: from the fourth count on its difference to the
  // count two before it; five bits per character, the low ones first; bit 5 is set if more characters follow,
  // and bit 4 of the last character is the sign.
  std::string finish(int64_t pixels) {
    counts_.push_back(pixels - last_);
    std::string text;
    for (size_t i = 0; i < counts_.size(); ++i) {
      int64_t rest = i > 2 ? counts_[i] - counts_[i - 2] : counts_[i];
      bool more = true;
      while (more) {
        const int64_t five = rest & 31;
        rest >>= 5;
        more = (five & 16) != 0 ? rest != -1 : rest != 0;
        text.push_back(static_cast<char>((more ? five | 32 : five) + 48));
      }
    }
    return text;
  }

 private:
  std::vector<int64_t> counts_;
  int64_t last_ = 0;
  bool inside_ = false;
};

}  // namespace solo_attn::paste_masks
