"""Do the methods of `InpaintingSolver` draw from the posterior? A benchmark with the truth in it.

    python examples/benchmarks/posterior.py                     # hours on one core; goes on where it was stopped
    python examples/benchmarks/posterior.py --seeds 0 --parts gaussian mixture_8       # a minute
On every part velocity and posterior have closed forms, so fills are compared with exact draws:
gaussian, gaussian_0.01, gaussian_0.03: AR(1) data in 32 dimensions of which 12 are missing, with an exact network and
with a random error of that spectral radius in its derivative; mixture_2, mixture_8: four modes whose weights are known;
digits_0.3, _0.8, _1.2: N(digit, h^2 I) around 16x16 digits, an 8x8 hole; portraits_0.3, not in the default run: colour
portraits of 32x32 of which only the shoulders are known, chosen for several possible skins or hats.
azula and deepinv are asked where they are installed. A seed draws new observations, and all else. "twisted_smc, 8 a
call" has 8 fills of an image a call.
Prints tables, means over the seeds and cost at seed 0, and writes outputs/posterior.json and outputs/posterior.png;
fills of portraits in outputs/posterior_portraits_0.3.png.
"""

import argparse
import importlib.util
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch import Tensor, nn
from torchvision.utils import make_grid

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
CURVES = {  # steps, beside --steps
    "flower": [12, 25, 100, 250, 500],
    "moment_matching": [6, 12, 25, 100],
    "twisted_smc": [6, 12, 25, 100],
}
DATA = Path(__file__).parents[1] / "data"


@dataclass
class Part:
    """A model, images with a mask, and how to draw from the truth and to weigh the modes of fills."""

    velocity: nn.Module
    images: Tensor
    mask: Tensor
    exact: Callable[[int], Tensor]
    modes: Callable[[Tensor], Tensor] | None = None
    true_modes: Tensor | None = None


def portraits(bandwidth: float, observations: int) -> Part:
    data, _ = load_images(str(DATA / "portraits"), split="train", size=32)
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., :26, :] = True
    model = EmpiricalVelocityModel(data, CondOTScheduler(), bandwidth)
    return empirical(model, mask, observations, least=4.0)


Answer = tuple[Tensor, int, int]  # fills (fills, observations, ...), evaluations, gradients


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


def empirical(
    model: EmpiricalVelocityModel, mask: Tensor, observations: int, least: float = 1.0
) -> Part:
    """Draws of the model, whose posterior has the effective number of modes of at least `least`."""
    images = model.sample_posterior(
        model.data[:1].expand(observations if least == 1 else 100, *model.data.shape[1:]),
        mask=torch.ones_like(mask),
    )
    weights = model.inpainting_weights(images, mask=mask)
    many = torch.special.entr(weights).sum(1).exp() >= least - 1e-3
    images = images[many][:observations]
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
    data, _ = load_images(str(DATA / "mnist"), split="train", size=16, limit=count)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 4:12, 4:12] = True
    return empirical(EmpiricalVelocityModel(data, CondOTScheduler(), bandwidth), mask, observations)


def solve(part: Part, fills: int, steps: int, method: str, group: int | None = None) -> Answer:
    """A method of ours; with a `group` so many fills share a call."""
    solver = InpaintingSolver(part.velocity, CondOTScheduler(), method)
    group = group or fills
    images = part.images.repeat(fills // group, *(1 for _ in part.images.shape[1:]))
    answer = solver.sample(images, mask=part.mask, steps=steps, fills=group)
    answer = answer.unflatten(1, (-1, len(part.images))).flatten(0, 1)
    return answer, solver.nfe, solver.gradients


def azula_mmps(part: Part, fills: int, steps: int, iterations: int, eta: float) -> Answer:
    """The MMPS of azula with its DDIM sampler on the straight path; known entries are pasted back."""
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
    sampler = DDIMSampler(denoiser, start=0.98, stop=0.0, steps=steps, eta=eta, silent=True)
    x = sampler(torch.randn_like(y) * 0.98)
    return torch.where(keep, y, x).unflatten(0, (fills, -1)), steps, steps * (iterations + 1)


def deepinv_matching(part: Part, fills: int, steps: int, alpha: float) -> Answer:
    """Moment matching of deepinv on its flow-matching process; alpha 0 is its ODE, 1 an SDE."""
    import deepinv

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:  # x_1 + sigma * noise
        t = 1 / (1 + sigma.flatten()[0])
        x_t = (t * x).view(len(x), *part.images.shape[1:])
        return (x_t + (1 - t) * part.velocity(x=x_t, t=t)).view_as(x)

    class Denoiser(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: Tensor, **extras: object) -> Tensor:
            return denoise(x, sigma)

    y = part.images.repeat(fills, *(1 for _ in part.images.shape[1:]))
    keep = (~part.mask).expand_as(y)
    flat, seen = y.view(len(y), 1, 1, -1), keep.reshape(len(y), 1, 1, -1)
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: torch.where(seen, x, 0.0),
        A_adjoint=lambda x, **_: torch.where(seen, x, 0.0),
        noise_model=deepinv.physics.GaussianNoise(sigma=1e-3),
    )
    process = deepinv.sampling.FlowMatching(alpha=alpha, dtype=torch.float32)
    times = torch.linspace(0.98, 0.0, steps + 1).clamp(min=1e-3)
    model = deepinv.sampling.PosteriorDiffusion(
        deepinv.sampling.MomentMatchingDataFidelity(),
        Denoiser(),
        process,
        deepinv.sampling.EulerSolver(times),
        dtype=torch.float32,
        minus_one_one=False,
    )
    x = model(torch.where(seen, flat, 0.0), physics, x_init=tuple(flat.shape)).view_as(y)
    return torch.where(keep, y, x).unflatten(0, (fills, -1)), steps, steps * 4


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


PEERS: dict[str, tuple[str, Callable[..., Answer]]] = {
    "azula MMPS 1, eta 0": ("azula", partial(azula_mmps, iterations=1, eta=0.0)),
    "azula MMPS 3, eta 1": ("azula", partial(azula_mmps, iterations=3, eta=1.0)),
    "azula MMPS 5, eta 0": ("azula", partial(azula_mmps, iterations=5, eta=0.0)),
    "deepinv moment matching, ODE": ("deepinv", partial(deepinv_matching, alpha=0.0)),
    "deepinv moment matching, SDE": ("deepinv", partial(deepinv_matching, alpha=1.0)),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a run of seconds that measures nothing")
parser.add_argument("--parts", nargs="+", choices=[*PARTS, "portraits_0.3"], default=PARTS)
parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
parser.add_argument("--fills", type=int, default=128)
parser.add_argument("--observations", type=int, default=4)
parser.add_argument("--images", type=int, default=600, help="digits in the data set")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", default="outputs/posterior")
options = parser.parse_args()
if options.smoke or os.environ.get("FM_EXT_SMOKE") == "1":
    options.parts, options.methods = ["gaussian", "mixture_2"], ["flower", "twisted_smc"]
    options.fills, options.observations, options.steps, options.seeds = 8, 2, 4, [0]
    CURVES, options.output = {"flower": [2]}, options.output + "_smoke"

file = Path(f"{options.output}.json")
file.parent.mkdir(parents=True, exist_ok=True)
settings = {name: getattr(options, name) for name in ("fills", "observations", "images")}
rows: list[dict] = []
if file.exists():
    kept = json.loads(file.read_text())
    if kept["settings"] != settings:
        parser.error(f"{file} holds a run of {kept['settings']}; give another --output")
    rows = kept["rows"]


def make(name: str, seed: int) -> Part:
    torch.manual_seed(seed)
    kind, _, number = name.partition("_")
    if kind == "gaussian":
        return gaussian(float(number or 0), options.observations)
    if kind == "mixture":
        return mixture(int(number), options.observations)
    if kind == "portraits":
        return portraits(float(number), options.observations)
    return digits(float(number), options.observations, options.images)


def draw(name: str, part: Part, fills: dict[str, Tensor]) -> None:
    """Eight fills of each image by each method, under the original and what is known of it."""
    rows = [part.images.new_zeros(0, *part.images.shape[1:])]
    for i, image in enumerate(part.images):
        seen = torch.where(part.mask[0], 0.0, image)
        rows.append(torch.stack([image, seen, *[torch.ones_like(image)] * 6]))
        rows += [answer[:8, i] for answer in fills.values()]
    titles = [title for _ in part.images for title in ("original, known", *fills)]
    picture = make_grid(torch.cat(rows).clamp(-1, 1) / 2 + 0.5, 8)
    figure, ax = plt.subplots(figsize=(8, len(titles)), layout="constrained")
    ax.imshow(picture.movedim(0, 2), extent=(0, 8, len(titles), 0), aspect="auto")
    ax.set_yticks(torch.arange(len(titles)) + 0.5, titles)
    ax.tick_params(length=0, labelbottom=False)
    figure.savefig(f"{options.output}_{name}.png", dpi=60)
    plt.close(figure)


def runs(part: Part, curves: bool) -> dict[tuple[str, int], Callable[[], Answer]]:
    """What is compared: a name and a number of steps, and how to get its fills."""
    fills, steps = options.fills, options.steps
    found: dict[tuple[str, int], Callable[[], Answer]] = {
        ("exact draws", 0): lambda: (part.exact(fills), 0, 0)
    }
    for method in options.methods:
        own = min(steps, 6) if method == "d_flow" else steps
        for count in [own, *(CURVES.get(method, []) if curves else [])]:
            found[method, count] = partial(solve, part, fills, count, method)
    if "twisted_smc" in options.methods:
        for group in (8, 32):
            if fills % group == 0:
                name = f"twisted_smc, {group} a call"
                found[name, steps] = partial(solve, part, fills, steps, "twisted_smc", group)
    for name, (package, peer) in PEERS.items():
        if importlib.util.find_spec(package) is not None:
            found[name, steps] = partial(peer, part, fills, steps)
    return found


for seed in options.seeds:
    for name in options.parts:
        part = make(name, seed)
        exact = part.exact(max(options.fills, 500))
        pictured = {}
        for (method, steps), run in runs(part, seed == 0).items():
            key = {"part": name, "method": method, "steps": steps, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            torch.manual_seed(seed + 1)
            begin = time.perf_counter()
            fills, nfe, gradients = run()
            seconds = time.perf_counter() - begin
            figures = judge(part, fills.to(exact.dtype), exact)
            cost = {"evaluations": nfe, "gradients": gradients, "seconds": round(seconds, 2)}
            rows.append(key | cost | {name: value for name, value in figures.items()})
            file.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
            print(rows[-1], flush=True)
            if steps in (0, options.steps) and "a call" not in method:
                pictured[method] = fills
        if pictured and name.startswith("portraits"):
            draw(name, part, pictured)


# ---- tables: energy distance (error of the mode weights) ---------------------------------------
def mean(found: list[dict], figure: str) -> float:
    return sum(row[figure] for row in found) / len(found)


def tabulate(title: str, chosen: list[dict]) -> dict[tuple[str, int], dict[str, list[dict]]]:
    """Prints the means over the seeds, and returns the rows by method and steps, and by part."""
    found: dict[tuple[str, int], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in chosen:
        found[row["method"], row["steps"]][row["part"]].append(row)
    print(f"\n{title}\n")
    print("| | steps | " + " | ".join(options.parts) + " | evaluations + gradients |")
    print("|---|---|" + "---|" * (len(options.parts) + 1))
    for (method, steps), columns in sorted(found.items()):
        cells = []
        for name in options.parts:
            cell = f"{mean(columns[name], 'energy'):.2f}" if columns[name] else ""
            if columns[name] and columns[name][0]["modes"] is not None:
                cell += f" ({mean(columns[name], 'modes'):.2f})"
            cells.append(cell)
        last = max(columns.values(), key=len)[-1]
        cost = f"{last['evaluations']} + {last['gradients']}"
        print(f"| {method} | {steps} | " + " | ".join(cells) + f" | {cost} |")
    return found


def curved(row: dict) -> bool:
    return row["steps"] in CURVES.get(row["method"], [])


tabulate("means over the seeds", [row for row in rows if not curved(row)])
first = [row for row in rows if row["seed"] == 0]
tabulate("cost, seed 0", [row for row in first if row["method"] in CURVES])

# ---- quality against cost, seed 0 --------------------------------------------------------------
figure, axes = plt.subplots(2, (len(options.parts) + 1) // 2, figsize=(20, 9), squeeze=False,
                            layout="constrained")  # fmt: skip
others = {row["method"]: None for row in first if row["method"] not in ("exact draws", *CURVES)}
for ax, name in zip(axes.flat, options.parts, strict=False):
    here = [row for row in first if row["part"] == name]
    for method in CURVES:
        points = [row for row in here if row["method"] == method]
        points.sort(key=lambda row: row["evaluations"] + row["gradients"])
        costs = [row["evaluations"] + row["gradients"] for row in points]
        ax.plot(
            costs,
            [max(row["energy"], 3e-3) for row in points],
            marker="o",
            linewidth=2,
            label=method,
        )
    for row in here:
        cost, energy = row["evaluations"] + row["gradients"], max(row["energy"], 3e-3)
        if row["method"] == "exact draws":
            ax.axhline(energy, color="k", linestyle=":", linewidth=0.8)
        elif row["method"] not in CURVES and "a call" not in row["method"]:
            at = list(others).index(row["method"])
            ax.scatter(
                cost, energy, s=50, color=f"C{at}", marker="xs*P"[at % 4], label=row["method"]
            )
    ax.set(title=name, xscale="log", yscale="log", xlabel="evaluations and gradients")
for row in axes:
    row[0].set_ylabel("energy distance to exact draws")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right")
figure.savefig(f"{options.output}.png", dpi=70)
