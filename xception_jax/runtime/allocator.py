"""Settings of the C library's allocator for training on CPU. Imports only the standard library."""

import ctypes

# From malloc.h and mman.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX, _MADV_HUGEPAGE = -1, -4, -8, 14
_HUGE_PAGE = 2**21


def keep_freed_memory(gib: float = 2.0) -> bool:
    """Makes glibc keep freed memory in the process, the first `gib` of it in huge pages.

    Otherwise each large temporary array of a step is mapped again, and page faults take up to a
    fifth of a training step on CPU. The process then never returns memory to the system. Call this
    before the first large allocation.

    Returns:
      False if there is no `mallopt`, that is on systems without glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    done = [
        libc.mallopt(_ARENA_MAX, 1),
        libc.mallopt(_MMAP_MAX, 0),
        libc.mallopt(_TRIM_THRESHOLD, -1),  # never
    ]
    size = int(gib * 2**30)
    start = libc.malloc(size)
    if start:
        first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(first, (start + size) // _HUGE_PAGE * _HUGE_PAGE - first, _MADV_HUGEPAGE)
        libc.free(start)
    return all(done)
