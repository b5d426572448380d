// Watches what lanes touch, and tells of what nothing orders: see watcher.cpp.
#pragma once

#include <cstddef>

namespace shim {

// What is noted from now on is another launch's, or another block's: that of the machine. `early`: as run has
// it.
void watch_launch(bool early);
void watch_block();
// All lanes of the block have come to a barrier, which orders what they touch.
void watch_barrier();

// The lane that runs touches these bytes now; of what is on its own stack nothing is kept.
void note(const void* pointer, size_t bytes, bool write, bool atomic);

}  // namespace shim
