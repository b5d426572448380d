// Errors in this library's one form, without the file and line that STD_TORCH_CHECK prepends.
#pragma once

#include <sstream>
#include <stdexcept>

namespace solo_attn {

template <class Error = std::runtime_error, class... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

// What Python sees as a ValueError.
template <class... Parts>
void check_value(bool good, const Parts&... parts) {
  check<std::invalid_argument>(good, parts...);
}

}  // namespace solo_attn
