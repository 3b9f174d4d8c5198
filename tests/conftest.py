import os

import pytest
import torch

# Files of tests run side by side, and threads that wait for a busy processor take far longer.
# Numba counts as well: as soon as its threads start, torch has as many.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture
def one_by_one(monkeypatch):
    """Run each region of inference alone: on some processors, company changes the last digits."""
    monkeypatch.setattr("infer.detector.AT_ONCE", {"cpu": 1, "cuda": 1})
