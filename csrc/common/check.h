// Errors in the one form of this library, without the file and line that STD_TORCH_CHECK puts before them.
#pragma once

#include <sstream>
#include <stdexcept>

namespace solo_attn {

template <class... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace solo_attn
