"""Draws the figures of the docs that come from no example: of schedules, solvers and shipped networks, and four films.

    python docs/figures.py                        # about a minute of one core; writes docs/content/images
    python docs/figures.py methods transport      # some of them

Schedules and grids are formulas, the solver is asked for the exact flow of a finite data set, and digits and
portraits come from the networks of the package. Two small networks in the plane are trained on the spot.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.path.scheduler import CondOTScheduler
from PIL import Image

from fm_ext.coupling import IndependentCoupling, OptimalTransport
from fm_ext.data import load_images
from fm_ext.hub import FlowModel, to_grid, to_pictures
from fm_ext.loss import velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.models import MLP, EmpiricalVelocityModel, GuidedVelocityModel
from fm_ext.path import CoupledProbPath
from fm_ext.path.scheduler import (
    CosineScheduler,
    ScheduleTransformedModel,
    ShiftedScheduler,
    get_scheduler,
)
from fm_ext.solver import ODESolver, cosine_grid, karras_grid, shifted_grid, uniform_grid

DATA = Path(__file__).parents[1] / "examples" / "data"
IMAGES = Path(__file__).parent / "content" / "images"

SCHEDULES = ("cond_ot", "cosine", "iddpm_cosine", "linear_vp", "vp", "sigmoid", "edm")
MASKS = (CenterBox(), RandomBox(), FreeForm(), Irregular(), Hybrid())
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


def moons(count: int) -> torch.Tensor:
    """Points that are evenly spread on two half circles, float64."""
    angle = torch.pi * torch.linspace(0, 1, count // 2, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    return torch.cat([upper, torch.tensor([1.0, 0.5]) - upper]) - torch.tensor([0.5, 0.25])


def draw_methods(folder: Path, samples: int = 500) -> None:
    """The error of fixed-step methods against their evaluations, on the exact flow of two moons."""
    generator = torch.Generator().manual_seed(0)
    data = moons(400)
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


def save_film(frames: list[Image.Image], file: Path, milliseconds: int = 80) -> None:
    """A GIF that stands still for two seconds at its end."""
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    frames[0].save(
        file, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )


def to_frame(images: torch.Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Images in about [-1, 1] as a grid, enlarged."""
    grid = to_grid(to_pictures(images.clamp(-1, 1)), columns=columns)
    return grid.resize((scale * grid.width, scale * grid.height), Image.Resampling.NEAREST)


def some_images(name: str, count: int) -> torch.Tensor:
    """Test images of a shipped data set, drawn once by a fixed seed and not chosen."""
    images, _ = load_images(str(DATA / name))
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]]


def draw_fill(folder: Path, steps: int = 24) -> None:
    """Eight test digits with a hole, in columns, and four fills of each on their way from noise."""
    generator = torch.Generator().manual_seed(1)
    image, _ = load_images(str(DATA / "mnist"), limit=8)
    mask = RandomBox(area=(0.2, 0.3))(len(image), image.shape[-2:], generator=generator)
    above = torch.cat([image, image.masked_fill(mask, 0.0)])
    frames = []
    FlowModel.from_pretrained("mnist").fill(
        image,
        mask,
        fills=4,
        method="euler",
        steps=steps,
        generator=generator,
        callback=lambda _, state: frames.append(to_frame(torch.cat([above, state]), columns=8)),
    )
    save_film(frames, folder / "fill.gif")


def draw_fills(folder: Path, steps: int | None = None) -> None:
    """Test digits and portraits at random, a kind of mask each, and four fills by the networks of the package."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.3), layout="constrained")
    for axis, name in zip(axes, ("mnist", "portraits"), strict=True):
        image, masks = some_images(name, len(MASKS)), []
        for seed, kind in enumerate(MASKS):
            generator = torch.Generator().manual_seed(seed)
            masks.append(kind(1, image.shape[-2:], generator=generator))
        mask = torch.cat(masks)
        fills = FlowModel.from_pretrained(name).fill(
            image, mask, fills=4, steps=steps, generator=torch.Generator().manual_seed(0)
        )
        cells = torch.stack([image, image.masked_fill(mask, 0), *fills], 1)
        grid = to_grid(to_pictures(cells.flatten(0, 1)), columns=cells.shape[1])
        axis.imshow(grid, extent=(0, 6, len(image), 0), interpolation="nearest", cmap="gray")
        axis.set_xticks([0.5, 1.5, 4], ["original", "hole", "four fills"])
        axis.set_yticks([k + 0.5 for k in range(len(MASKS))], [type(m).__name__ for m in MASKS])
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
    figure.savefig(folder / "fills.png", dpi=90)


def draw_portraits(folder: Path, steps: int | None = None) -> None:
    """Twenty test portraits at random, of designs that the network has not seen, and two fills of each."""
    image = some_images("portraits", 20)
    generator = torch.Generator().manual_seed(0)
    mask = Hybrid()(len(image), image.shape[-2:], generator=generator)
    fills = FlowModel.from_pretrained("portraits").fill(
        image, mask, fills=2, steps=steps, generator=generator
    )
    rows = [row.split(10) for row in (image, image.masked_fill(mask, 0), *fills)]
    cells = torch.cat([torch.cat(bank) for bank in zip(*rows, strict=True)])
    to_grid(to_pictures(cells), columns=10).save(folder / "portraits.png")


def draw_translate(folder: Path, steps: int = 24) -> None:
    """Eight test garments, and two digits that each of them becomes, from other noise."""
    garments, _ = load_images(str(DATA / "fashion_mnist"), limit=8)
    flow = FlowModel.from_pretrained("garments_to_digits")
    frames = [to_frame(garments.repeat(3, 1, 1, 1), columns=8)] * 10
    flow.translate(
        garments.repeat(2, 1, 1, 1),
        method="euler",
        steps=steps,
        generator=torch.Generator().manual_seed(0),
        callback=lambda _, state: frames.append(to_frame(torch.cat([garments, state]), columns=8)),
    )
    save_film(frames, folder / "translate.gif")


def draw_generate(folder: Path, steps: int = 30) -> None:
    """The same noise to the same ten digits: above on straight lines, below on the cosine schedule."""
    flow = FlowModel.from_pretrained("mnist")
    guided = GuidedVelocityModel(flow.velocity_model, guidance_scale=3.0)
    noise = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    known = {"label": torch.arange(10), "mask": torch.ones_like(noise, dtype=torch.bool)}
    ways = []
    for model in (guided, ScheduleTransformedModel(guided, flow.scheduler, CosineScheduler())):
        grid = {"time_grid": uniform_grid(steps), "return_intermediates": True}
        ways.append(ODESolver(model).sample(noise, method="midpoint", **grid, **known))
    frames = [to_frame(torch.cat(states), columns=10) for states in zip(*ways, strict=True)]
    frames = [
        frame.point(lambda grey: grey // 17 * 17) for frame in frames
    ]  # 16 greys: half as large
    save_film(frames, folder / "generate.gif")


def draw_transport(folder: Path, training_steps: int = 2000, steps: int = 40) -> None:
    """Points on a circle to two moons, by a flow of independent pairs and by one of optimal transport."""
    torch.manual_seed(0)

    def circle(count: int) -> torch.Tensor:
        angle = 2 * torch.pi * torch.rand(count)
        points = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
        return points + 0.1 * torch.randn(count, 2)

    targets = 1.5 * moons(2000).float()
    start = circle(400)
    ways = {}
    for name, coupling in (
        ("independent pairs", IndependentCoupling()),
        ("optimal transport", OptimalTransport()),
    ):
        path = CoupledProbPath(CondOTProbPath(), coupling)
        model = MLP(dim=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(training_steps):
            x_1 = targets[torch.randint(len(targets), (256,))]
            sample = path.sample(circle(256), x_1, torch.rand(256))
            optimizer.zero_grad()
            velocity_loss(model(x=sample.x_t, t=sample.t), sample).backward()
            optimizer.step()
        grid = {"time_grid": uniform_grid(steps), "return_intermediates": True}
        ways[name] = ODESolver(model).sample(start, method="midpoint", **grid)
    frames = []
    colours = torch.atan2(start[:, 1], start[:, 0])
    for step in range(steps + 1):
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.3), dpi=80, layout="constrained")
        for axis, (name, states) in zip(axes, ways.items(), strict=True):
            axis.plot(*states[: step + 1, :60].unbind(2), color="0.8", linewidth=0.6, zorder=0)
            axis.scatter(*states[step].T, c=colours, s=5, cmap="twilight")
            axis.set(title=name, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
            axis.set(xticks=[], yticks=[], xlabel=f"t = {step / steps:.2f}")
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        frames.append(image.quantize(64, dither=Image.Dither.NONE))
        plt.close(figure)
    save_film(frames, folder / "transport.gif")


FIGURES = {
    "schedules": draw_schedules,
    "grids": draw_grids,
    "methods": draw_methods,
    "fills": draw_fills,
    "portraits": draw_portraits,
    "fill": draw_fill,
    "translate": draw_translate,
    "generate": draw_generate,
    "transport": draw_transport,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of {', '.join(FIGURES)}")
    parser.add_argument("--output", type=Path, default=IMAGES)
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in FIGURES]:
        parser.error(f"no figure is called {unknown[0]!r}; there are {', '.join(FIGURES)}")
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.names or FIGURES:
        FIGURES[name](args.output)
        plt.close("all")
