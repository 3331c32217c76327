"""Random numbers that depend on where the run is, not on how it got there."""

from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch.utils.data import DataLoader, Sampler


def derive_seed(*key: int | str) -> int:
    """A 64-bit seed: the BLAKE2b hash of the key, the same on every machine."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def seed_micro_step(
    seed: int, step: int, micro_step: int, process: int, device: torch.device
) -> None:
    """Seeds torch's default generators, the CPU's and the device's, for one evaluation of the loss.

    So noise, times, masks and dropout are the same in a resumed run as in an uninterrupted one,
    whatever else has drawn random numbers, and differ between processes. Nothing of it is saved or
    restored.

    Args:
        seed: `TrainerConfig.seed`.
        step: optimiser steps done before.
        micro_step: losses evaluated before in this optimiser step.
        process: index of the process.
        device: the process's device.
    """
    _seed_default(derive_seed("step", seed, step, micro_step, process), device)


def seed_epoch(loader: object, seed: int, epoch: int, device: torch.device) -> None:
    """Makes the order of an epoch a function of `(seed, epoch)`, equal on all processes.

    A loader may take its order from three places, and all are set: torch's default generators, the `generator` of the
    loader, of a sampler or of the data set, and their `set_epoch`. accelerate's own `set_epoch` does not reach through
    all of its wrappers. Call it right before the loader is iterated.

    Args:
        loader: a `DataLoader`, as accelerate prepared it.
        seed: `TrainerConfig.seed`.
        epoch: counted from 0.
        device: the process's device.
    """
    value = derive_seed("epoch", seed, epoch)
    _seed_default(value, device)
    for part in _parts(loader):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        generator = getattr(part, "generator", None)
        if isinstance(part, DataLoader | Sampler) and hasattr(part, "generator"):
            # One of its own: of a shared one torch draws a seed for workers that start, not for those that persist.
            device_of = torch.get_default_device() if generator is None else generator.device
            generator = torch.Generator(device_of)
            setattr(part, "generator", generator)  # noqa: B010  # a sampler's type does not name it
        if isinstance(generator, torch.Generator):
            generator.manual_seed(value)


def _seed_default(value: int, device: torch.device) -> None:
    # `torch.manual_seed` does the same a hundred times slower where CUDA is not initialised.
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def _parts(loader: object) -> Iterator[object]:
    """The loader and everything inside it that can decide on an order."""
    waiting, seen = [loader], set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        names = ("base_dataloader", "batch_sampler", "sampler", "dataset")
        waiting += [getattr(part, name, None) for name in names]
