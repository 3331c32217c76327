"""Stopping at SIGTERM, by which cluster schedulers announce that they take the machine away."""

import os
import signal
import threading
from functools import partial
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

EXIT_STATUS = 128 + signal.SIGTERM
INTERVAL = 5


class Preemption:
    """Holds a SIGTERM back until all processes can act on it at the same optimiser step.

    A context manager: inside, a SIGTERM only sets a flag; at the end the previous handler is back, and a signal that
    came too late to be acted on is sent again. It does nothing outside the main thread, where Python forbids handlers.

    Args:
        accelerator: knows the other processes.
        enabled: False: SIGTERM keeps its usual effect.
    """

    def __init__(self, accelerator: Accelerator, *, enabled: bool):
        self._accelerator = accelerator
        self._enabled = enabled
        self._handling = enabled and threading.current_thread() is threading.main_thread()
        self._received = False

    def __enter__(self) -> "Preemption":
        if self._handling:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True

    def requested(self, step: int, *, last: bool) -> bool:
        """Whether a process has been told to stop; the answer is the same on all of them.

        A single process answers after every step. Several compare their flags every `INTERVAL` steps and after the
        last one, since comparing means waiting for the device.
        """
        if self._accelerator.num_processes == 1:
            return self._received
        if not self._enabled or (step % INTERVAL and not last):
            return False
        flag = torch.tensor(float(self._received), device=self._accelerator.device)
        return bool(self._accelerator.reduce(flag, "sum"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handling:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
            if self._received and kind is None:
                signal.raise_signal(signal.SIGTERM)


def shield_workers(loader: DataLoader[Any]) -> None:
    """Lets the loader's worker processes obey a SIGTERM of the main process only.

    Schedulers send it to every process of a job, and without its workers the main process could not finish its step.
    Python's own clean-up at exit relies on it, so it must not be ignored. Where the sender cannot be told (not Linux),
    nothing is changed.
    """
    if loader.num_workers and hasattr(signal, "sigwaitinfo"):
        loader = getattr(loader, "base_dataloader", loader)
        loader.worker_init_fn = partial(_obey_parent, loader.worker_init_fn)


def _obey_parent(worker_init_fn: Any, worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker)


def _exit_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
