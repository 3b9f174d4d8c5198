import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """What is this small takes 100 times as long when two threads wait for a busy processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
