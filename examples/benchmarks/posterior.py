"""Do the methods of `InpaintingSolver` draw from the posterior? A benchmark with the truth in it.

    python examples/benchmarks/posterior.py                     # hours on one core
    python examples/benchmarks/posterior.py --fills 32 --observations 2 --parts gaussian mixture_8
On every part velocity and posterior have closed forms, so fills are compared with exact draws:
gaussian, gaussian_0.01, gaussian_0.03: AR(1) data in 32 dimensions of which 12 are missing, with an exact network and
with a random error of that spectral radius in its derivative; mixture_2, mixture_8: four modes whose weights are known;
digits_0.3, _0.8, _1.2: N(digit, h^2 I) around 16x16 digits, an 8x8 hole. Peers are asked where they are installed.
Prints a table, and writes outputs/posterior.json and outputs/posterior.png.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch import Tensor, nn

from fm_ext.data import load_images
from fm_ext.metrics import energy_distance, wasserstein_distance
from fm_ext.models import EmpiricalVelocityModel
from fm_ext.solver import InpaintingSolver

PARTS = [
    *("gaussian", "gaussian_0.01", "gaussian_0.03", "mixture_2", "mixture_8"),
    *("digits_0.3", "digits_0.8", "digits_1.2"),
]
METHODS = [
    *("replace", "repaint", "restora", "ot_ode", "pnp", "flower", "ding", "moment_matching"),
    *("twisted_smc", "d_flow"),
]
DATA = Path(__file__).parents[1] / "data" / "mnist"


@dataclass
class Part:
    """A model, images with a mask, and how to draw from the truth and to weigh the modes of fills."""

    velocity: nn.Module
    images: Tensor
    mask: Tensor
    exact: Callable[[int], Tensor]
    modes: Callable[[Tensor], Tensor] | None = None
    true_modes: Tensor | None = None


class GaussianVelocity(nn.Module):
    """The exact velocity of N(0, covariance), with an error in the derivative of E[X_1 | x_t]."""

    def __init__(self, covariance: Tensor, error: float):
        super().__init__()
        self.values, self.vectors = torch.linalg.eigh(covariance)
        self.error = error * torch.randn(covariance.shape) / len(covariance) ** 0.5

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        gain = (t * self.values - (1 - t)) / (t**2 * self.values + (1 - t) ** 2)
        matrix = (self.vectors * gain) @ self.vectors.T + self.error / (1 - t)
        return x @ matrix.to(x.dtype)


def gaussian(error: float, observations: int) -> Part:
    index = torch.arange(32)
    covariance = 0.97 ** (index[:, None] - index).abs().double() + 1e-3 * torch.eye(32)
    mask = ((index >= 10) & (index < 22))[None]
    known = ~mask[0]
    root = torch.linalg.cholesky(covariance)
    images = (torch.randn(observations, 32, dtype=torch.float64) @ root.T).float()
    gain = covariance[:, known] @ torch.linalg.inv(covariance[known][:, known])
    spread = covariance - gain @ covariance[known]
    values, vectors = torch.linalg.eigh(spread)
    part = vectors * values.clamp(min=0).sqrt()

    def exact(count: int) -> Tensor:
        z = torch.randn(count, observations, 32, dtype=torch.float64)
        return images[:, known].double() @ gain.T + z @ part.T

    return Part(GaussianVelocity(covariance, error), images, mask, exact)


def empirical(model: EmpiricalVelocityModel, mask: Tensor, observations: int) -> Part:
    images = model.sample_posterior(
        model.data[:1].expand(observations, *model.data.shape[1:]),
        mask=torch.ones_like(mask),
    )
    one = torch.ones(())
    return Part(
        model,
        images,
        mask,
        exact=lambda count: model.sample_posterior(images, mask=mask, fills=count),
        modes=lambda fills: torch.stack(
            [model.posterior_weights(f, one).mean(0) for f in fills.unbind(1)]
        ),
        true_modes=model.inpainting_weights(images, mask=mask),
    )


def mixture(dimension: int, observations: int) -> Part:
    """Four modes which the known half of the entries hardly tells apart, and the missing half does."""
    mask = torch.arange(dimension)[None] >= dimension // 2
    means = torch.randn(4, dimension) * torch.where(mask, 2.0, 0.5)
    model = EmpiricalVelocityModel(means, CondOTScheduler(), 0.4, weights=torch.rand(4) + 0.2)
    return empirical(model, mask, observations)


def digits(bandwidth: float, observations: int, count: int) -> Part:
    data, _ = load_images(str(DATA), split="train", size=16, limit=count)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 4:12, 4:12] = True
    return empirical(EmpiricalVelocityModel(data, CondOTScheduler(), bandwidth), mask, observations)


def azula_mmps(part: Part, fills: int, iterations: int, eta: float) -> tuple[Tensor, int, int]:
    """The MMPS of azula with its DDIM sampler of 50 steps, on the straight path; known entries are pasted back."""
    from azula.denoise import DiracPosterior, SimpleDenoiser
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import Schedule
    from azula.sample import DDIMSampler

    class Straight(Schedule):  # azula's time runs from noise at 1 to data at 0
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return 1 - t, t

    class Denoiser(SimpleDenoiser):
        def __init__(self):
            nn.Module.__init__(self)
            self.schedule = Straight()

        def forward(self, x_t: Tensor, t: Tensor, **extras: object) -> DiracPosterior:
            return DiracPosterior(mean=x_t + t * part.velocity(x=x_t, t=1 - t))

    known = ~part.mask.expand_as(part.images)
    y = part.images.repeat(fills, *(1 for _ in part.images.shape[1:]))
    keep = known.repeat(fills, *(1 for _ in part.images.shape[1:]))
    denoiser = MMPSDenoiser(
        Denoiser(),
        torch.where(keep, y, 0.0),
        lambda x: torch.where(keep, x, 0.0),
        IsotropicCovariance(torch.tensor(1e-6)),
        solver="gmres",
        iterations=iterations,
    )
    sampler = DDIMSampler(denoiser, start=0.98, stop=0.0, steps=50, eta=eta, silent=True)
    x = sampler(torch.randn_like(y) * 0.98)
    return torch.where(keep, y, x).unflatten(0, (fills, -1)), 50, 50 * (iterations + 1)


def judge(part: Part, fills: Tensor, exact: Tensor) -> dict[str, float | None]:
    """Means over the observations of the distances to exact draws."""
    pairs = [(fills[:, i], exact[:, i]) for i in range(len(part.images))]
    figures: dict[str, float | None] = {
        "energy": float(torch.stack([energy_distance(a, b) for a, b in pairs]).mean()),
        "w2": float(torch.stack([wasserstein_distance(a, b[: len(a)]) for a, b in pairs]).mean()),
        "modes": None,
    }
    if part.modes is not None and part.true_modes is not None:
        error = (part.modes(fills) - part.true_modes).abs().sum(1) / 2
        figures["modes"] = float(error.mean())
    return figures


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a run of seconds that measures nothing")
parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
parser.add_argument("--fills", type=int, default=128)
parser.add_argument("--observations", type=int, default=8)
parser.add_argument("--images", type=int, default=2000, help="digits in the data set")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", default="outputs/posterior")
options = parser.parse_args()
if options.smoke or os.environ.get("FM_EXT_SMOKE") == "1":
    options.parts, options.methods = ["gaussian", "mixture_2"], ["flower", "twisted_smc"]
    options.fills, options.observations, options.steps = 4, 2, 4

rows: list[dict[str, object]] = []
print(
    "| part | method | energy distance | W2 | error of modes | evaluations | gradients | seconds |"
)
print("|---|---|---|---|---|---|---|---|", flush=True)


def record(
    part: str, method: str, figures: dict[str, float | None], cost: tuple[float, ...]
) -> None:
    nfe, gradients, seconds = cost
    rows.append({"part": part, "method": method, "evaluations": nfe, "gradients": gradients,
                 "seconds": seconds} | figures)  # fmt: skip
    modes = "" if figures["modes"] is None else f"{figures['modes']:.2f}"
    print(
        f"| {part} | {method} | {figures['energy']:.3f} | {figures['w2']:.2f} | {modes} | {nfe} | {gradients} "
        f"| {seconds:.1f} |",
        flush=True,
    )
    folder = Path(options.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    Path(f"{options.output}.json").write_text(
        json.dumps({"settings": settings, "rows": rows}, indent=1)
    )


for name in options.parts:
    torch.manual_seed(0)
    kind, _, number = name.partition("_")
    if kind == "gaussian":
        part = gaussian(float(number or 0), options.observations)
    elif kind == "mixture":
        part = mixture(int(number), options.observations)
    else:
        part = digits(float(number), options.observations, options.images)
    exact = part.exact(max(options.fills, 500))
    record(
        name,
        "exact draws",
        judge(part, part.exact(options.fills).to(exact.dtype), exact),
        (0, 0, 0.0),
    )
    for method in options.methods:
        torch.manual_seed(1)
        solver = InpaintingSolver(part.velocity, CondOTScheduler(), method)
        steps = min(options.steps, 6) if method == "d_flow" else options.steps
        begin = time.perf_counter()
        fills = solver.sample(part.images, mask=part.mask, steps=steps, fills=options.fills)
        seconds = time.perf_counter() - begin
        record(name, method, judge(part, fills, exact), (solver.nfe, solver.gradients, seconds))
    if importlib.util.find_spec("azula") is not None:
        for iterations, eta in ((1, 0.0), (3, 1.0), (5, 0.0)):
            torch.manual_seed(1)
            begin = time.perf_counter()
            fills, nfe, gradients = azula_mmps(part, options.fills, iterations, eta)
            seconds = time.perf_counter() - begin
            figures = judge(part, fills, exact)
            record(
                name, f"azula MMPS {iterations}, eta {eta:g}", figures, (nfe, gradients, seconds)
            )

# ---- quality against cost --------------------------------------------------------------------
figure, axes = plt.subplots(1, len(options.parts), figsize=(4 * len(options.parts), 4), squeeze=False,
                            layout="constrained")  # fmt: skip
for ax, name in zip(axes[0], options.parts, strict=True):
    for row in rows:
        if row["part"] == name and row["method"] != "exact draws":
            cost = float(row["evaluations"]) + float(row["gradients"])  # type: ignore[arg-type]
            ax.scatter(cost, max(float(row["energy"]), 1e-3), s=20)  # type: ignore[arg-type]
            ax.annotate(str(row["method"]), (cost, max(float(row["energy"]), 1e-3)), fontsize=7)  # type: ignore[arg-type]
    ax.set(title=name, xscale="log", yscale="log", xlabel="evaluations and gradients")
axes[0, 0].set_ylabel("energy distance to exact draws")
figure.savefig(f"{options.output}.png", dpi=80)
