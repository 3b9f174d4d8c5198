import os
import subprocess
import sys

import pytest
import torch

from chipgen.errors import Refusal
from train.processes import joined

COUNT = """
import numba, torch
from train.nms import suppress
from train.processes import joined
with joined():
    suppress(torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]), torch.ones(1, 1, dtype=torch.bool), 0.5, 1)
    print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_kernels_and_torch_have_the_same_number_of_threads():
    for asked, given in (("1", "1 1"), ("2", "2 2")):
        environment = {**os.environ, "OMP_NUM_THREADS": asked, "NUMBA_NUM_THREADS": "2"}
        line = [sys.executable, "-c", COUNT]
        said = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == given


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(Refusal, match=r"process 2 .* torch sees 2"), joined():
        pass


OUTLIVE = """
import multiprocessing, os, signal, sys
from train.processes import GRACE, outlive
over = multiprocessing.Value("b", False, lock=False)
outlive(over, 0)
for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGALRM, signal.SIGALRM):
    os.kill(os.getpid(), number)  # Slurm's do come twice, and then time passes
    print("lives", 0 < signal.alarm(0) <= GRACE, flush=True)
if sys.argv[1] == "over":
    over.value = True
else:
    os.getppid = lambda: 1
os.kill(os.getpid(), getattr(signal, sys.argv[2]))
print("lives still", flush=True)
"""


@pytest.mark.parametrize("end", ["over", "orphaned"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGALRM"])
def test_a_loader_worker_that_is_told_to_end_does_so_only_with_its_run(end, number):
    line = [sys.executable, "-c", OUTLIVE, end, number]
    said = subprocess.run(line, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["lives True"] * 4
