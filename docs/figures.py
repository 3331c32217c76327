"""Draws the figures of the docs that come from no example: schedules, grids, methods of the solver, a film of fills.

    python docs/figures.py                        # seconds; writes docs/content/images

Nothing is trained: schedules and grids are formulas, the solver is asked for the exact flow of a finite data set, and
the holes are filled by the network that comes with the package.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler

from fm_ext.data import load_images
from fm_ext.hub import FlowModel, to_grid, to_pictures
from fm_ext.mask import RandomBox
from fm_ext.models import EmpiricalVelocityModel
from fm_ext.path.scheduler import ShiftedScheduler, get_scheduler
from fm_ext.solver import ODESolver, cosine_grid, karras_grid, shifted_grid, uniform_grid

SCHEDULES = ("cond_ot", "cosine", "iddpm_cosine", "linear_vp", "vp", "sigmoid", "edm")
METHODS = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}  # evaluations a step


def draw_schedules(folder: Path) -> None:
    """The share of data and of source in the state, and the path of both."""
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    figure, (data, source, both) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    schedules = {name: get_scheduler(name) for name in SCHEDULES}
    schedules["shifted, 3"] = ShiftedScheduler(CondOTScheduler(), shift=3.0)
    for name, scheduler in schedules.items():
        out = scheduler(t)
        data.plot(t, out.alpha_t)
        source.plot(t, out.sigma_t)
        both.plot(out.sigma_t, out.alpha_t, label=name)
    data.set(title=r"$\alpha_t$, the share of data", xlabel="t")
    source.set(title=r"$\sigma_t$, the share of the source", xlabel="t")
    both.set(title="both", xlabel=r"$\sigma_t$", ylabel=r"$\alpha_t$", aspect="equal")
    both.legend(loc="center left", bbox_to_anchor=(1.05, 0.5), frameon=False)
    figure.savefig(folder / "schedulers.png", dpi=90)


def draw_grids(folder: Path) -> None:
    """Ten steps of each grid."""
    grids = {
        "uniform_grid(10)": uniform_grid(10),
        "shifted_grid(10, shift=3.0)": shifted_grid(10, shift=3.0),
        "cosine_grid(10)": cosine_grid(10),
        "karras_grid(10)": karras_grid(10),
    }
    figure, axis = plt.subplots(figsize=(9, 1.9), layout="constrained")
    for row, times in enumerate(grids.values()):
        axis.plot(times, torch.full_like(times, -row), "|-", markersize=14)
    axis.set(xlabel="t: source at 0, data at 1", yticks=range(0, -len(grids), -1), ylim=(-3.6, 0.6))
    axis.set_yticklabels(list(grids))
    figure.savefig(folder / "grids.png", dpi=90)


def draw_methods(folder: Path, samples: int) -> None:
    """The error of fixed-step methods against their evaluations, on the exact flow of two moons."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.pi * torch.linspace(0, 1, 200, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    data = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper]) - torch.tensor([0.5, 0.25])
    solver = ODESolver(EmpiricalVelocityModel(data, CondOTScheduler(), bandwidth=0.1))
    noise = torch.randn(samples, 2, dtype=torch.float64, generator=generator)
    exact = solver.sample(noise, method="dopri5", atol=1e-9, rtol=1e-9)
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    print("root mean square error      " + "".join(f"{n:10d}" for n in (12, 24, 48, 96)))
    for method, each in METHODS.items():
        errors = []
        for evaluations in (12, 24, 48, 96):
            ends = solver.sample(noise, method=method, steps=evaluations // each)
            errors.append((ends - exact).square().mean().sqrt().item())
        axis.loglog((12, 24, 48, 96), errors, ".-", label=method)
        print(f"{method:28}" + "".join(f"{error:10.1e}" for error in errors))
    axis.set(xlabel="evaluations of the velocity", ylabel="root mean square error")
    axis.set_xticks((12, 24, 48, 96), labels=("12", "24", "48", "96"))
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(folder / "methods.png", dpi=90)


def draw_film(folder: Path, steps: int) -> None:
    """Eight test digits with a hole, in columns, and four fills of each on their way from noise."""
    generator = torch.Generator().manual_seed(1)
    digits = Path(__file__).parents[1] / "examples/data/mnist"
    image, _ = load_images(str(digits), limit=8)
    mask = RandomBox(area=(0.2, 0.3))(len(image), image.shape[-2:], generator=generator)
    holes = image.masked_fill(mask, 0.0)
    states = []
    FlowModel.from_pretrained("mnist").fill(
        image,
        mask,
        fills=4,
        method="euler",
        steps=steps,
        generator=generator,
        callback=lambda _, state: states.append(state.clamp(-1, 1)),
    )
    frames = [to_grid(to_pictures(torch.cat([image, holes, state])), columns=8) for state in states]
    frames = [frame.resize((2 * frame.width, 2 * frame.height), 0) for frame in frames]
    durations = [80] * (len(frames) - 1) + [2000]
    frames[0].save(
        folder / "fill.gif", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )


def main(folder: Path, samples: int = 500, steps: int = 24) -> None:
    draw_schedules(folder)
    draw_grids(folder)
    draw_methods(folder, samples)
    draw_film(folder, steps)
    plt.close("all")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "content/images")
