"""The training loop, its optimiser, and its watch for losses and weights that are not finite."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fm_ext.training.accelerator import check_accelerator
from fm_ext.training.checkpoint import (
    EMA,
    MODEL,
    CheckpointError,
    check_serialisable,
    find_checkpoint,
    load_weights,
    prove_folder,
    save_weights,
    write_checkpoint,
)
from fm_ext.training.config import TrainerConfig
from fm_ext.training.ema import ExponentialMovingAverage
from fm_ext.training.preemption import EXIT_STATUS, Preemption, shield_workers
from fm_ext.training.resume import (
    Fingerprint,
    Position,
    batches_from,
    batches_per_epoch,
    check_same_data,
    check_same_run,
    describe_run,
    fingerprint,
    seed_micro_step,
)
from fm_ext.utils.weights import bare, plain_names


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainerConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms, in one kernel where the device has it.

    Args:
        parameters: those to train.
        config: gives `lr`, `betas` and `weight_decay`.
        device: where they will be when the first step is taken.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


class NonFiniteLossError(FloatingPointError):
    """Raised when a loss, a gradient norm or a weight is infinite or not a number.

    Attributes:
        step: the optimiser step it happened in, counted from 1.
        process: the index of a process it happened on.
    """

    def __init__(self, message: str, step: int, process: int):
        super().__init__(message)
        self.step = step
        self.process = process


class LossWindow:
    """Losses and gradient norms of the last optimiser steps, in a buffer on the device.

    Args:
        size: the most optimiser steps between two readings.
        accelerator: gives the device and the other processes.
    """

    def __init__(self, size: int, accelerator: Accelerator):
        self._accelerator = accelerator
        self._values = torch.zeros(2, size, device=accelerator.device)
        self._count = 0

    def add(self, loss: Float[Tensor, ""]) -> None:
        """Adds the loss of a micro-step to the current optimiser step."""
        self._values[0, self._count].add_(loss.detach())

    def close(self, micro_steps: int, grad_norm: Float[Tensor, ""]) -> None:
        """Ends the current optimiser step, after `micro_steps` losses."""
        self._values[0, self._count].div_(micro_steps)
        self._values[1, self._count].copy_(grad_norm)
        self._count += 1

    def read(self, step: int, checkpoint: Path | None) -> tuple[float, float]:
        """Waits for the device, checks that all is finite, and empties the window.

        With float16's gradient scaler a gradient may overflow, and its step is left out; then only losses are checked.

        Args:
            step: optimiser steps done.
            checkpoint: the newest one, for the error.

        Returns:
            Loss and gradient norm, averaged over the window and the processes.

        Raises:
            NonFiniteLossError: on all processes, naming the first bad step and `checkpoint`.
        """
        mine = self._values[None, :, : self._count].clone()
        values = cast(Tensor, self._accelerator.gather(mine)).cpu()  # (processes, 2, steps)
        checked = values if self._accelerator.scaler is None else values[:, :1]
        bad = (~checked.isfinite()).permute(2, 1, 0).nonzero()  # the first step first
        if len(bad):
            index, kind, process = bad[0].tolist()
            bad_step = step - self._count + 1 + index
            what, value = ("loss", "gradient norm")[kind], values[process, kind, index]
            raise NonFiniteLossError(
                f"the {what} is {value} at step {bad_step} on process {process}; {_last_good(checkpoint)}. Look at the "
                "data and the loss of that step, or start anew with a lower `lr` or `grad_clip`.",
                bad_step,
                process,
            )
        self._values.zero_()
        self._count = 0
        loss, grad_norm = values.mean(dim=(0, 2)).tolist()
        return loss, grad_norm


def _last_good(checkpoint: Path | None) -> str:
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was kept"


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
            half-precision ones; for one that cannot be saved, if there is an `output_dir`, or copied, if there is an
            average; for an accelerator that is in use already, splits the model over processes, or names checkpoints
            itself.
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
        self.model = bare(model)
        plain = plain_names(self.model)
        named = self.model.named_parameters()
        trained = {plain.get(name, name): p for name, p in named if p.requires_grad}
        if not trained:
            raise ValueError("`model` must have parameters that require gradients; it has none.")
        if lazy := [name for name, p in trained.items() if nn.parameter.is_lazy(p) or p.is_meta]:
            raise ValueError(
                f"`model` must have its parameters in memory; {lazy[0]} has no values yet. Run a batch through a model "
                "of lazy modules first; give one on the meta device memory by model.to_empty and initialise it."
            )
        self.loss = loss
        self.config = config
        self.accelerator = accelerator
        self.step = 0
        self._position: Position = (0, 0)  # in the data, after the last optimiser step
        self._folder: Path | None = None
        self._checkpoint: Path | None = None
        self._saved_step: int | None = None
        self._data: list[Fingerprint] | None = None  # of the run's first batch, by process
        if config.output_dir is not None:
            self._folder = Path(config.output_dir).expanduser()
            self._bytes = check_serialisable(self.model)
        self._average: ExponentialMovingAverage | None = None
        if config.ema_decay is not None:
            self._average = ExponentialMovingAverage(self.model, config.ema_decay)
        optimizer = make_optimizer(trained.values(), config, accelerator.device)
        self._parameters: list[nn.Parameter] = [
            p for group in optimizer.param_groups for p in group["params"]
        ]
        names = {id(p): name for name, p in trained.items()}
        optimised: dict[str, Tensor] = {names[id(p)]: p for p in self._parameters}
        shield_workers(loader)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # accelerate's samplers remember it
            prepared: tuple[Any, ...] = accelerator.prepare(model, optimizer, loader)
        self._prepared, self._optimizer, self._loader = prepared
        epoch = batches_per_epoch(self._loader, accelerator.num_processes)
        self._run = describe_run(config, accelerator, loader, epoch, optimised)
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

        After an error or an interrupt, another call goes on from the step that was reached.

        Raises:
            ValueError: if `output_dir` holds the checkpoints of another run, or of any run with `resume=False`, or
                cannot be written to; if the loss is not 0-d.
            CheckpointError: if a checkpoint cannot be written, or none of those in `output_dir` can be read.
            NonFiniteLossError: when losses are read, which is before each checkpoint is written; for weights too.
            SystemExit: with status 143, after a SIGTERM and a checkpoint, if there is an `output_dir`.
        """
        config, accelerator = self.config, self.accelerator
        if self.step == 0 and self._folder is not None:
            self._resume(self._folder)
        done = self.step == config.steps
        if done and (self._folder is None or self._saved_step == self.step):
            return
        if self._folder is not None:
            prove_folder(self._folder, self._needed_bytes(), accelerator)
            if done:  # the last save has failed
                self._save(self._folder)
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
                if save:
                    self._check_weights()
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
            if self._folder and not self.step and not micro_steps:
                self._data = gather_object([fingerprint(batch)])
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

    def _check_weights(self) -> None:
        """Weights can overflow in a step whose loss and gradients are finite; no checkpoint is made of them."""
        tensors = {
            f"parameter {name}": p
            for name, p in zip(self._run["optimised"], self._parameters, strict=True)
        }
        for name, p in zip(self._run["optimised"], self._parameters, strict=True):
            state = self._optimizer.state[p].items()
            tensors |= {f"{key} of {name}": v for key, v in state if isinstance(v, Tensor)}
        device = self.accelerator.device
        finite = torch.stack([t.isfinite().all().to(device) for t in tensors.values()])
        every = cast(Tensor, self.accelerator.gather(finite[None])).cpu()
        if not every.all():
            process, index = (~every).nonzero()[0].tolist()
            raise NonFiniteLossError(
                f"the {list(tensors)[index]} is not finite after step {self.step} on process {process}; "
                f"{_last_good(self._checkpoint)}. Start anew with a lower `lr` or `grad_clip`.",
                self.step,
                process,
            )

    def _needed_bytes(self) -> int:
        """What a checkpoint takes; what is registered with the accelerator is serialised for it, as a trial."""
        moments = 2 * sum(p.numel() * p.element_size() for p in self._parameters)
        registered = 0
        for custom in self.accelerator._custom_objects:
            buffer = io.BytesIO()
            try:
                torch.save(custom.state_dict(), buffer)
            except Exception as error:
                raise ValueError(
                    "`accelerator` must be given objects for checkpointing whose state_dict() torch.save takes; "
                    f"{type(custom).__name__} cannot be saved: {error}."
                ) from error
            registered += buffer.tell()
        return self._bytes * (2 if self._average else 1) + moments + registered

    def _save(self, folder: Path) -> None:
        path = folder / f"step_{self.step:08d}"
        epoch, batch = self._position
        where = {"step": self.step, "epoch": epoch, "batch": batch}
        manifest = {**where, **self._run, "data": self._data}
        write_checkpoint(path, self._write_state, manifest, self.accelerator, self.config.keep)
        self._checkpoint, self._saved_step = path, self.step

    def _write_state(self, folder: Path) -> None:
        """Writes the weights as safetensors, and by accelerate the optimiser and the objects registered with it.

        The weights are not left to accelerate, which names those of a compiled model otherwise, and saves every other
        model that it has prepared too, frozen ones included.
        """
        if self.accelerator.is_main_process:
            save_weights(self.model, folder / MODEL)
            if self._average:
                save_weights(self._average.module, folder / EMA)
        hook = self.accelerator.register_save_state_pre_hook(lambda _, weights, __: weights.clear())
        try:
            self.accelerator.save_state(str(folder))
        finally:
            hook.remove()

    def _load_state(self, folder: Path) -> None:
        load_weights(folder / MODEL, self.model)
        if self._average:
            load_weights(folder / EMA, self._average.module)
        hook = self.accelerator.register_load_state_pre_hook(lambda models, _: models.clear())
        try:
            self.accelerator.load_state(str(folder))
        except Exception as error:
            raise CheckpointError(
                f"the optimiser or a registered object of {folder} cannot be loaded: {type(error).__name__}: {error}."
            ) from error
        finally:
            hook.remove()

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
        self._data = manifest.get("data")
        if self._data is not None:
            check_same_data(path, self._data, self._loader, self.config.seed, self.accelerator)
        self._load_state(path)
        self.step = self._saved_step = manifest["step"]
        self._position = (manifest["epoch"], manifest["batch"])
        if self._average:
            self._average.updates = self.step
        self._checkpoint = path
        self.accelerator.print(f"resumed from {path}, step {self.step} of {self.config.steps}")
