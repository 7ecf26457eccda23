"""glibc's allocator, told to keep what is freed.

By default glibc maps every block above 32 MiB afresh from the system and returns it on `free`. The arrays of a long
scan are such blocks: each call then pays for a page fault per 4 KiB, 60-75 % of the time of a CPU kernel at 1024 steps.
"""

import ctypes
import os
import platform

# <malloc.h>; the values are C ints.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
# One arena: those of other threads are at most 64 MiB, and a larger block would still be mapped afresh.
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 * 2**20), (M_ARENA_MAX, 1))


def keep_freed_memory() -> bool:
    """Large blocks come from one heap, which grows by 256 MiB at a time and never shrinks: the process holds the most
    that it ever used. Call it once, before the first computation: threads that have a heap of their own keep it.

    Does nothing where the C library is not glibc, or where the user set `MALLOC_...` or `GLIBC_TUNABLES` in the
    environment (`MALLOC_ARENA_MAX=8`, say, keeps the system's defaults).

    Returns:
        whether the allocator took the settings.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    return [libc.mallopt(parameter, value) for parameter, value in SETTINGS] == [1] * len(SETTINGS)
