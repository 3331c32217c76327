"""How each network of diffusers is called, and what its answer means: `Convention`, and `CONVENTIONS`, one row a class.

`python -m fm_ext.models.conventions` prints the table that the documentation shows.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convention:
    r"""What must be converted between a network of diffusers and a velocity model of flow_matching.

    diffusers counts noise, $\sigma = 1 - t$, and most of its flows answer with noise minus data.

    Args:
        answer: what the network answers with; "scheduler" where the pipeline's scheduler decides: noise minus data
            under one of flows, else its `prediction_type` on its table of betas.
        time: whether the network's time grows with the "noise" or with the "data".
        time_scale: what it is multiplied by; where the scheduler decides on the answer, it decides on the time too.
        time_scale_key: entry of the network's configuration by which it is multiplied further.
        x: the network's name for the state.
        t: its name for the time.
        conditions: its names for the conditions, all of which a call must have.
        layout: how it takes the state: an "image" `(batch, channel, height, width)`; "packed", patches of 2x2 as
            `(batch, height / 2 * width / 2, 4 * channel)`; or "frames", a list of `(channel, 1, height, width)`.
        positions: what the wrapper makes of the state's and the conditions' shapes, by the network's names.
        lists: conditions that the network takes as a list of one tensor a sample.
        guidance: its name for the scale of guidance where its configuration has `guidance_embeds`; None where it
            cannot embed one.
        null: what stands for "no condition": by condition, the entry of the configuration that is its class number.
        sigmas: the noise levels that the pipeline asks for: the "scheduler"'s own, or "uniform" ones from 1 to 1 / n.
        patch: side of what dynamic shifting counts as one token; None for the configuration's `patch_size`.
        note: what the table says besides.
    """

    answer: Literal["noise - data", "data - noise", "scheduler"] = "noise - data"
    time: Literal["noise", "data"] = "noise"
    time_scale: float = 1000.0
    time_scale_key: str | None = None
    x: str = "hidden_states"
    t: str = "timestep"
    conditions: tuple[str, ...] = ()
    layout: Literal["image", "packed", "frames"] = "image"
    positions: tuple[Literal["img_ids", "txt_ids", "img_shapes"], ...] = ()
    lists: tuple[str, ...] = ()
    guidance: str | None = None
    null: tuple[tuple[str, str], ...] = ()
    sigmas: Literal["scheduler", "uniform"] = "scheduler"
    patch: int | None = 2
    note: str = ""


CONVENTIONS: dict[str, Convention] = {
    "AuraFlowTransformer2DModel": Convention(
        time_scale=1.0, conditions=("encoder_hidden_states",), patch=None
    ),
    "DiTTransformer2DModel": Convention(
        answer="scheduler",
        conditions=("class_labels",),
        null=(("class_labels", "num_embeds_ada_norm"),),
        patch=None,
        note="a learned variance is dropped",
    ),
    "FluxTransformer2DModel": Convention(
        time_scale=1.0,
        conditions=("encoder_hidden_states", "pooled_projections"),
        layout="packed",
        positions=("img_ids", "txt_ids"),
        guidance="guidance",
        sigmas="uniform",
    ),
    "Lumina2Transformer2DModel": Convention(
        answer="data - noise",
        time="data",
        time_scale=1.0,
        conditions=("encoder_hidden_states", "encoder_attention_mask"),
        sigmas="uniform",
        note="`cfg_normalization` of the pipeline is not done",
    ),
    "QwenImageTransformer2DModel": Convention(
        time_scale=1.0,
        conditions=("encoder_hidden_states", "encoder_hidden_states_mask"),
        layout="packed",
        positions=("img_shapes",),
        sigmas="uniform",
        note="the pipeline brings each token of a guided answer to the length of the conditional one; this is not done",
    ),
    "SD3Transformer2DModel": Convention(
        conditions=("encoder_hidden_states", "pooled_projections"), patch=None
    ),
    "SanaTransformer2DModel": Convention(
        time_scale_key="timestep_scale",
        conditions=("encoder_hidden_states", "encoder_attention_mask"),
        patch=None,
        note="a learned variance is dropped; Sana-Sprint, which embeds guidance, is no flow and is refused",
    ),
    "UNet2DConditionModel": Convention(
        answer="scheduler", x="sample", conditions=("encoder_hidden_states",), patch=1
    ),
    "UNet2DModel": Convention(answer="scheduler", x="sample", patch=1),
    "ZImageTransformer2DModel": Convention(
        answer="data - noise",
        time="data",
        time_scale=1.0,
        x="x",
        t="t",
        conditions=("cap_feats",),
        layout="frames",
        lists=("cap_feats",),
        sigmas="uniform",
        note="the pipeline's `guidance_scale` is our `weight`, one less than ours",
    ),
}
"""The conventions by the name of the network's class; a row that is added is known from then on."""


def as_markdown() -> str:
    """The table of `CONVENTIONS`, as the documentation has it."""
    columns = (
        *("network", "answers with", "its time", "state", "conditions", "made for it"),
        *("embedded guidance", "pipeline's sigmas", "note"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in CONVENTIONS.items():
        scale = f"{row.time_scale:g} " if row.time_scale != 1 else ""
        scale += f"`{row.time_scale_key}` " if row.time_scale_key else ""
        time = f"{scale}{'(1 - t)' if row.time == 'noise' else 't'}"
        answer = row.answer
        if answer == "scheduler":
            time, answer = f"{time} or the index in the table", "what the scheduler says"
        embedded = f"`{row.guidance}`" if row.guidance else ""
        conditions = ", ".join(f"`{condition}`" for condition in row.conditions)
        made = ", ".join(f"`{position}`" for position in row.positions)
        state = f"`{row.x}`, {row.layout}"
        cells = (
            *(f"`{name}`", answer, time, state, conditions, made, embedded),
            *(row.sigmas, row.note),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
