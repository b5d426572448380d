// Tables of an axis that calls share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace solo_attn {

// A `Table(in, out)`. The last 64 of a kind are kept for later calls: images of one size need the same ones
// again and again, and each thread finds in its own cache what it has read before. Made anew in each call,
// the tables of a small mask take half of the time.
template <class Table>
class SharedTable {
 public:
  SharedTable(int64_t in, int64_t out) {
    Recent& recent = all();
    table_ = recent.find(in, out);
    if (table_) return;
    table_ = std::make_shared<const Table>(in, out);
    if (in <= kLongest && out <= kLongest) recent.keep({in, out, table_});
  }
  auto view() const { return table_->view(); }

 private:
  static constexpr int64_t kLongest = 4096;  // so that all of a kind are 3 MB (float32) at most

  struct Entry {
    int64_t in = -1, out = -1;
    std::shared_ptr<const Table> table;
  };

  // Whoever does not get the lock at once makes a table of its own: the lock is never waited for, not in a
  // process either that was forked while another thread held it.
  class Recent {
   public:
    std::shared_ptr<const Table> find(int64_t in, int64_t out) {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock) {
        for (const Entry& entry : entries_) {
          if (entry.in == in && entry.out == out) return entry.table;
        }
      }
      return nullptr;
    }

    void keep(Entry entry) {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock) std::swap(entries_[next_++ % entries_.size()], entry);
    }

   private:
    std::mutex mutex_;
    std::array<Entry, 64> entries_;
    std::size_t next_ = 0;
  };

  // Never destroyed: ops may run while the process ends.
  static Recent& all() {
    static Recent* const recent = new Recent;
    return *recent;
  }

  std::shared_ptr<const Table> table_;
};

}  // namespace solo_attn
