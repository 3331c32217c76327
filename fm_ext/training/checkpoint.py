"""Checkpoints that are complete or not there, and the weights in them, which anybody can read."""

import json
import os
import re
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from fm_ext.utils.weights import load_tensors, read_tensors, stored

MANIFEST = "trainer.json"
MODEL = "model.safetensors"
EMA = "ema.safetensors"
_NAME = re.compile(r"step_(\d{8,})")
_PARTIAL = ".partial"


class CheckpointError(OSError):
    """Raised on all processes when a checkpoint cannot be written, or none of those there can be read."""


# Weights


def save_weights(model: nn.Module, file: Path) -> None:
    """Saves a network as safetensors, under plain names.

    Entries that are the same memory are saved once; the file's metadata name the others. Entries that share a part of
    their memory are each saved whole.
    """
    tensors, ties = stored(model)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt", **ties})


def check_serialisable(model: nn.Module) -> int:
    """Serialises the first number of each entry, as a trial of `save_weights`.

    Returns:
        The bytes that all of them take.

    Raises:
        ValueError: naming the first entry that safetensors does not take.
    """
    size = 0
    for name, value in model.state_dict().items():
        try:
            if nn.parameter.is_lazy(value):
                raise ValueError("it has no shape yet; run a batch through `model` first")
            if isinstance(value, Tensor) and value.layout == torch.strided:
                size += value.numel() * value.element_size()
                value = value.detach().flatten()[:1].clone()
            safetensors.torch.save({name: value})
        except Exception as error:
            raise ValueError(
                f"`model` must have a state that safetensors can save, which are dense tensors of real or complex64 "
                f"numbers on a device; `{name}` cannot be saved: {error}. Register a buffer that need not be saved "
                "with persistent=False, or leave it out of get_extra_state."
            ) from error
    return size


def load_weights(path: str | os.PathLike[str], model: nn.Module, *, ema: bool = True) -> None:
    """Loads the weights of a training run into a network, without a trainer.

    Names are compared without `_orig_mod` and `module`, the marks of `torch.compile` and of parallel wrappers, at any
    depth and on both sides.

    Args:
        path: a `.safetensors` file, a checkpoint, or a run's `output_dir`, for its newest checkpoint.
        model: a network like the trained one, compiled or not; it is changed in place, on its own device.
        ema: of a checkpoint, take the averaged weights, else those of the last step.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: if names or shapes differ, or the file is damaged; the model is then unchanged.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        name = EMA if ema else MODEL
        file = file if (file / MODEL).exists() else latest_checkpoint(file) or file
        file = file / name
    if not file.is_file():
        raise FileNotFoundError(
            f"`path` holds no weights: {file} does not exist. Give a .safetensors file, a checkpoint or the output_dir "
            "of a run; of a run without an average (ema_decay=None), load with ema=False."
        )
    written = _parse_manifest(file.parent).get("crc32", {})
    if written.get(file.name) not in (None, _checksum(file)):
        raise ValueError(
            f"`path` must hold the weights that were written; {file} was damaged since. Give an older checkpoint of "
            f"{file.parent.parent}."
        )
    read, ties = read_tensors(file)
    load_tensors(model, read, ties, file)


# Folders


def latest_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint in a run's folder, or None.

    Args:
        output_dir: `TrainerConfig.output_dir`; it need not exist.
    """
    complete = _complete(Path(output_dir).expanduser())
    return complete[-1] if complete else None


def prove_folder(folder: Path, needed: int, accelerator: Accelerator) -> None:
    """Finds out before training whether checkpoints can be written: by a small file, written and deleted.

    Args:
        folder: `output_dir`; it is made.
        needed: bytes of a checkpoint.
        accelerator: the main process writes; every process looks for the file, and all are told.

    Raises:
        ValueError: on all processes, if the folder cannot be written to, is too full, or is not shared by all.
    """
    (name,) = broadcast_object_list([f".{uuid.uuid4().hex}.probe"])
    probe = folder / name

    def write() -> None:
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")

    def look() -> None:
        if not probe.is_file():
            raise FileNotFoundError("it does not see what the main process writes there")

    try:
        for stage in (write, look):
            faults, cause = _attempt(stage, accelerator)
            if faults:
                raise ValueError(
                    f"`output_dir` must be a folder to write to, on a file system that all processes share; got "
                    f"{folder}: {faults}. Choose another one."
                ) from cause
    finally:
        if accelerator.is_main_process:
            with suppress(OSError):
                probe.unlink()
    (free,) = broadcast_object_list([_free_bytes(folder)])
    if free is not None and free < needed:
        raise ValueError(
            f"`output_dir` must have room for a checkpoint of {needed} bytes; {folder} has {free} bytes free. Make "
            "room, or choose another one."
        )


def write_checkpoint(
    path: Path,
    write: Callable[[Path], None],
    manifest: dict[str, Any],
    accelerator: Accelerator,
    keep: int,
) -> None:
    """Writes a checkpoint so that a kill at any moment leaves the ones before it as they were.

    All processes write into a hidden folder beside `path`. When every file is on the disk, the main process adds the
    manifest, which lists them with sizes and checksums, and renames the folder: a single, atomic step. Only then does
    it delete old checkpoints, each after renaming it back to a hidden folder. What a kill leaves hidden is deleted by
    the next `find_checkpoint`; what a failure leaves, here.

    Args:
        path: `output_dir/step_00001000`, where all processes can write.
        write: fills the folder it is given; called on every process.
        manifest: goes into `trainer.json`.
        accelerator: synchronises the processes.
        keep: the number of newest checkpoints that stay.

    Raises:
        CheckpointError: on all processes, if one of them fails.
    """
    partial, main = _hidden(path), accelerator.is_main_process

    def make_folder() -> None:
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def flush() -> None:  # on every machine, since each flushes what it has written
        for file in partial.iterdir():
            _flush(file)

    def publish() -> None:
        if not main:
            return
        files = sorted(partial.iterdir())
        described = manifest | {
            "files": {file.name: file.stat().st_size for file in files},
            "crc32": {file.name: _checksum(file) for file in files},
        }
        (partial / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        _flush(partial / MANIFEST)
        _flush(partial)
        if path.exists():
            if not _damage(path):
                raise FileExistsError("another run has written it; does one use the same folder?")
            shutil.rmtree(path)  # `find_checkpoint` has reported it
        os.replace(partial, path)
        _flush(path.parent)
        for old in _complete(path.parent)[:-keep]:
            os.replace(old, _hidden(old))
            shutil.rmtree(_hidden(old))

    for stage in (make_folder, lambda: write(partial), flush, publish):
        faults, cause = _attempt(stage, accelerator)
        if faults:
            free = _free_bytes(path.parent)
            good = next((p for p in _complete(path.parent)[::-1] if not _damage(p)), None)
            if main:
                shutil.rmtree(partial, ignore_errors=True)
            accelerator.wait_for_everyone()
            raise CheckpointError(
                f"{path} could not be saved: {faults}. {path.parent} had {free} bytes free; "
                f"{f'the last good checkpoint is {good}' if good else 'there is no checkpoint yet'}. What was half "
                "written is deleted. When the cause is mended, start the same command again, or call `fit` again in "
                "this process to go on from the present step."
            ) from cause


def find_checkpoint(
    output_dir: Path, accelerator: Accelerator
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is as it was written, and its manifest, the same on all processes.

    Deletes what a killed save left behind, and warns of folders that have a checkpoint's name and are incomplete or
    damaged.

    Raises:
        CheckpointError: on all processes, if there are checkpoints and all are damaged.
        ValueError: on a process that does not see the checkpoint that the main process sees.
    """
    found: list[tuple[Path, dict[str, Any]] | None] = [None]

    def search() -> None:
        if accelerator.is_main_process and output_dir.is_dir():
            found[0] = _newest_intact(output_dir)

    faults, cause = _attempt(search, accelerator)
    if faults:
        raise CheckpointError(
            f"`output_dir` must hold checkpoints that can be read; {faults}."
        ) from cause
    (newest,) = broadcast_object_list(found)
    if newest and not newest[0].is_dir():
        raise ValueError(
            f"`output_dir` must be on a file system that all processes share; process {accelerator.process_index} does "
            f"not see {newest[0]}."
        )
    return newest


def _newest_intact(output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    named: list[Path] = []
    for folder in output_dir.iterdir():
        if folder.name.endswith(_PARTIAL) and _NAME.match(folder.name[1:]):
            shutil.rmtree(folder, ignore_errors=True)
        elif _NAME.fullmatch(folder.name):
            named.append(folder)
    intact = None
    for folder in _by_step(named)[::-1]:
        if read_manifest(folder) and intact:
            continue  # it is not needed
        if damage := _damage(folder):
            warnings.warn(f"ignored {folder}: {damage}", stacklevel=2)
        else:
            intact = intact or folder
    if named and intact is None:
        raise CheckpointError(
            f"{', '.join(str(f) for f in named)} are all damaged. To start anew, delete them or choose another folder"
        )
    manifest = intact and read_manifest(intact)
    return (intact, manifest) if intact and manifest else None


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """What `trainer.json` says, or None unless every file it lists is there in its full size."""
    manifest = _parse_manifest(checkpoint)
    try:
        complete = all(
            (checkpoint / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def _parse_manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _damage(checkpoint: Path) -> str:
    """Why a folder is no checkpoint as it was written; empty if it is one."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return "it is not a complete checkpoint"
    sums = manifest.get("crc32", {})
    damaged = [name for name in sums if _checksum(checkpoint / name) != sums[name]]
    return f"it is damaged, {', '.join(damaged)} changed after it was written" if damaged else ""


def _complete(output_dir: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    if not output_dir.is_dir():
        return []
    named = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name)]
    return [path for path in _by_step(named) if read_manifest(path)]


def _by_step(folders: list[Path]) -> list[Path]:
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step_")))


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}{_PARTIAL}")


def _attempt(stage: Callable[[], None], accelerator: Accelerator) -> tuple[str, Exception | None]:
    """Does something on every process, and waits for all.

    Returns:
        What has failed, and where, the same on all processes (empty: nothing has); and this process's own error.
    """
    fault, cause = None, None
    try:
        stage()
    except Exception as error:
        fault, cause = f"{type(error).__name__}: {error}", error
    faults: list[str | None] = gather_object([fault])
    places = [f"process {rank}: " if len(faults) > 1 else "" for rank in range(len(faults))]
    return "; ".join(p + fault for p, fault in zip(places, faults, strict=True) if fault), cause


def _free_bytes(folder: Path) -> int | None:
    """Bytes free where a folder is or would be, or None where the file system does not tell."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else None


def _checksum(file: Path) -> int:
    value = 0
    with open(file, "rb") as opened:
        while block := opened.read(2**20):
            value = zlib.crc32(block, value)
    return value


def _flush(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
