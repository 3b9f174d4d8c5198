import os
import subprocess
import sys

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


OUTLIVE = """
import os, signal
from train.processes import GRACE, outlive
outlive(0)
for _ in range(2):  # Slurm's do come twice
    os.kill(os.getpid(), signal.SIGTERM)
print("lives", 0 < signal.alarm(0) <= GRACE)
"""


def test_a_loader_worker_lives_on_for_a_while_however_often_it_is_told_to_end():
    line = [sys.executable, "-c", OUTLIVE]
    said = subprocess.run(line, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "lives True"
