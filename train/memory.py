"""Keeps the memory that a step frees for the next one."""

import ctypes

# of glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST = 32 << 20  # bytes: blocks that the heap may hold, as many as glibc allows
AHEAD = 64 << 20  # bytes that the heap grows by
ALL = 2**31 - 1  # bytes, free at the heap's end, above which it shrinks


def keep_freed() -> None:
    """Let this process keep what it frees, where the system has switches for that.

    By default, glibc hands large blocks back when they are freed. Maps and gradients are such
    blocks, and each step begins by having the system find and clear their pages anew.
    It is for a program to decide, so only commands call it, not the library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TOP_PAD, AHEAD)
        mallopt(TRIM_THRESHOLD, ALL)
