"""The controls of a sampler, and a run of it that shows how far it is and can be stopped."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import PIL.Image
import streamlit as st
import torch
from torch import Tensor

from fm_ext.app.picture import enlarge
from fm_ext.hub import FlowModel, to_grid, to_pictures
from fm_ext.hub.flow import JUMPS
from fm_ext.solver.inpainting.solver import METHODS

FRAMES = 40


@dataclass(frozen=True)
class Sampling:
    """What the controls say.

    Args:
        seed: of the noise.
        arguments: of `FlowModel`'s methods, but for the next two.
    """

    seed: int
    arguments: dict[str, Any]

    def run(self, progress: "Progress") -> dict[str, Any]:
        """The arguments, with a generator of its own and the callback."""
        generator = torch.Generator().manual_seed(self.seed)
        return {**self.arguments, "generator": generator, "callback": progress}


def choose_sampling(name: str, flow: FlowModel, task: str) -> Sampling:
    """Controls for solver, steps, class, guidance and seed, set to what the model was measured with."""
    label = None
    if flow.classes is not None:
        label = st.selectbox(
            "Class",
            [None, *flow.classes],
            format_func=lambda label: "any" if label is None else label,
            key=f"{task} class {name}",
            help="What the picture shall show; any: the model chooses.",
        )
    seed = st.number_input(
        "Seed",
        0,
        2**31 - 1,
        0,
        key=f"{task} seed",
        help="The same seed and controls give the same pictures; another seed gives others.",
    )
    with st.expander("Solver"):
        own, *others = flow.methods(task)
        if flow.masked:  # training-free ones are chosen beside it
            others = [method for method in others if method not in METHODS]
        method, steps = choose_method(name, flow, task, [own, *others])
        scale = _choose_guidance(name, flow, task, label, method)
    return Sampling(
        int(seed), {"method": method, "steps": steps, "label": label, "guidance_scale": scale}
    )


def _choose_guidance(
    name: str, flow: FlowModel, task: str, label: str | None, method: str
) -> float:
    """A control for the scale; jumps are guided by 1 or more, on classes, if the network can be."""
    on_known = label is None and task == "fill" and flow.hides_known and method != JUMPS
    on_class = label is not None and (method != JUMPS or flow.takes_scale)
    if not (on_class or on_known):
        return 1.0
    lowest = float(method == JUMPS)
    scale = max(lowest, float(flow.samplers[task].guidance_scale))
    return st.slider(
        "Guidance",
        lowest,
        max(8.0, scale),
        scale,
        0.5,
        key=f"{task} guidance {name} {lowest:g}",
        help="How strongly the class, or without one the known pixels, pull: 1 is the model as it is, more is clearer "
        "and less varied.",
    )


def choose_method(
    name: str, flow: FlowModel, task: str, among: Sequence[str], where: str = ""
) -> tuple[str, int | None]:
    """Controls for a solver and its steps; None steps for an adaptive one."""
    method = str(
        st.selectbox(
            f"Solver{where}",
            among,
            key=f"{task} solver {name}{where}",
            help="What walks from the start to the picture; the first is the usual one.",
        )
    )
    usual = flow.sampler(task, method).steps
    if usual is None:
        return method, None
    steps = st.slider(
        f"Steps{where}",
        1,
        max(100, usual),
        usual,
        key=f"{task} steps {name} {method}{where}",
        help="More steps take longer and follow the flow more exactly.",
    )
    return method, steps


class Progress:
    """A callback of samplers that moves a bar and keeps frames of the way.

    Args:
        bar: what `st.progress` gave; moving it is also where a run ends that was stopped.
    """

    def __init__(self, bar: Any):
        self.bar, self.frames, self.told = bar, [], -1.0

    def __call__(self, fraction: float, state: Tensor) -> None:
        self.bar.progress(min(fraction, 1.0), f"{fraction:.0%}")
        if fraction >= self.told + 1 / FRAMES or (fraction == 1 and self.told < 1):
            self.told = fraction
            self.frames.append(state.clamp(-1, 1))

    def film(self) -> bytes:
        """The frames as an animated GIF, all samples side by side."""
        grids = []
        for frame in self.frames:
            pictures = to_pictures(frame)
            grids.append(to_grid(pictures, columns(len(pictures))))
        return to_gif(grids)


@contextmanager
def running(key: str) -> Iterator[Progress]:
    """Shows a bar and a button that stops while its body runs; an error of the body becomes a sentence on the page.

    A click on any control makes Streamlit run the page anew: it ends this run at the next move of the bar.

    Args:
        key: of the button.
    """
    place = st.empty()
    with place.container():
        bar = st.progress(0.0, "0%")
        st.button("Stop", key=f"stop {key}", help="Ends the run; nothing of it is kept.")
    st.session_state["interrupted"] = True
    failure = None
    try:
        yield Progress(bar)
    except (ValueError, TypeError, OSError) as error:
        failure = str(error)
    st.session_state["interrupted"] = False
    place.empty()
    if failure is not None:
        st.error(failure)


def columns(count: int) -> int:
    """Of a grid that is about a square."""
    return math.ceil(count**0.5)


def to_gif(frames: Sequence[PIL.Image.Image]) -> bytes:
    """An endless film of 3 seconds, which rests on its last frame."""
    first, *others = [enlarge(frame) for frame in frames]
    file = io.BytesIO()
    times = [max(20, 2000 // len(frames))] * len(others) + [1500]
    first.save(file, "GIF", save_all=True, append_images=others, duration=times, loop=0)
    return file.getvalue()
