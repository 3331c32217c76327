"""The training loop."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fm_ext.training.accelerator import check_accelerator
from fm_ext.training.batches import Position, batches_from, batches_per_epoch
from fm_ext.training.checkpoint import find_checkpoint, write_checkpoint
from fm_ext.training.config import TrainerConfig
from fm_ext.training.ema import ExponentialMovingAverage
from fm_ext.training.identity import check_same_run, describe_run
from fm_ext.training.optimizer import make_optimizer
from fm_ext.training.preemption import EXIT_STATUS, Preemption, shield_workers
from fm_ext.training.randomness import seed_micro_step
from fm_ext.training.state import load_state, save_state
from fm_ext.training.weights import bare
from fm_ext.training.window import LossWindow


class Trainer:
    """Trains a network on one process or many; killed at any moment, it goes on as if nothing had happened.

    AdamW, warm-up and decay of the learning rate, clipping, and an average of the weights. Devices, processes, mixed
    precision and gradient accumulation are as the `Accelerator` was configured. Between two readings of the loss
    one process does not wait for its device; several do every 5 steps, to agree on a SIGTERM.

    Args:
        model: the network, not prepared; compiled or not. It is trained in place.
        loss: `loss(model, batch)` returns the mean loss of a batch as a 0-d tensor. It must call the model that it is
            given, and draw its random numbers from torch's default generators.
        loader: a torch `DataLoader`, not prepared. A batch is what it yields, moved to the device.
        config: the settings of the run.
        accelerator: used by this trainer alone.

    Attributes:
        model: the trained network, out of all wrappers.
        step: optimiser steps done.

    Raises:
        TypeError: if `loader` is not a `DataLoader`.
        ValueError: for an empty loader; for a model without trainable parameters or, if they are averaged, with
            half-precision ones; for an accelerator that is in use already, splits the model over processes, or names
            checkpoints itself.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        loader: DataLoader[Any],
        config: TrainerConfig,
        accelerator: Accelerator,
    ):
        check_accelerator(accelerator)
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"`loader` must be a torch DataLoader; got {type(loader).__name__}. A data set that yields whole "
                "batches becomes one by DataLoader(dataset, batch_size=None)."
            )
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("`model` must have parameters that require gradients; it has none.")
        self.model = bare(model)
        self.loss = loss
        self.config = config
        self.accelerator = accelerator
        self.step = 0
        self._position: Position = (0, 0)  # in the data, after the last optimiser step
        self._folder = None if config.output_dir is None else Path(config.output_dir)
        self._checkpoint: Path | None = None
        self._average: ExponentialMovingAverage | None = None
        if config.ema_decay is not None:
            self._average = ExponentialMovingAverage(self.model, config.ema_decay)
        optimizer = make_optimizer(self._parameters, config, accelerator.device)
        shield_workers(loader)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # accelerate's samplers remember it
            prepared: tuple[Any, ...] = accelerator.prepare(model, optimizer, loader)
        self._prepared, self._optimizer, self._loader = prepared
        self._run = describe_run(config, accelerator, batches_per_epoch(self._loader))
        if self._average:
            self._average.restart(self.model)  # which is the same on all processes only now

    @property
    def ema_model(self) -> nn.Module:
        """The averaged network, of the class of `model`: what to sample from.

        It is in eval mode, and free of accelerate's autocast: it computes in the precision of its weights.

        Raises:
            ValueError: if no average is kept.
        """
        if self._average is None:
            raise ValueError("`ema_model` needs an average, but `ema_decay` is None; use `model`.")
        return self._average.module

    def fit(self) -> None:
        """Trains up to `config.steps`; a run that has them already is only loaded.

        Raises:
            ValueError: if `output_dir` holds the checkpoints of another run, or of any run with `resume=False`; if the
                loss is not 0-d.
            NonFiniteLossError: when losses are read, which is before each checkpoint is written.
            SystemExit: with status 143, after a SIGTERM and a checkpoint, if there is an `output_dir`.
        """
        config, accelerator = self.config, self.accelerator
        if self.step == 0 and self._folder is not None:
            self._resume(self._folder)
        if self.step == config.steps:
            return
        self._start_trackers()
        schedule = LambdaLR(self._optimizer, config.lr_factor, last_epoch=self.step - 1)
        window = LossWindow(config.log_every, accelerator)
        self._prepared.train()
        self._prepared.zero_grad()
        accelerator.step = 0  # of gradient accumulation
        walk = batches_from(self._position, self._loader, config.seed, accelerator)
        with (
            Preemption(accelerator, enabled=self._folder is not None) as preemption,
            self._progress_bar() as bar,
            closing(walk) as batches,
        ):
            while self.step < config.steps:
                self._optimizer_step(batches, window)
                (lr, *_) = schedule.get_last_lr()
                schedule.step()
                bar.update()
                last = self.step == config.steps
                stop = preemption.requested(self.step, last=last)
                save = last or stop or self.step % (config.save_every or config.steps) == 0
                if save or self.step % config.log_every == 0:
                    loss, grad_norm = window.read(self.step, self._checkpoint)
                    bar.set_postfix(loss=f"{loss:.4g}")
                    accelerator.log({"loss": loss, "lr": lr, "grad_norm": grad_norm}, self.step)
                if save and self._folder is not None:
                    self._save(self._folder)
                if stop:
                    bar.close()
                    accelerator.print(f"SIGTERM: saved {self._checkpoint}, stopping")
                    accelerator.end_training()
                    raise SystemExit(EXIT_STATUS)

    def _optimizer_step(self, batches: Iterator[tuple[Position, Any]], window: LossWindow) -> None:
        """One step of the optimiser, over as many batches as the accelerator accumulates."""
        accelerator, seed = self.accelerator, self.config.seed
        rank, device = accelerator.process_index, accelerator.device
        micro_steps = 0
        while True:
            position, batch = next(batches)
            seed_micro_step(seed, self.step, micro_steps, rank, device)
            with accelerator.accumulate(self._prepared):
                loss = self.loss(self._prepared, batch)
                if not isinstance(loss, Tensor) or loss.ndim:
                    got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                    raise ValueError(
                        f"`loss` must return a 0-d tensor, the mean over the batch; got {got}."
                    )
                accelerator.backward(loss)
            window.add(loss)
            micro_steps += 1
            if accelerator.sync_gradients:
                break
        planned = accelerator.gradient_accumulation_steps
        if micro_steps != planned:  # the epoch has ended; accelerate has divided by `planned`
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(planned / micro_steps)
        grad_norm = accelerator.clip_grad_norm_(self._parameters, self.config.grad_clip or math.inf)
        assert isinstance(grad_norm, Tensor)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average:
            self._average.update(self.model)
        window.close(micro_steps, grad_norm)
        self.step += 1
        self._position = position

    def _progress_bar(self) -> tqdm:
        if not self.accelerator.is_main_process:
            return tqdm(disable=True)  # else it is left to TQDM_DISABLE
        return tqdm(total=self.config.steps, initial=self.step, unit="step")

    def _start_trackers(self) -> None:
        if self.accelerator.log_with and not self.accelerator.trackers:
            settings = self._run["config"].items()
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings}
            self.accelerator.init_trackers("training", plain)

    def _save(self, folder: Path) -> None:
        path = folder / f"step_{self.step:08d}"
        epoch, batch = self._position
        write_checkpoint(
            path,
            lambda partial: save_state(partial, self.model, self._average, self.accelerator),
            {"step": self.step, "epoch": epoch, "batch": batch, **self._run},
            self.accelerator,
            self.config.keep,
        )
        self._checkpoint = path

    def _resume(self, folder: Path) -> None:
        found = find_checkpoint(folder, self.accelerator)
        if found is None:
            return
        path, manifest = found
        if not self.config.resume:
            raise ValueError(
                f"`output_dir` must hold no checkpoints with resume=False; it has {path}. Choose another folder, or "
                "delete this one."
            )
        check_same_run(path, manifest, self._run)
        load_state(path, self.model, self._average, self.accelerator)
        self.step = manifest["step"]
        self._position = (manifest["epoch"], manifest["batch"])
        if self._average:
            self._average.updates = self.step
        self._checkpoint = path
        self.accelerator.print(f"resumed from {path}, step {self.step} of {self.config.steps}")
