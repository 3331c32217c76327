"""The model card, written from what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

LICENCE = (
    "Sampling imports [flow_matching](https://github.com/facebookresearch/flow_matching), which is CC BY-NC 4.0, so it "
    "is non-commercial. fm_ext is MIT."
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure that was measured, with its interval where there is one.

    Args:
        name: what it is, with its unit.
        value: the figure.
        low: lower end of the interval; None for none.
        high: upper end.
        on: the data that it was measured on, and the task.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    on: str = ""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(
                f"`low` and `high` must both be given, or neither; got {self.low}, {self.high}."
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model card tells that weights do not.

    Args:
        title: for example "Digits".
        description: what the model does, in a sentence or two.
        data: what it was trained on.
        data_licence: the licence of that.
        command: that trains it again.
        updates: optimiser steps.
        seconds: of training.
        machine: that took them.
        metrics: what was measured, by which command is said in `command`.
        limits: what it cannot do.
        licence: identifier of the weights' licence on the hub.
    """

    title: str = "A flow"
    description: str = ""
    data: str = ""
    data_licence: str = ""
    command: str = ""
    updates: int | None = None
    seconds: float | None = None
    machine: str = ""
    metrics: tuple[Metric, ...] = ()
    limits: str = ""
    licence: str = "other"


def read_measured(config: Mapping[str, Any]) -> Measured:
    """What config.json holds of it.

    Raises:
        TypeError: for fields that it has not.
        ValueError: for an interval with one end.
    """
    given = dict(config)
    metrics = tuple(Metric(**metric) for metric in given.pop("metrics", ()))
    return Measured(**given, metrics=metrics)


def _autoencoder(codec: Mapping[str, Any] | None) -> str:
    if codec is None:
        return ""
    cells = f"{codec['factor']}x{codec['factor']} pixels a cell"
    return f"{codec['vae']['class']}, {cells}; samples are decoded from latents"


def write_card(measured: Measured, config: Mapping[str, Any], parameters: int) -> ModelCard:
    """The card as markdown with the hub's metadata.

    Args:
        measured: what is told.
        config: of the folder.
        parameters: number of weights.
    """
    tasks, size = config["tasks"], "x".join(map(str, config["shape"]))
    data = ModelCardData(
        library_name="fm_ext",
        license=measured.licence,
        license_name="see-below" if measured.licence == "other" else None,
        tags=["flow-matching", *("image-inpainting" for _ in tasks if _ == "fill")],
        pipeline_tag="unconditional-image-generation" if "sample" in tasks else "image-to-image",
    )
    calls = {
        "sample": "images = flow.sample(16)  # in [-1, 1]",
        "fill": "filled = flow.fill(image, mask)  # mask: bool, True = missing",
        "translate": "translated = flow.translate(image)",
    }
    lines = [f"# {measured.title}", ""]
    lines += [measured.description, ""] if measured.description else []
    lines += ["```python", "from fm_ext.hub import FlowModel", ""]
    lines += ['flow = FlowModel.from_pretrained("this folder, or its name on the hub")']
    lines += [*(calls[task] for task in tasks), "```", ""]
    lines += ["| | |", "|---|---|"]
    facts = {
        "samples": f"{size}, values in {config['data_range']}",
        "classes": ", ".join(config["classes"] or ()),
        "autoencoder": _autoencoder(config["codec"]),
        "weights": f"{parameters:,}" + (f", {config['stored_as']}" if config["stored_as"] else ""),
        "trained on": measured.data,
        "licence of the data": measured.data_licence,
        "updates": "" if measured.updates is None else f"{measured.updates:,}",
        "seconds": "" if measured.seconds is None else f"{measured.seconds:,.0f}",
        "machine": measured.machine,
        "sampled by": "; ".join(
            f"{task}: {', '.join(f'{k} {v}' for k, v in how.items())}"
            for task, how in config["samplers"].items()
        ),
        "limits": measured.limits,
    }
    lines += [f"| {name} | {fact} |" for name, fact in facts.items() if fact]
    lines += [""]
    if measured.metrics:
        lines += ["| measured | on | value | interval |", "|---|---|---|---|"]
        for m in measured.metrics:
            interval = "" if m.low is None else f"{m.low:.3g} to {m.high:.3g}"
            lines += [f"| {m.name} | {m.on} | {m.value:.3g} | {interval} |"]
        lines += [""]
    else:
        lines += ["Nothing was measured of this model.", ""]
    if measured.command:
        lines += ["Trained and measured by", "", "```bash", measured.command, "```", ""]
    lines += ["## Licence", "", LICENCE, ""]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))
