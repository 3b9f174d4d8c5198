"""Keeps the memory that a step frees for the next one."""

import ctypes

# of glibc's malloc.h; on other systems there is no mallopt, or other numbers do no harm
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST = 32 << 20  # bytes: blocks that the heap may hold, as many as glibc allows
AHEAD = 64 << 20  # bytes that the heap grows by
ALL = 2**31 - 1  # bytes, free at the heap's end, above which it shrinks


def keep_freed() -> bool:
    """Let this process keep what it frees; tells whether the system has such a switch.

    By default, glibc hands large blocks back when they are freed. Maps and gradients are such
    blocks, and each step begins by having the system find and clear their pages anew: on two CPU
    cores a fifth of the time of a training step. The most that the process holds stays the same.
    It is for a program to decide, so only commands call it, not the library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = (MMAP_THRESHOLD, LARGEST), (TOP_PAD, AHEAD), (TRIM_THRESHOLD, ALL)
    return all([mallopt(name, value) == 1 for name, value in options])
