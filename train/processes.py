"""The processes of a run: torchrun's environment, devices, and what is said to all of them."""

import contextlib
import ctypes
import datetime
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import torch
import torch.distributed as dist

from chipgen.errors import Refusal

PATIENCE = datetime.timedelta(minutes=30)  # for what watch.py, which knows more, does not end
GRACE = 30  # s between two looks of a loader's worker, told to end, whether its run lives
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int
    world: int
    device: torch.device
    store: dist.Store | None = None  # in which several have met

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Say whether any process says so; all wait for each other."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Give the first process what an action gives; what is refused there is so for all."""
        result = refusal = None
        if self.rank == 0:
            try:
                result = action()
            except (Refusal, OSError) as error:
                refusal = error
        if self.any(refusal is not None):
            raise refusal or Refusal("the first process says why")
        return result

    def first(self, number: int) -> int:
        """Give all processes the number that the first one has."""
        told = torch.tensor(number, device=self.device)
        if self.world > 1:
            dist.broadcast(told, 0)
        return int(told.item())


def device_name(device: torch.device) -> str:
    """Name what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def agree_on_threads() -> None:
    """Let Numba's kernels have as many threads as torch.

    They share one pool: Numba's start would give torch a thread for each core, whatever
    OMP_NUM_THREADS (torchrun's 1) has said, and threads of several processes wait for each other.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # starts them
    torch.set_num_threads(threads)


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun has started, if it has."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local >= torch.cuda.device_count():
        raise Refusal(
            f"process {local} of this machine has no GPU of its own: torch sees "
            f"{torch.cuda.device_count()}; start as many processes as there are GPUs"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    agree_on_threads()
    if cuda:
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(0, 1, device)
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=dist.PrefixStore("group", store), rank=rank,
        world_size=world, timeout=PATIENCE,
    )  # fmt: skip
    try:
        yield Processes(rank, world, device, store)
    finally:
        dist.destroy_process_group()


class Stop:
    """Remembers a signal that asks the run to end; `with` listens, and then lets go."""

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.signal = number


def outlive(over: ctypes.c_byte, _worker: int) -> None:
    """Let a loader's worker live on while its run ends in order.

    A scheduler signals all processes, Slurm more than once, and a worker that dies takes the step
    that is under way with it. A worker that was told to end does so once its run has died or needs
    no more batches, which `over` (shared) says.
    """
    parent = os.getppid()

    def end_unless_needed(_number: int, _frame) -> None:
        if over.value or os.getppid() != parent:
            os._exit(0)
        signal.alarm(GRACE)  # the step and the checkpoint may take longer: look again

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, end_unless_needed)
    signal.signal(signal.SIGTERM, end_unless_needed)
