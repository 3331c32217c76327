"""Recipes that train on one machine for the same seconds, alone or in turns, and are judged by one sampler.

`recipe.py`, `filling.py`, `time_to_quality.py` and `frontier.py` use it. A recipe is a network and how
it is trained; the learning rate follows the clock and not the step, so that each recipe ends its schedule where the
budget ends.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler, Scheduler
from flow_matching.solver import ODESolver
from torch import Tensor, nn

from fm_ext.loss import TimeSampler, UniformTime, velocity_loss
from fm_ext.metrics import FeatureMetrics, class_balance, classifier
from fm_ext.models import GuidedVelocityModel, PredictionVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.path.prediction import Prediction
from fm_ext.sampling import Samples, draw_samples
from fm_ext.solver import ExponentialSolver, MeanFlowSolver
from fm_ext.training import ExponentialMovingAverage
from fm_ext.training.trainer import make_optimizer

Result = dict[str, Any]
Weights = dict[str, Tensor]

BF16 = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
if torch.cuda.is_available():
    BF16 = torch.cuda.is_bf16_supported()

LEAN = {"channels": 24, "head_channels": 24, "attention": ()}
"""Changes of the preset that make it the network of examples/generate.py."""


def unet(dropout: float = 0.1, **changes: object) -> Callable[[], nn.Module]:
    """What makes the preset for digits and their classes, of which a share is dropped in training."""

    def make() -> nn.Module:
        net = UNet.preset(28, 1, 1, num_classes=10, **changes)
        return UNetWrapper(net, label_dropout=dropout, null_label=10)

    return make


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; `net()` makes a velocity model that is called as `net(x=x, t=t, label=label)`."""

    net: Callable[[], nn.Module]
    batch_size: int = 64
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay: bool = True  # cosine, to 0 at the end of the budget
    warmup: float = 0.05  # of the budget
    clip: float | None = 1.0  # of the gradient's norm
    ema: float | None = 0.99
    times: TimeSampler = field(default_factory=UniformTime)
    scheduler: Scheduler = field(default_factory=CondOTScheduler)
    prediction: Prediction = "velocity"
    space: Prediction = "velocity"  # that the error is measured in
    labels: bool = True
    mask: Callable[..., Tensor] | None = None  # of the holes that are filled, drawn like a `Mask`
    # More inputs of the network, by name, of images and masks.
    show: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    # Other images and labels of a batch.
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    bf16: bool = BF16


class Run:
    """One recipe with one seed, trained a few seconds at a time: on a CPU, seconds of this process."""

    def __init__(self, recipe: Recipe, images: Tensor, labels: Tensor, budget: float, seed: int):
        self.recipe, self.images, self.labels, self.budget = recipe, images, labels, budget
        self.clock = time.perf_counter if images.is_cuda else time.process_time
        torch.manual_seed(seed)
        self.net = recipe.net().to(images.device).train()
        self.optimizer = make_optimizer(self.net.parameters(), recipe, images.device)
        self.average = recipe.ema and ExponentialMovingAverage(self.net, recipe.ema)
        self.path = MaskedProbPath(AffineProbPath(recipe.scheduler))
        self.seconds, self.steps = 0.0, 0
        self.order = torch.empty(0, dtype=torch.long)
        self.random = torch.get_rng_state()

    def advance(self, until: float) -> None:
        """Trains until `until` of its own seconds have passed."""
        others, _ = torch.get_rng_state(), torch.set_rng_state(self.random)
        while self.seconds < until:
            start = self.clock()
            self._step()
            if self.images.is_cuda:
                torch.cuda.synchronize()
            self.seconds += self.clock() - start
        self.random = torch.get_rng_state()
        torch.set_rng_state(others)

    def _step(self) -> None:
        recipe = self.recipe
        done = self.seconds / self.budget
        rate = min(1.0, (done + 1e-3) / recipe.warmup) if recipe.warmup else 1.0
        if recipe.decay and done > recipe.warmup:
            rate = 0.5 * (
                1 + math.cos(math.pi * min(1.0, (done - recipe.warmup) / (1 - recipe.warmup)))
            )
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * rate
        if len(self.order) < recipe.batch_size:
            self.order = torch.randperm(len(self.images))
        rows, self.order = self.order[: recipe.batch_size], self.order[recipe.batch_size :]
        self.loss(*self.pairs(rows)).backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.net)
        self.steps += 1

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, images and labels for these rows; another coupling overrides it."""
        x_1 = self.images[rows]
        return torch.randn_like(x_1), x_1, self.labels[rows]

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch; another objective overrides it."""
        recipe = self.recipe
        if recipe.augment:
            x_1, label = recipe.augment(x_1, label)
        extras = {"label": label} if recipe.labels else {}
        mask = None
        if recipe.mask:
            mask = recipe.mask(len(x_1), x_1.shape[-2:], device=x_1.device)
            extras |= {"mask": mask} | (recipe.show(x_1, mask) if recipe.show else {})
        t = recipe.times(len(x_1), device=x_1.device)
        sample = self.path.sample(x_0, x_1, t, mask=mask)
        with torch.autocast(x_1.device.type, torch.bfloat16, enabled=recipe.bf16):
            output = self.net(x=sample.x_t, t=sample.t, **extras)
        return velocity_loss(
            output.float(),
            sample,
            prediction=recipe.prediction,
            space=recipe.space,
            scheduler=recipe.scheduler,
        )

    def weights(self) -> Weights:
        """A copy of the weights to sample from."""
        module = self.average.module if self.average else self.net
        return {key: value.detach().clone() for key, value in module.state_dict().items()}


def race(
    runs: Sequence[Run], points: Sequence[float], turn: float = 10.0
) -> Iterator[tuple[Run, float]]:
    """Trains all runs in turns of `turn` seconds; yields each as it reaches each of the `points` in seconds."""
    for begin, end in zip([0.0, *points[:-1]], points, strict=True):
        marks = [min(end, begin + turn * (k + 1)) for k in range(math.ceil((end - begin) / turn))]
        for mark in marks:
            for run in runs:
                run.advance(mark)
        for run in runs:
            yield run, end


class Clipped(nn.Module):
    """The expected data of a model, in [-1, 1], as a network that predicts the data."""

    def __init__(self, model: PredictionVelocityModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **extras: Tensor) -> Tensor:
        return self.model.ends(x, t, **extras)[1].clamp(-1, 1)


def draw(
    run: Run,
    weights: Weights,
    count: int,
    *,
    steps: int = 10,
    method: str = "midpoint",
    scale: float = 1.0,
    batch_size: int = 50,
    bf16: bool | None = None,
    grid: Sequence[float] | None = None,
) -> Samples:
    """`count` samples, as many of each class, by `steps` steps of a method of upstream's solver, or on a `grid`.

    Or by "exponential" steps; "clipped", with the expected data in [-1, 1]; "ancestral", those with DDPM's noise, at
    equal steps of the time with both ends among them; or by "jumps" of a `MeanFlowModel`. Sample i has noise i and
    class i modulo 10. `bf16` is the recipe's if it is not given.
    """
    recipe = run.recipe
    net = recipe.net().to(run.images.device).eval()
    net.load_state_dict(weights)
    model: nn.Module = net
    exponential = method in ("exponential", "clipped", "ancestral")
    if exponential or recipe.prediction != "velocity":
        model = PredictionVelocityModel(net, recipe.scheduler, prediction=recipe.prediction)
    if scale != 1.0 and method != "jumps":
        model = GuidedVelocityModel(model, scale, null={"label": 10})
    half = recipe.bf16 if bf16 is None else bf16
    if method in ("clipped", "ancestral"):
        model = PredictionVelocityModel(Clipped(model), recipe.scheduler, prediction="x_1")
    solver: Any = ExponentialSolver(model) if exponential else ODESolver(model)
    if method == "jumps":
        solver = MeanFlowSolver(net)

    def sample(noise: Tensor, label: Tensor) -> Tensor:
        extras = {"label": label} if recipe.labels else {}
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=half):
            if method == "jumps":
                extras |= {} if scale == 1.0 else {"guidance_scale": scale}
                return solver.sample(noise, steps, **extras).float()
            if method == "ancestral":  # the last evaluation is at the data's end, and is the answer
                times = torch.linspace(0, 1, steps)
                x = solver.sample(noise, None, times, eta=1.0, **extras)
                return solver.model.ends(x, torch.ones((), device=x.device), **extras)[1].float()
            extras |= {} if exponential else {"method": method}
            if grid is not None:
                return solver.sample(noise, None, time_grid=torch.tensor(grid), **extras).float()
            return solver.sample(noise, step_size=1 / steps, **extras).float()

    label = torch.arange(count) % 10
    return draw_samples(
        sample, count, run.images.shape[1:], batch_size=batch_size, network=net, label=label
    )


def judge(samples: Samples, reference: Tensor, extractor: str = "mnist") -> Result:
    """Frechet distance, density and coverage with intervals, class balance, and the share of labels that are right."""
    network = classifier(extractor)
    metrics = FeatureMetrics(network.features, figures=("frechet", "density", "coverage"))
    labels = []
    with torch.no_grad():
        for part in samples.to_float().split(500):
            metrics.update(part, real=False)
            labels.append(network(part).argmax(1))
        for part in reference.cpu().split(500):
            metrics.update(part, real=True)
    label = torch.cat(labels)
    accuracy = (label == samples.label).float().mean().item() if samples.label is not None else None
    return {
        **metrics.compute(),
        "balance": float(class_balance(label, torch.full((10,), 0.1))),
        "accuracy": accuracy,
    }


class Log:
    """Results as lines of JSON in a file; those of several processes may go to the same one."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def read(self, setting: Result) -> list[Result]:
        """The results that have all of the setting's values."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [found for line in lines if setting.items() <= (found := json.loads(line)).items()]

    def append(self, result: Result) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(result) + "\n")
