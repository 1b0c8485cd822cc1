"""Memory that a process keeps for its next tensors, instead of giving it back after each."""

import ctypes
import os
import sys

# Parameters of glibc's mallopt, by malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD = 64 * 2**20  # bytes that the heap grows by, at least
OURS = "LIT_FOUNDRY_KEEP_MEMORY"  # 0 leaves malloc as it is


def keep() -> bool:
    """Have glibc's malloc keep what is freed, and tell whether it does.

    Else it maps each tensor above 128 kB to 32 MB anew, and gives it back when it is freed: the
    system then clears its pages over and over, which took a tenth to a third of the time of a
    training step on a CPU. A process holds what it took until it ends, and may take more
    where sizes keep growing.

    Nothing is changed where the environment chooses another malloc, or tunes this one.

    Source: mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_")]
    chosen += os.environ.keys() & {"LD_PRELOAD", "GLIBC_TUNABLES"}
    if sys.platform != "linux" or chosen or os.environ.get(OURS) == "0":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _PAD}
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings.items())
