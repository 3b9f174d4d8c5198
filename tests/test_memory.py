"""What a step frees serves the next one."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
import torch
from train.memory import keep_freed

def step():
    blocks = [torch.zeros(4 << 20, dtype=torch.uint8).fill_(1) for _ in range(16)]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed()
for _ in range(3):
    step()
print(faults())
"""
PAGES = 16 * (4 << 20) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switches are glibc's")
def test_freed_blocks_serve_the_next_step_without_new_pages():
    assert _faults() < PAGES / 50
    # without the switches a sixteenth of the pages to all of them, which depends on the system


def _faults() -> int:
    line = [sys.executable, "-c", COUNT]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
