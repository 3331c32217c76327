"""The moving average of the weights, from which samples are drawn."""

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    r"""An average of a module's parameters over the optimiser steps, with a warm-up for short runs.

    $$\bar\theta_0 = \theta_0, \qquad \bar\theta_n = d_n \bar\theta_{n-1} + (1 - d_n)\, \theta_n, \qquad
    d_n = \min\Big(d,\; \frac{1 + n}{10 + n}\Big)$$

    So the average reaches back over about the last tenth of the run, until it reaches back over $1 / (1 - d)$ steps.
    Trained parameters (they require gradients) are averaged; frozen ones, of any dtype, and buffers are copied. What
    shares memory in the module shares it in the average too, and memory that a trained parameter covers is averaged.
    The arithmetic is torch's `get_ema_multi_avg_fn`, a few kernels for the whole network; its `AveragedModel` is not
    used because it reads its counter from the device at every step.

    Args:
        module: the network, not wrapped for distributed training or autocast; it is copied. Activations that it keeps
            are copied without their history.
        decay: d, in (0, 1).

    Attributes:
        module: the averaged network, of the same class, in eval mode and without gradients.
        updates: n.

    Raises:
        ValueError: for a decay out of range, trained parameters in half precision, in which an average stands still,
            or a module that cannot be copied.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must lie in (0, 1); got {decay}.")
        _check_precision(module)
        self.module = _copy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Begins again at the weights, and on the device, of `module`."""
        copies = deepcopy([tensor.detach() for tensor in _tensors(module)])  # keeps shared memory
        for mine, copy in zip(_tensors(self.module), copies, strict=True):
            mine.data = copy
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes in the weights of `module` after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        used = Counter(tensor.untyped_storage().data_ptr() for tensor in _tensors(self.module))
        trained: list[tuple[Tensor, Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for mine, theirs in zip(_tensors(self.module), _tensors(module), strict=True):
            if not (isinstance(theirs, nn.Parameter) and theirs.requires_grad):
                copied.append((mine, theirs))
                continue
            if theirs.dtype.itemsize < 4:
                _check_precision(module)  # it has been frozen before
            # On a copy where memory is shared, so that nothing is averaged twice or overwritten.
            shared = used[mine.untyped_storage().data_ptr()] > 1
            trained.append((mine, mine.clone() if shared else mine, theirs))
        if trained:
            average = get_ema_multi_avg_fn(decay)
            average([new for _, new, _ in trained], [theirs for *_, theirs in trained], 1)
        for mine, theirs in copied:
            mine.copy_(theirs)
        for mine, new, _ in trained:
            if new is not mine:
                mine.copy_(new)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _check_precision(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        low = parameter.is_floating_point() and parameter.dtype.itemsize < 4
        if low and parameter.requires_grad:
            raise ValueError(
                f"`module` must hold float32 parameters to be averaged; `{name}` is {parameter.dtype}, which "
                "rounds small updates away. Call module.float() and let Accelerator(mixed_precision=...) cast, or "
                "freeze it by requires_grad_(False)."
            )


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy, in which tensors with a history (which torch does not copy) have lost it."""
    memo: dict[int, object] = {id(t): t.detach().clone() for t in _with_history(module)}
    try:
        return deepcopy(module, memo)
    except Exception as error:
        raise ValueError(
            f"`module` must be copyable by copy.deepcopy to be averaged; got {type(error).__name__}: {error}. Build "
            "what it cannot copy (locks, files, handles) where it is used, or train with ema_decay=None."
        ) from error


def _with_history(module: nn.Module) -> Iterator[Tensor]:
    """Tensors that came out of a computation: kept activations, the weight of `weight_norm`."""
    waiting: list[object] = [vars(part) for part in module.modules()]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif (
            hasattr(value, "__dict__")
            and not isinstance(value, type | nn.Module)
            and not callable(value)
        ):
            waiting.append(vars(value))
