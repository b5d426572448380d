// Tables of an axis that calls share.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace solo_attn {

// A `Table(in, out)`. The last 64 of a kind that were used are kept for later calls: images of one size need
// the same ones again and again, and each thread finds in its own cache what it has read before. Made anew in
// each call, the tables of a tiny mask take a third of the time.
template <class Table>
class SharedTable {
 public:
  SharedTable(int64_t in, int64_t out) {
    Recent& recent = all();
    table_ = recent.find(in, out);
    if (table_) return;
    table_ = std::make_shared<const Table>(in, out);
    if (in <= kLongest && out <= std::min(kLongest, 64 * in)) recent.keep({in, out, table_});
  }
  auto view() const { return table_->view(); }

 private:
  static constexpr int64_t kLongest = 4096;  // so that a table has some hundred KB at most

  struct Entry {
    int64_t in = -1, out = -1;
    std::shared_ptr<const Table> table;
  };

  // Whoever does not get the lock at once makes a table of its own: it is never waited for, so that it does
  // not matter if a process was forked while another thread held it.
  class Recent {
   public:
    std::shared_ptr<const Table> find(int64_t in, int64_t out) {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      return lock && move_to_front(in, out) ? entries_.front().table : nullptr;
    }

    void keep(Entry entry) {  // which then holds what is no longer kept: that is freed without the lock
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (!lock || move_to_front(entry.in, entry.out)) return;
      std::swap(entries_.back(), entry);
      std::rotate(entries_.begin(), entries_.end() - 1, entries_.end());
    }

   private:
    bool move_to_front(int64_t in, int64_t out) {
      const auto found = std::find_if(entries_.begin(), entries_.end(), [in, out](const Entry& entry) {
        return entry.in == in && entry.out == out;
      });
      if (found == entries_.end()) return false;
      std::rotate(entries_.begin(), found, found + 1);
      return true;
    }

    std::mutex mutex_;
    std::array<Entry, 64> entries_;  // what was used last comes first
  };

  // Never destroyed: ops may run while the process ends.
  static Recent& all() {
    static Recent* const recent = new Recent;
    return *recent;
  }

  std::shared_ptr<const Table> table_;
};

}  // namespace solo_attn
