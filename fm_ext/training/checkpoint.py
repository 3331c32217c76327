"""Checkpoints that are complete or not there."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

MANIFEST = "trainer.json"
_NAME = re.compile(r"step_(\d{8,})")
_PARTIAL = ".partial"


def latest_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint in a run's folder, or None.

    Args:
        output_dir: `TrainerConfig.output_dir`; it need not exist.
    """
    complete = _complete(Path(output_dir))
    return complete[-1] if complete else None


def write_checkpoint(
    path: Path,
    write: Callable[[Path], None],
    manifest: dict[str, Any],
    accelerator: Accelerator,
    keep: int,
) -> None:
    """Writes a checkpoint so that a kill at any moment leaves the ones before it as they were.

    All processes write into a hidden folder beside `path`. When every file is on the disk, the main process adds the
    manifest, which lists them with their sizes, and renames the folder: a single, atomic step. Only then does it delete
    old checkpoints, each after renaming it back to a hidden folder. What a kill leaves hidden is deleted by the next
    `find_checkpoint`.

    Args:
        path: `output_dir/step_00001000`, where all processes can write.
        write: fills the folder it is given; called on every process.
        manifest: goes into `trainer.json`.
        accelerator: synchronises the processes.
        keep: the number of newest checkpoints that stay.
    """
    partial = _hidden(path)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    write(partial)
    accelerator.wait_for_everyone()
    for file in partial.iterdir():  # on every machine, since each flushes what it has written
        _flush(file)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        text = json.dumps({**manifest, "files": sizes}, indent=2)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _flush(partial / MANIFEST)
        _flush(partial)
        if path.exists() and read_manifest(path) is None:
            shutil.rmtree(path)  # an incomplete folder that `find_checkpoint` has reported
        os.replace(partial, path)
        _flush(path.parent)
        for old in _complete(path.parent)[:-keep]:
            os.replace(old, _hidden(old))
            shutil.rmtree(_hidden(old))
    accelerator.wait_for_everyone()


def find_checkpoint(
    output_dir: Path, accelerator: Accelerator
) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint and its manifest, the same on all processes.

    Deletes what a killed save left behind, and warns of folders that have a checkpoint's name and are incomplete.

    Raises:
        ValueError: on a process that does not see the checkpoint that the main process sees.
    """
    found = None
    if accelerator.is_main_process and output_dir.is_dir():
        for folder in output_dir.iterdir():
            if folder.name.endswith(_PARTIAL) and _NAME.match(folder.name[1:]):
                shutil.rmtree(folder)
            elif _NAME.fullmatch(folder.name) and read_manifest(folder) is None:
                warnings.warn(f"ignored {folder}: it is not a complete checkpoint", stacklevel=2)
        path = latest_checkpoint(output_dir)
        manifest = path and read_manifest(path)
        found = (path, manifest) if path and manifest else None
    (found,) = broadcast_object_list([found])
    if found and not found[0].is_dir():
        raise ValueError(
            f"`output_dir` must be on a file system that all processes share; process {accelerator.process_index} does "
            f"not see {found[0]}."
        )
    return found


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """What `trainer.json` says, or None unless every file it lists is there in its full size."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        complete = all(
            (checkpoint / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def _complete(output_dir: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    if not output_dir.is_dir():
        return []
    named = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name)]
    named.sort(key=lambda path: int(path.name.removeprefix("step_")))
    return [path for path in named if read_manifest(path)]


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}{_PARTIAL}")


def _flush(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
