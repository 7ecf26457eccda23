"""What a process does with memory: settings of glibc's allocator, and Python's search for garbage.

By default glibc maps every block above 32 MiB afresh from the system and returns it on `free`. The arrays of a long
scan are such blocks: each call then pays for a page fault per 4 KiB, 60-75 % of the time of a CPU kernel at 1024 steps.
"""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h>; the values are C ints.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 * 2**20))


def keep_freed_memory(one_arena: bool = False) -> bool:
    """Makes the allocator keep freed memory for the process. Call it once, before large arrays are made.

    Large blocks then come from the heap, which grows by 256 MiB at a time and never shrinks.

    Does nothing where the C library is not glibc, or where the user set `MALLOC_...` or `GLIBC_TUNABLES` in the
    environment (`MALLOC_ARENA_MAX=8`, say, keeps the system's defaults).

    Args:
        one_arena: the same for blocks above 64 MiB that threads other than the first one take. To be set before the
            first computation, as threads that have an arena keep it. Threads then wait for each other on small blocks:
            PPO with small networks loses 20-40 % of its speed; kernels over arrays that large run up to twice as fast.

    Returns:
        whether the allocator took the settings.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    settings = (*SETTINGS, (M_ARENA_MAX, 1)) if one_arena else SETTINGS
    return [libc.mallopt(parameter, value) for parameter, value in settings] == [1] * len(settings)


def give_back_freed_memory() -> None:
    """Returns to the system what the process has freed: hundreds of megabytes when XLA has compiled a program."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """Has Python not look for garbage in cycles, as it otherwise does after every 700 new objects.

    Imports and traces make a million objects that live on, and looking through them takes a tenth of their time.
    """
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()
