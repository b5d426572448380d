// A function of the extension that Python calls through ctypes.
#pragma once

#if defined(_WIN32)
#define SOLO_ATTN_EXPORT extern "C" __declspec(dllexport)
#else
#define SOLO_ATTN_EXPORT extern "C" __attribute__((visibility("default")))
#endif
