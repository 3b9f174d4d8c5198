"""Random numbers as a function of (seed, id, stream): the same whoever draws them, and when.

The mixer is SplitMix64, over whole arrays of ids and, for kernels, one state at a time.
"""

import numpy as np
from numba import njit

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)


def states(seed: int, ids: np.ndarray, stream: int) -> np.ndarray:
    """Give a generator state for each id, (n,) uint64; streams of one seed are independent."""
    with np.errstate(over="ignore"):
        root = _mix_array(np.array([seed], np.int64).view(np.uint64) + np.uint64(stream) * _STEP)
        return _mix_array(ids.astype(np.int64).view(np.uint64) * _STEP + root)


def uniform(seed: int, ids: np.ndarray, stream: int) -> np.ndarray:
    """Draw one number in [0, 1) for each id, (n,) float64."""
    return (states(seed, ids, stream) >> _S11) * 2.0**-53


@njit(cache=True, nogil=True)
def next_uniform(state: np.ndarray) -> float:
    """Draw the next number in [0, 1) from a state of shape (1,) uint64, and move it on."""
    state[0] += _STEP
    z = state[0]
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return ((z ^ (z >> _S31)) >> _S11) * 2.0**-53


def _mix_array(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = z + _STEP
        z = (z ^ (z >> _S30)) * _MIX_1
        z = (z ^ (z >> _S27)) * _MIX_2
        return z ^ (z >> _S31)
