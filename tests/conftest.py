import os

import pytest
import torch

# Files of tests run side by side, and threads that wait for a busy processor take far longer.
# Numba counts as well: as soon as its threads start, torch has as many.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
torch.set_num_threads(1)

LONGEST = ("test_training", "test_train_runs", "test_watch")  # half of the time of all


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that none of them is left for the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture
def one_by_one(monkeypatch):
    """Run each region of inference alone: on some processors, company changes the last digits."""
    monkeypatch.setattr("infer.detector.AT_ONCE", {"cpu": 1, "cuda": 1})
