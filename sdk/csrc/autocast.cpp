// float16 autocast on CUDA. tch's own way calls functions that warn on every call.
#include <ATen/autocast_mode.h>

// Switches it, and says whether it was on. Each `true` is to be followed by one `false`, which drops the cached casts.
extern "C" bool lightbox_autocast(bool on) {
  bool before = at::autocast::is_autocast_enabled(at::kCUDA);
  at::autocast::set_autocast_enabled(at::kCUDA, on);
  if (on) {
    at::autocast::increment_nesting();
  } else if (at::autocast::decrement_nesting() == 0) {
    at::autocast::clear_cache();
  }
  return before;
}
