"""Checks that a resumed run is the run that was interrupted, and its random numbers: settings, data, seeds."""

import json
import math
import os
import platform
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import accelerate
import safetensors
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

import fm_ext
from fm_ext.training.config import TrainerConfig

# Identity

# Settings that may differ when a run is resumed; all others decide on its weights.
_CHANGEABLE = {"steps", "log_every", "save_every", "keep", "output_dir", "resume"}
_ADVICE = {
    "batch_size": "Give it batches of the same size.",
    "rows": "Give it the same data.",
    "batches_per_epoch": "Give it the same data in batches of the same size.",
    "assignment": "Give its loader the same transport, from the state that was saved: transport.load_state_dict(...).",
}


def describe_run(
    config: TrainerConfig,
    accelerator: Accelerator,
    loader: DataLoader[Any],
    batches_per_epoch: int | None,
    optimised: dict[str, Tensor],
) -> dict[str, Any]:
    """What decides on the weights of a run, as it stands in `trainer.json`: every value is what JSON gives back.

    Args:
        config: settings.
        accelerator: gives processes, accumulation and precision.
        loader: not prepared; gives the batch size and the rows, where it knows them, and of `assigned_loader` what
            chooses the rows.
        batches_per_epoch: of a process, None where the loader does not know.
        optimised: the trained parameters by name, in the optimiser's order.
    """
    sampler = loader.batch_sampler
    described = {
        "config": asdict(config),
        "run": {
            "processes": accelerator.num_processes,
            "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
            "mixed_precision": accelerator.mixed_precision,
            "batch_size": loader.batch_size or getattr(sampler, "batch_size", None),
            "rows": _length(loader.dataset),
            "batches_per_epoch": batches_per_epoch,
            "assignment": getattr(loader.dataset, "assignment", None),
        },
        "optimised": {
            name: f"{tuple(p.shape)} {str(p.dtype).removeprefix('torch.')}"
            for name, p in optimised.items()
        },
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, accelerate, safetensors, fm_ext)},
        },
    }
    return json.loads(json.dumps(described, default=os.fspath))


def check_same_run(checkpoint: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuses to mix two runs.

    Args:
        checkpoint: for the error.
        old: its manifest.
        new: `describe_run` of the run that wants to go on from it.

    Raises:
        ValueError: naming the first setting or parameter that differs, and what to do.
    """
    start_anew = (
        "To start a new run from these weights, call fm_ext.training.load_weights on the model and choose another "
        "`output_dir`."
    )
    for name, now in (new["config"] | new["run"]).items():
        before = (old["config"] | old["run"]).get(name, now)
        if name in _CHANGEABLE or before == now:
            continue
        advice = _ADVICE.get(name, "Set it back.")
        if name == "processes":
            advice = f"Start it on {before} (accelerate launch --num_processes {before})."
        raise ValueError(
            f"`{name}` is {now}, but {checkpoint} was trained with {before}, and a resumed run must be the same run. "
            f"{advice} {start_anew}"
        )
    before, now = old.get("optimised", new["optimised"]), new["optimised"]
    if list(before.items()) != list(now.items()):
        differing = [n for n in (*before, *now) if before.get(n) != now.get(n)]
        what = (
            f"{differing[0]} is {now.get(differing[0], 'not among them')} and was "
            f"{before.get(differing[0], 'not among them')}"
            if differing
            else "they are in another order"
        )
        raise ValueError(
            f"`model` must be built like the network that was trained, with the same layers frozen; of its trained "
            f"parameters and those of {checkpoint}, {what}. {start_anew}"
        )
    if new["config"]["steps"] < old["step"]:
        raise ValueError(
            f"`steps` must be at least the {old['step']} steps that {checkpoint} has; got {new['config']['steps']}."
        )


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


# Data

Position = tuple[int, int]  # epoch, and batches of it that are behind

_SAMPLES, _SUMS = 4096, 8


def batches_per_epoch(loader: Any, processes: int) -> int | None:
    """The number of batches of a process in an epoch, or None where the loader does not know.

    Args:
        loader: prepared by the accelerator.
        processes: that share an epoch.

    Raises:
        ValueError: if it is 0.
    """
    count = _length(loader)
    if count == 0:
        raise ValueError(_no_batch(loader, processes))
    return count


def _no_batch(loader: Any, processes: int) -> str:
    """The message for an epoch without a batch, with what makes it empty."""
    rows, size = _length(loader.dataset), loader.total_batch_size // processes
    rule = "`loader` must yield at least one batch an epoch on each process; "
    if not rows:
        return f"{rule}got {'none' if rows is None else 'an empty data set'}."
    fix = f"batches of at most {rows // processes}" if rows >= processes else "more rows"
    return f"{rule}got {rows} rows in batches of {size} for {processes}. Fix: {fix}, or drop_last=False."


def batches_from(
    position: Position, loader: Any, seed: int, accelerator: Accelerator
) -> Generator[tuple[Position, Any], None, None]:
    """Yields each batch with the position after it, for ever; close it to leave.

    What an epoch holds, and in which order, is a function of `(seed, epoch)` alone, wherever the walk began.

    Args:
        position: where to begin.
        loader: prepared by the accelerator.
        seed: `TrainerConfig.seed`.
        accelerator: skips batches, and keeps track of the loader that is being read.

    Raises:
        ValueError: if an epoch is empty.
    """
    epoch, count = position
    while True:
        part: Any = accelerator.skip_first_batches(loader, count) if count else loader
        seed_epoch(part, seed, epoch, accelerator.device)
        try:
            for batch in part:
                count += 1
                yield (epoch + 1, 0) if part.end_of_dataloader else (epoch, count), batch
        except GeneratorExit:
            part.end()  # else accelerate goes on seeing a loader that was left half-way
            raise
        if count == 0:
            raise ValueError(_no_batch(loader, accelerator.num_processes))
        epoch, count = epoch + 1, 0


Fingerprint = list[Any]  # of each tensor in a batch: its shape, its mean, some sums of its numbers


def fingerprint(batch: Any) -> Fingerprint:
    """What a batch is known by: shapes, means, and 8 sums of its numbers around their mean under fixed random signs.

    Equal data have equal sums, and data that another decoder or processor has rounded otherwise have nearly equal ones;
    those of other data are far away. Up to 4,096 numbers of each tensor count; what is no tensor does not.
    """
    if isinstance(batch, Tensor):
        numbers = batch.detach().flatten()
        at = torch.linspace(0, max(len(numbers) - 1, 0), min(len(numbers), _SAMPLES)).long()
        numbers = numbers[at.to(numbers.device)].cpu()
        numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
        numbers = numbers.double().nan_to_num().flatten()
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (_SUMS, len(numbers)), generator=generator).double() * 2 - 1
        size = max(len(numbers), 1)
        mean = numbers.sum().item() / size
        return [[list(batch.shape), mean, (signs @ (numbers - mean) / size**0.5).tolist()]]
    if isinstance(batch, Mapping):
        return [entry for key in sorted(batch, key=str) for entry in fingerprint(batch[key])]
    if isinstance(batch, list | tuple):
        return [entry for part in batch for entry in fingerprint(part)]
    return []


def similar(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two batches hold the same data, up to rounding."""
    if [shape for shape, *_ in a] != [shape for shape, *_ in b]:
        return False
    for (_, mean_a, sums_a), (_, mean_b, sums_b) in zip(a, b, strict=True):
        distance = math.hypot(mean_a - mean_b, math.dist(sums_a, sums_b))
        spread = math.hypot(*sums_a) + math.hypot(*sums_b)
        if distance > 0.02 * spread + 1e-5 * (abs(mean_a) + abs(mean_b)):
            return False
    return True


def check_same_data(
    checkpoint: Path, old: list[Fingerprint], loader: Any, seed: int, accelerator: Accelerator
) -> None:
    """Compares the first batch of the first epoch, as it reaches the loss, with that of the interrupted run.

    Args:
        checkpoint: for the error.
        old: the fingerprints of that batch, by process.
        loader: prepared by the accelerator.
        seed: `TrainerConfig.seed`.
        accelerator: of all processes, which call this together.

    Raises:
        ValueError: on all processes, if one of them is given other data, and is given the same once more.
    """

    def first_batch() -> Fingerprint:
        with closing(batches_from((0, 0), loader, seed, accelerator)) as batches:
            return fingerprint(next(batches)[1])

    before, now = old[accelerator.process_index], first_batch()
    same = similar(before, now)
    if all(gather_object([same])):
        return
    repeated = similar(now, first_batch())  # else it has random numbers of its own
    if any(gather_object([not same and repeated])):
        raise ValueError(
            f"`loader` must yield the data that {checkpoint} was trained with, in the same order; its first batch is "
            "another one. Give it the same data set with the same transforms. To start a new run from these weights, "
            "call fm_ext.training.load_weights on the model and choose another `output_dir`."
        )


# Random numbers


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

    A loader may take its order from three places, and all are set: torch's default generators, the `generator` of a
    sampler, of the loader or of the data set, and their `set_epoch`. accelerate's own `set_epoch` does not reach
    through all of its wrappers. Samplers and loaders are each given a generator of their own: what a loader draws for
    its workers, which is more for a new iterator than for one that is reset, moves no order. Call it right before the
    loader is iterated.

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
        if isinstance(part, DataLoader) or (
            isinstance(part, Sampler) and hasattr(part, "generator")
        ):
            part.generator = torch.Generator().manual_seed(value)  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(generator, torch.Generator):
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
