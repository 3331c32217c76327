"""A network's weights in a safetensors file, under plain names: written, read, and compared before they are loaded.

Needs the extra `train` or `hub`, for safetensors is imported when a file is written or read.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_MARKS = {"_orig_mod", "module"}  # the attributes in which wrappers hold the network


def bare(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile`'s wrapper, or that of a parallel one."""
    while mark := _mark(model):
        model = getattr(model, mark)
    return model


def plain_names(model: nn.Module) -> dict[str, str]:
    """The names in a network's state, and what they are without the wrappers inside it."""
    modules = model.named_modules(remove_duplicate=False)
    wrappers = [(name, mark) for name, part in modules if (mark := _mark(part))]
    wrappers.sort(key=lambda wrapper: -len(wrapper[0]))  # the innermost first
    plain: dict[str, str] = {}
    for name in model.state_dict():
        short = name
        for where, mark in wrappers:
            outside = f"{where}." if where else ""
            if short.startswith(f"{outside}{mark}."):
                short = outside + short.removeprefix(f"{outside}{mark}.")
        plain[name] = short
    return plain


def _mark(module: nn.Module) -> str | None:
    """The attribute that holds the network, if a module is a wrapper that leaves it as it is."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return "module"
    children = [name for name, _ in module.named_children()]
    return "_orig_mod" if children == ["_orig_mod"] else None


def stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is saved of a network: tensors by plain name, and for names left out the one with the same memory."""
    state, plain = model.state_dict(), plain_names(model)
    used = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    kept: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for whole, tensor in state.items():
        name = plain[whole]
        first = kept.setdefault(_memory(tensor) or name, name)
        if first != name:
            ties[name] = first
        elif used[tensor.untyped_storage().data_ptr()] > 1:
            tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        else:
            tensors[name] = tensor.detach().contiguous()
    return tensors, ties


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        ValueError: if it is no safetensors file, or is cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {
                name: opened.get_tensor(name) for name in opened.keys()
            }, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file; {file} is not: {error}.") from error


def load_tensors(
    model: nn.Module, read: dict[str, Tensor], ties: Mapping[str, str], file: Path
) -> None:
    """Loads tensors into a network, in place; names are compared without the marks of wrappers.

    Args:
        model: the network.
        read: tensors by name.
        ties: for names left out, the one with the same memory.
        file: where they come from, for the errors.

    Raises:
        ValueError: if names or shapes differ; the network is then unchanged.
    """
    read |= {name: read[kept] for name, kept in ties.items() if kept in read}
    state, mine = model.state_dict(), _unmarked(plain_names(model))
    theirs = _unmarked({name: name for name in read})
    same_memory: dict[Any, list[str]] = {}
    for name, whole in mine.items():
        same_memory.setdefault(_memory(state[whole]) or name, []).append(name)
    faults: list[str] = []
    for names in same_memory.values():
        known = [name for name in names if name in theirs]
        if not known:  # else what is missing is loaded under another name
            faults += [f"{name} is missing in the file" for name in names]
        for name in known:
            there, here = read[theirs[name]], state[mine[name]]
            if there.shape != getattr(here, "shape", None):
                shapes = tuple(there.shape), tuple(getattr(here, "shape", ()))
                faults.append(
                    f"{name} has shape {shapes[0]} in the file and {shapes[1]} in `model`"
                )
            elif name != known[0] and not torch.equal(there, read[theirs[known[0]]]):
                faults.append(f"{name} is {known[0]} in `model` and another tensor in the file")
    unknown = theirs.keys() - mine.keys()
    faults += [f"{name} is not in `model`" for name in unknown if theirs[name] not in ties]
    if faults:
        listed = "; ".join(sorted(faults)[:5]) + ("; ..." if len(faults) > 5 else "")
        raise ValueError(
            f"`model` must be built like the network that was trained; against {file}, {len(faults)} tensors differ: "
            f"{listed}."
        )
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError(
            "`model` must have memory to load into; it is on the meta device. Call model.to_empty first."
        )
    model.load_state_dict({mine[n]: read[theirs[n]] for n in mine.keys() & theirs}, strict=False)


def _memory(tensor: Any) -> tuple[Any, ...] | None:
    """Equal for tensors that are the same memory, read in the same way."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _unmarked(names: dict[str, str]) -> dict[str, str]:
    """Keys by their values without the marks of wrappers; by their values, where two would become one."""
    short = {".".join(p for p in v.split(".") if p not in _MARKS): k for k, v in names.items()}
    return short if len(short) == len(names) else {v: k for k, v in names.items()}
