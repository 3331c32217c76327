"""Silent errors of upstream's ODESolver beside the answers of fm_ext's: one row a trap, as a Markdown table.

python examples/benchmarks/solver_traps.py
"""

import math
import warnings
from collections.abc import Callable

import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver as UpstreamODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor, nn

from fm_ext.models import MaskedVelocityModel
from fm_ext.path.scheduler import ScheduleTransformedModel, get_scheduler
from fm_ext.solver import ODESolver

SOLVERS = UpstreamODESolver, ODESolver
warnings.simplefilter("ignore")
torch.manual_seed(0)


class Velocity(ModelWrapper):
    """A function as a velocity model, which takes any extra and remembers the times it was asked at."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__(nn.Identity())
        self.function, self.times = function, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, t: Tensor, **extras: object) -> Tensor:
        self.times.append(t.item())
        return self.function(x, t)


def row(trap: str, trial: Callable[[type[UpstreamODESolver]], str]) -> None:
    cells = []
    for solver in SOLVERS:
        try:
            cells.append(trial(solver))
        except Exception as error:
            text = " ".join(str(error).split())
            cells.append(f"{type(error).__name__}: {text[:70]}{'...' if len(text) > 70 else ''}")
    print(f"| {trap} | {cells[0]} | {cells[1]} |")


def constant() -> Velocity:
    return Velocity(lambda x, t: torch.ones_like(x) + 0 * x)


def turn(x: Tensor, t: Tensor) -> Tensor:
    """Every pair of entries turns with a changing rate; the exact end is known."""
    return 12 * torch.cos(4 * t) * torch.stack([-x[..., 1], x[..., 0]], -1)


def turned(x: Tensor) -> Tensor:
    angle = torch.tensor(3 * math.sin(4.0), dtype=x.dtype)
    return torch.stack(
        [
            angle.cos() * x[..., 0] - angle.sin() * x[..., 1],
            angle.sin() * x[..., 0] + angle.cos() * x[..., 1],
        ],
        -1,
    )


def misspelt(solver: type[UpstreamODESolver]) -> str:
    model = constant()
    solver(model).sample(x_init=torch.zeros(1, 1), step_size=0.5, time_steps=torch.tensor([0, 0.5]))
    return f"accepted; integrates to t = {max(model.times) + 0.5:g}"


def evaluations(solver: type[UpstreamODESolver]) -> str:
    wrong = 0
    for n in range(2, 301):
        model = constant()
        solver(model).sample(x_init=torch.zeros(1, 1), step_size=1 / n)
        wrong += len(model.times) != n
    return f"{wrong} of 299 wrong"


def one_step(solver: type[UpstreamODESolver]) -> str:
    model = Velocity(lambda x, t: x)
    end = solver(model).sample(x_init=torch.ones(1, 1), step_size=None)
    return f"{len(model.times)} step: x(1) = {torch.as_tensor(end).item():g} for {math.e:.3f}"


def latest(method: str) -> Callable[[type[UpstreamODESolver]], str]:
    def trial(solver: type[UpstreamODESolver]) -> str:
        model = Velocity(lambda x, t: torch.sin(5 * x) + t)
        solver(model).sample(x_init=torch.randn(4, 2), step_size=None, method=method)
        return f"t up to {max(model.times):.7g}"

    return trial


def diluted(share: float) -> Callable[[type[UpstreamODESolver]], str]:
    def trial(solver: type[UpstreamODESolver]) -> str:
        x = torch.randn(1, 400, 2, generator=torch.Generator().manual_seed(1)).double()
        mask = (torch.arange(400) >= share * 400).view(1, 400, 1)
        model = MaskedVelocityModel(Velocity(turn))
        end = solver(model).sample(
            x_init=x, step_size=None, method="dopri5", atol=1e-3, rtol=1e-3, mask=mask
        )
        error = (torch.as_tensor(end) - turned(x))[mask.expand_as(x)]
        return f"error {error.square().mean().sqrt():.1e}"

    return trial


def neighbours(solver: type[UpstreamODESolver]) -> str:
    """A sample alone, and among 63 which stand still."""
    x = torch.zeros(64, 400, 2, dtype=torch.float64)
    x[0] = torch.randn(400, 2, generator=torch.Generator().manual_seed(1)).double()
    model = solver(Velocity(turn))
    step = {"step_size": None, "method": "dopri5", "atol": 1e-3, "rtol": 1e-3}
    alone = torch.as_tensor(model.sample(x_init=x[:1], **step))
    return (
        f"moves by {(torch.as_tensor(model.sample(x_init=x, **step))[:1] - alone).abs().max():.1e}"
    )


def known(solver: type[UpstreamODESolver]) -> str:
    x, mask = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 8, 8) < 0.5
    model = MaskedVelocityModel(Velocity(lambda x, t: 3 * torch.sin(5 * x) + t + x.flip(-1)))
    end = solver(model).sample(x_init=x, step_size=None, method="dopri5", mask=mask)
    return f"move by {(torch.as_tensor(end) - x)[~mask.expand_as(x)].abs().max():.1e}"


def schedules(solver: type[UpstreamODESolver]) -> str:
    x, new, worst = torch.tensor([[-1.0], [0.3], [1.7]]).double(), get_scheduler("cosine"), 0.0
    for tolerance in (1e-5, 1e-7):
        model = Velocity(
            lambda x, t: 2 + (t / 4 - (1 - t)) / (t**2 / 4 + (1 - t) ** 2) * (x - 2 * t)
        )
        change = ScheduleTransformedModel(model, CondOTScheduler(), new)
        end = solver(change).sample(
            x_init=x, step_size=None, method="dopri5", atol=tolerance, rtol=tolerance
        )
        worst = (torch.as_tensor(end) - (2 + x / 2)).abs().max().item()
    return f"error {worst:.1e}"


def half(solver: type[UpstreamODESolver]) -> str:
    x = torch.full((1, 1), 2.0, dtype=torch.bfloat16)
    model = Velocity(lambda x, t: torch.ones_like(x))
    end = torch.as_tensor(solver(model).sample(x_init=x, step_size=1e-3)).item()
    return f"x(1) = {end:g}, {len(set(model.times))} distinct times"


def between(solver: type[UpstreamODESolver]) -> str:
    states = solver(Velocity(lambda x, t: 3 * t * t + 0 * x)).sample(
        x_init=torch.zeros(1, 1), step_size=0.5, method="midpoint",
        time_grid=torch.tensor([0, 0.25, 1.0]), return_intermediates=True,
    )  # fmt: skip
    return f"x(1/4) = {torch.as_tensor(states)[1].item():.4f}"


def kept(solver: type[UpstreamODESolver]) -> str:
    x = torch.zeros(4, 4)
    end = solver(constant()).sample(x_init=x, step_size=None, time_grid=torch.linspace(0, 1, 101))
    return f"{torch.as_tensor(end).untyped_storage().nbytes() / x.nbytes:g} batches"


def adams(solver: type[UpstreamODESolver]) -> str:
    end = solver(Velocity(lambda x, t: (1 + 2 * t) * x)).sample(
        x_init=torch.ones(1, 1).double(), step_size=0.005, method="explicit_adams",
        time_grid=torch.tensor([1.0, 0.0]).double(),
    )  # fmt: skip
    return f"x(0) = {torch.as_tensor(end).item():.3g} for {math.exp(-2):.3f}"


def likelihood(shape: tuple[int, ...], dtype: torch.dtype, exact: bool, summed: bool = True):
    def trial(solver: type[UpstreamODESolver]) -> str:
        x = torch.zeros(2, *shape, dtype=dtype)
        density = torch.distributions.Normal(0.0, 1.0).log_prob
        _, log_p = solver(Velocity(lambda x, t: x)).compute_likelihood(
            x_1=x, log_p0=(lambda x: density(x).flatten(1).sum(1)) if summed else density,
            step_size=0.01, method="midpoint", exact_divergence=exact,
        )  # fmt: skip
        want = math.prod(shape) * (density(torch.tensor(0.0)).item() - 1)
        if log_p.shape != (2,):
            return f"log p of shape {tuple(log_p.shape)}"
        return f"log p = {log_p[0].item():.3f} for {want:.3f}"

    return trial


def gradient(solver: type[UpstreamODESolver]) -> str:
    x = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    _, log_p = solver(Velocity(lambda x, t: x)).compute_likelihood(
        x_1=x, log_p0=lambda x: -x.square().sum(1) / 2, step_size=0.01, method="midpoint",
        exact_divergence=True, enable_grad=True,
    )  # fmt: skip
    log_p.sum().backward()
    assert x.grad is not None
    return f"{x.grad.item():.4f} for {-0.5 * math.exp(-2):.4f}"


print("| | upstream 1.0.10 | fm_ext |\n|---|---|---|")
row("`time_steps=` for `time_grid=`", misspelt)
row("`step_size=1/N` is N steps", evaluations)
row("no steps given, x' = x", one_step)
for method in ("dopri5", "dopri8", "bosh3"):
    row(f"{method} asks for", latest(method))
for share in (0.0, 0.9, 0.99):
    row(f"dopri5, tolerance 1e-3, {share:.0%} known", diluted(share))
row("a sample beside 63 that stand still (1e-3)", neighbours)
row("known pixels under dopri5", known)
row("dopri5 (1e-7) through a change of schedule", schedules)
row("1000 Euler steps in bfloat16, x(1) = 3", half)
row("x(t) = t^3 at a time between two steps (0.0156)", between)
row("kept for the end of 101 times", kept)
row("explicit_adams, x' = (1 + 2 t) x from t = 1", adams)
row("log p, 2 x 3 x 3 images, exact divergence", likelihood((2, 3, 3), torch.float32, True))
row("log p of float64, one probe", likelihood((3,), torch.float64, False))
row("`log_p0` not summed over entries", likelihood((2,), torch.float32, True, summed=False))
row("d log p / d x", gradient)
