"""The settings of a training run, in one frozen dataclass."""

import math
import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    r"""The settings of a `Trainer`; those of the hardware are the `Accelerator`'s.

    The learning rate of the optimiser step $k = 0, \dots, \mathrm{steps} - 1$ is `lr` times

    $$\frac{k + 1}{\mathrm{warmup} + 1} \;\text{ for } k < \mathrm{warmup}, \quad\text{then}\quad
    1,\; 1 - p,\; \tfrac12 (1 + \cos \pi p) \;\text{ for constant, linear, cosine},
    \qquad p = \frac{k - \mathrm{warmup}}{\mathrm{steps} - \mathrm{warmup}}.$$

    Args:
        steps: optimiser steps, whatever the number of processes or of accumulated batches.
        lr: the peak learning rate of AdamW.
        betas: AdamW's decay rates of the gradient's mean and square.
        weight_decay: AdamW's; it spares biases and norms, that is parameters of fewer than two dimensions.
        warmup: optimiser steps over which the learning rate grows linearly to `lr`.
        decay: its course after the warm-up.
        grad_clip: the norm to which gradients are clipped; None: not at all.
        ema_decay: the decay of `ExponentialMovingAverage`, which has a warm-up of its own; None: no average.
        log_every: steps between two readings of the loss, each of which waits for the device.
        save_every: steps between two checkpoints; None: only at the end and at a SIGTERM.
        keep: the number of newest checkpoints kept.
        output_dir: where checkpoints go, on a file system that all processes share; None: no checkpoints.
        seed: determines noise, time, dropout and the order of the data; the model's initialisation is the caller's.
        resume: continue from the newest checkpoint in `output_dir`. False: insist on starting from step 0, which is an
            error where checkpoints exist.

    Raises:
        ValueError: for a value out of range.
        TypeError: for one of another type.
    """

    steps: int
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    decay: Literal["constant", "cosine", "linear"] = "cosine"
    grad_clip: float | None = 1.0
    ema_decay: float | None = 0.9999
    log_every: int = 50
    save_every: int | None = 1000
    keep: int = 3
    output_dir: str | os.PathLike[str] | None = None
    seed: int = 0
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "keep", "warmup", "seed"):
            value = getattr(self, name)
            if value is None and name == "save_every":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(
                    f"`{name}` must be an int; got {value!r}. Write int(...) around it."
                )
            if value < 1 and name not in ("warmup", "seed"):
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        for name in ("lr", "weight_decay", "grad_clip", "ema_decay"):
            value = getattr(self, name)
            if value is None and name in ("grad_clip", "ema_decay"):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(
                    f"`{name}` must be a float; got {value!r}. Write float(...) around it."
                )
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise TypeError(f"`betas` must be a pair of floats; got {self.betas!r}.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"`lr` must be positive and finite; got {self.lr}.")
        if not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` must lie in [0, 1); got {self.betas}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"`weight_decay` must be finite and not negative; got {self.weight_decay}."
            )
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(
                f"`warmup` must lie between 0 and `steps` = {self.steps}; got {self.warmup}."
            )
        if self.decay not in ("constant", "cosine", "linear"):
            raise ValueError(
                f"`decay` must be 'constant', 'cosine' or 'linear'; got {self.decay!r}."
            )
        if self.grad_clip is not None and not 0 < self.grad_clip < math.inf:
            raise ValueError(
                f"`grad_clip` must be positive and finite, or None for no clipping; got {self.grad_clip}."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"`ema_decay` must lie in (0, 1), or be None for no average; got {self.ema_decay}."
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"`seed` must not be negative, and be below 2**64; got {self.seed}.")

    def lr_factor(self, step: int) -> float:
        """The learning rate of optimiser step `step`, counted from 0, as a fraction of `lr`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1 - progress if self.decay == "linear" else 1.0
