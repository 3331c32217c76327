"""Flows and diffusion models of the library diffusers as velocity models: `from_diffusers`."""

import copy
import importlib
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flow_matching.path.scheduler import CondOTScheduler, Scheduler
from jaxtyping import Float, Float64
from torch import Tensor, nn

from fm_ext.models.conventions import CONVENTIONS, Convention
from fm_ext.models.guidance import GuidedVelocityModel
from fm_ext.models.prediction import PredictionVelocityModel
from fm_ext.path.scheduler.beta_table import BetaTableScheduler
from fm_ext.path.scheduler.shifted import ShiftedScheduler
from fm_ext.path.scheduler.transform import ScheduleTransformedModel
from fm_ext.utils.inputs import check_answer, check_extras, open_shared, sample_time
from fm_ext.utils.model_wrapper import ModelWrapper

PREDICTIONS = {"epsilon": "epsilon", "sample": "x_1", "v_prediction": "x_1"}
"""diffusers' `prediction_type` as our `PredictionVelocityModel` calls it; the last is turned into the data first."""


def from_diffusers(
    source: Any,
    *,
    scheduler: Any = None,
    guidance_scale: float | None = None,
    null: Mapping[str, Any] | None = None,
    convention: Convention | None = None,
    **loading: Any,
) -> "DiffusersVelocityModel":
    r"""A network of diffusers as a velocity model on the straight path: data minus noise, time from noise to data.

        v = from_diffusers(pipeline, guidance_scale=4.5, null={"encoder_hidden_states": empty, ...})
        noise = torch.randn(1, 16, 128, 128)
        latents = ODESolver(v).sample(v.start(noise, 28), method="euler", time_grid=v.time_grid(28, noise.shape),
                                      encoder_hidden_states=prompt, pooled_projections=pooled)

    What is converted is a row of `CONVENTIONS`: sign, time and its scale, packing, position ids, guidance. A DDPM's
    network, whatever it predicts, is asked through `PredictionVelocityModel` on the `BetaTableScheduler` of its
    scheduler's table, and `ScheduleTransformedModel` brings it to the straight path, so Euler's method there is DDIM.
    What a pipeline does besides (clipping of predictions, rescaled guidance) is not done.

    Args:
        source: a network; a pipeline, whose `transformer` or `unet` and whose scheduler are taken; or a folder of one
            of the two, for which diffusers must be installed.
        scheduler: diffusers' scheduler, which knows the shift of a flow, and the table and the prediction of a DDPM; if
            None the pipeline's, or that of the folder.
        guidance_scale: 1 is the plain conditional model. Where the network embeds the scale it gets it, in one
            evaluation; elsewhere `GuidedVelocityModel` evaluates twice.
        null: what stands for no condition, by the network's names, as `GuidedVelocityModel` takes it: the embeddings of
            an empty prompt. If None the class that means none, for a network of classes.
        convention: how the network is called, for a class that `CONVENTIONS` does not have.
        **loading: for a folder, handed to the network's `from_pretrained`: `torch_dtype`, `variant`, ...

    Raises:
        TypeError: for a class without a convention; for `null` beside an embedded scale.
        ValueError: for a network whose answer its scheduler decides on, without one; for a schedule that runs the other
            way; for a network that embeds guidance against its convention; for a folder in which no network is found.
        ImportError: for a folder without diffusers.
    """
    network, found = _open(source, loading)
    scheduler = found if scheduler is None else scheduler
    row = convention or CONVENTIONS.get(class_name(network))
    if row is None:
        raise TypeError(
            f"`source` must be one of {', '.join(CONVENTIONS)}, or come with a `convention`; got "
            f"{class_name(network)}. Write from_diffusers(network, convention=Convention(x='hidden_states', "
            "t='timestep', conditions=('encoder_hidden_states',), time_scale=1000)), from fm_ext.models; its arguments "
            "say what can differ."
        )
    config = config_of(scheduler)
    if row.answer == "scheduler" and scheduler is None:
        raise ValueError(
            f"`scheduler` must be given for a {class_name(network)}, which may be a flow or a DDPM: write "
            "scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0) for a flow, or the pipeline's own."
        )
    if config.get("invert_sigmas"):
        raise ValueError(
            "`scheduler` must count noise from 1 to 0; got `invert_sigmas`. Set it to False and give a `convention` "
            "whose time grows with the data."
        )
    table = None
    if scheduler is not None and not _is_flow(scheduler):
        if row.answer != "scheduler":
            raise ValueError(
                f"`scheduler` must be one of flows for a {class_name(network)}; got {type(scheduler).__name__} with "
                f"prediction_type {config.get('prediction_type')!r}. Write FlowMatchEulerDiscreteScheduler()."
            )
        table = BetaTableScheduler(alphas_cumprod=scheduler.alphas_cumprod.double())
    embeds = bool(config_of(network).get("guidance_embeds"))
    if embeds and row.guidance is None:
        raise ValueError(
            f"`source` embeds guidance, which no {class_name(network)} known here does; Sana-Sprint does, and is no "
            "flow on straight lines. If yours is one, give a `convention` with guidance='guidance'."
        )
    if embeds and null is not None:
        raise TypeError(
            f"`null` must be None for this {class_name(network)}, which embeds the scale of guidance; for guidance by "
            "two evaluations besides, write GuidedVelocityModel(from_diffusers(...), true_cfg_scale, null=null)."
        )
    model: nn.Module = _Network(network, row, config, table, guidance_scale if embeds else None)
    if table is not None:
        kind = PREDICTIONS[config.get("prediction_type", "epsilon")]
        model = PredictionVelocityModel(model, table, kind)  # pyright: ignore[reportArgumentType]
        model = ScheduleTransformedModel(model, table, CondOTScheduler())
    if guidance_scale is not None and not embeds:
        if null is None:
            null = {name: config_of(network)[key] for name, key in row.null}
        model = GuidedVelocityModel(model, guidance_scale, null=null or None)
    return DiffusersVelocityModel(model, row, scheduler, table)


class DiffusersVelocityModel(ModelWrapper):
    """What `from_diffusers` makes: a velocity model that also knows where its pipeline starts and steps.

    Args:
        model: the velocity on the straight path, around a network of diffusers.
        convention: how that is called.
        scheduler: diffusers' scheduler; None if none is known.
        table: the schedule on which the network was trained, if it was trained as a DDPM; None for a flow.
    """

    def __init__(
        self,
        model: nn.Module,
        convention: Convention,
        scheduler: Any,
        table: BetaTableScheduler | None,
    ):
        super().__init__(model)
        self.convention, self.scheduler, self.table = convention, scheduler, table

    @property
    def network(self) -> nn.Module:
        """The network of diffusers."""
        inner = self.model
        while isinstance(inner, ModelWrapper):
            inner = inner.model
        return inner

    @property
    def schedule(self) -> Scheduler:
        """The straight path."""
        return CondOTScheduler()

    @property
    def answers(self) -> str:
        """A velocity."""
        return "velocity"

    def shift(self, shape: Sequence[int] | None = None) -> float:
        """By how much the pipeline divides the signal-to-noise ratio, `shift` of a `ShiftedScheduler`.

        Args:
            shape: of the states, `(batch, channel, height, width)`, where the scheduler's shift depends on it.

        Raises:
            ValueError: without a scheduler of flows, or without a shape that it needs.
        """
        config = config_of(self._flow_scheduler())
        if not config.get("use_dynamic_shifting"):
            return float(config.get("shift", config.get("flow_shift", 1.0)))
        mu = self._mu(config, shape)
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)

    def sampling_schedule(self, shape: Sequence[int] | None = None) -> Scheduler:
        """The straight path with the pipeline's shift: equal steps on it are the pipeline's, but for its last ones.

        `ScheduleTransformedModel(v, v.schedule, v.sampling_schedule())` steps so, and `CondOTProbPath` around a uniform
        time becomes the training of that shift by `AffineProbPath(v.sampling_schedule())`.

        Args:
            shape: as in `shift`.

        Raises:
            ValueError: as `shift`.
        """
        return ShiftedScheduler(CondOTScheduler(), self.shift(shape))

    def time_grid(
        self, steps: int, shape: Sequence[int] | None = None, **options: Any
    ) -> Float64[Tensor, " times"]:
        """The times on the straight path at which the pipeline's own scheduler steps, growing.

        They begin where its first noise level lies, and end at 1, or where the last level of its table lies if it ends
        there (`set_alpha_to_one=False`).

        Args:
            steps: `num_inference_steps`.
            shape: of the states, where the scheduler's shift depends on it.
            **options: handed to the scheduler's `set_timesteps` in the place of what the pipeline would say: `sigmas`,
                `mu`.

        Raises:
            ValueError: without a scheduler, or without a shape that it needs.
        """
        scheduler = copy.deepcopy(self._need_scheduler())
        config = config_of(scheduler)
        if self.table is None:
            if self.convention.sigmas == "uniform" and not config.get("use_flow_sigmas"):
                options.setdefault("sigmas", torch.linspace(1, 1 / steps, steps).tolist())
            if config.get("use_dynamic_shifting") and "mu" not in options:
                options["mu"] = self._mu(config, shape)
            scheduler.set_timesteps(steps, **options)
            return 1 - scheduler.sigmas.double().unique_consecutive()
        scheduler.set_timesteps(steps, **options)
        if hasattr(scheduler, "sigmas"):  # noise over data, down to 0
            return 1 / (1 + scheduler.sigmas.double().unique_consecutive())
        indices = scheduler.timesteps.double()
        below = indices[-1] - len(scheduler.alphas_cumprod) // steps  # where DDIM's last step goes
        if below >= 0:
            return self._ratios(torch.cat([indices, below[None]]))
        last = torch.tensor(float(getattr(scheduler, "final_alpha_cumprod", 1.0))).double().sqrt()
        end = last / (last + (1 - last**2).sqrt())
        return torch.cat([self._ratios(indices), end[None]])

    def start(
        self, noise: Float[Tensor, " batch *dim"], steps: int | None = None
    ) -> Float[Tensor, " batch *dim"]:
        """The state at the first time of the grid that the pipeline makes of `noise`.

        A flow starts from noise itself. A DDPM's pipeline takes noise for the last state of its table, which holds a
        little of the data; on the straight path that state is smaller.

        Args:
            noise: standard normal.
            steps: of the grid, on which the first time of a DDPM's depends; None for the table's last index.
        """
        if self.table is None:
            return noise
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps or len(scheduler.alphas_cumprod))
        if hasattr(scheduler, "sigmas"):
            return noise * (scheduler.init_noise_sigma / (1 + scheduler.sigmas[0]))
        at = self.table(self.table.time(scheduler.timesteps[0].double()))
        return noise / (at.alpha_t + at.sigma_t).to(noise.dtype)

    def _ratios(self, indices: Tensor) -> Tensor:
        assert self.table is not None
        at = self.table(self.table.time(indices))
        return at.alpha_t / (at.alpha_t + at.sigma_t)

    def _need_scheduler(self) -> Any:
        if self.scheduler is None:
            raise ValueError(
                "`scheduler` must be given to know the pipeline's steps: write "
                "from_diffusers(network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))."
            )
        return self.scheduler

    def _flow_scheduler(self) -> Any:
        scheduler = self._need_scheduler()
        if self.table is not None:
            raise ValueError(
                f"`scheduler` must be one of flows to have a shift; got {type(scheduler).__name__}, whose steps are "
                "in `time_grid`."
            )
        return scheduler

    def _mu(self, config: Mapping[str, Any], shape: Sequence[int] | None) -> float:
        """The pipelines' linear function of the number of tokens."""
        if shape is None:
            raise ValueError(
                "`shape` must be given where the shift depends on the size (`use_dynamic_shifting`): write "
                "time_grid(steps, noise.shape)."
            )
        patch = self.convention.patch or config_of(self.network)["patch_size"]
        tokens = (shape[-2] // patch) * (shape[-1] // patch)
        low, high = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (high - low)
        return config["base_shift"] + slope * (tokens - low)


class _Network(ModelWrapper):
    """A network of diffusers, asked by a row of `CONVENTIONS`; answers data minus noise, or what a DDPM predicts."""

    def __init__(
        self,
        network: nn.Module,
        row: Convention,
        scheduler_config: Mapping[str, Any],
        table: BetaTableScheduler | None,
        guidance_scale: float | None,
    ):
        super().__init__(network)
        self.row, self.table = row, table
        config = config_of(network)
        self.scale = row.time_scale
        if row.answer == "scheduler":
            self.scale = float(scheduler_config.get("num_train_timesteps", 1000))
        if row.time_scale_key is not None:
            self.scale *= config[row.time_scale_key]
        self.turns = table is not None and scheduler_config.get("prediction_type") == "v_prediction"
        self.embeds = bool(config.get("guidance_embeds"))
        self.guidance = guidance_scale
        inner: Any = getattr(network, "_orig_mod", network)  # torch.compile hides the signature
        own = {row.x, row.t, "return_dict", *row.positions}
        self._takes = frozenset(set(inspect.signature(inner.forward).parameters) - own)

    @property
    def takes(self) -> frozenset[str]:
        """The network's own names of conditions."""
        return self._takes

    def forward(
        self, x: Float[Tensor, " batch *dim"], t: Float[Tensor, "..."], **extras: Any
    ) -> Float[Tensor, " batch *dim"]:
        """The network's answer at `x` and `t`.

        Raises:
            TypeError: for a condition that is missing or that the network does not take.
            ValueError: for a state that cannot be packed, or extras of another length.
        """
        row, name = self.row, class_name(self.model)
        for extra in extras:
            if extra not in self.takes:
                raise TypeError(
                    f"`{extra}` is not taken by {name}, which takes {', '.join(sorted(self.takes))}."
                )
        missing = [condition for condition in row.conditions if extras.get(condition) is None]
        if self.embeds and self.guidance is None and extras.get(str(row.guidance)) is None:
            missing.append(str(row.guidance))
        if missing:
            advice = " or from_diffusers(..., guidance_scale=...)" * (missing[-1] == row.guidance)
            raise TypeError(
                f"`{missing[-1]}` is needed by {name} and was not given: solver.sample(..., {missing[-1]}=...){advice}."
            )
        inputs = open_shared(check_extras(extras, x))
        for condition in row.lists:
            if isinstance(inputs[condition], Tensor):
                inputs[condition] = list(inputs[condition].unbind())
        time = sample_time(t, x)
        if self.guidance is not None and self.embeds and inputs.get(str(row.guidance)) is None:
            inputs[str(row.guidance)] = x.new_full((len(x),), self.guidance, dtype=torch.float32)
        if self.table is not None:
            inputs[row.t] = self.table.index(time)
        else:
            inputs[row.t] = self.scale * (1 - time if row.time == "noise" else time)
        inputs[row.t] = inputs[row.t].to(
            torch.float64 if x.dtype == torch.float64 else torch.float32
        )
        inputs |= self._positions(x, inputs)
        answer = self.model(**{row.x: self._pack(x)}, **inputs, return_dict=False)[0]
        answer = self._unpack(answer, x)
        if answer.shape[1] == 2 * x.shape[1]:
            answer = answer[:, : x.shape[1]]
        answer = check_answer(answer, x, self.model)
        if self.turns and self.table is not None:
            at = self.table(time.double())
            alpha, sigma = (
                c.to(x.dtype).view(-1, *(1 for _ in x.shape[1:])) for c in (at.alpha_t, at.sigma_t)
            )
            return alpha * x - sigma * answer
        return answer if self.table is not None or row.answer == "data - noise" else -answer

    def _pack(self, x: Tensor) -> Any:
        if self.row.layout == "image":
            return x
        batch, channels, height, width = x.shape
        if self.row.layout == "frames":
            return list(x.unsqueeze(2).unbind())
        if height % 2 or width % 2:
            raise ValueError(
                f"`x` must have even sides for {class_name(self.model)}, whose tokens are 2x2; got {tuple(x.shape)}."
            )
        patches = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(batch, height * width // 4, 4 * channels)

    def _unpack(self, answer: Any, x: Tensor) -> Tensor:
        if self.row.layout == "image":
            return answer
        if self.row.layout == "frames":
            return torch.stack(list(answer)).squeeze(2)
        batch, _, height, width = x.shape
        patches = answer.view(batch, height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(batch, -1, height, width)

    def _positions(self, x: Tensor, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the network wants to know of the places of its tokens."""
        made: dict[str, Any] = {}
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        for name in self.row.positions:
            if name == "img_shapes":
                made[name] = [[(1, height, width)]] * len(x)
            elif name == "txt_ids":
                made[name] = x.new_zeros(inputs["encoder_hidden_states"].shape[1], 3)
            else:
                rows, columns = torch.arange(height), torch.arange(width)
                grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, columns)
                made[name] = grid.to(x)
        return made


def _open(source: Any, loading: dict[str, Any]) -> tuple[nn.Module, Any]:
    """The network and the scheduler, if any, of a network, a pipeline or a folder."""
    if isinstance(source, str | os.PathLike):
        return _load(Path(source).expanduser(), loading)
    if loading:
        raise TypeError(
            f"`{min(loading)}` is for loading a folder; `source` is a {type(source).__name__} already."
        )
    if isinstance(source, nn.Module):
        return source, None
    for name in ("transformer", "unet"):
        network = getattr(source, name, None)
        if isinstance(network, nn.Module):
            return network, getattr(source, "scheduler", None)
    raise TypeError(
        "`source` must be a network, a pipeline with a `transformer` or a `unet`, or a folder of one of them; got "
        f"{type(source).__name__}."
    )


def _load(folder: Path, loading: dict[str, Any]) -> tuple[nn.Module, Any]:
    diffusers = import_diffusers("a folder")
    places = [folder / "transformer", folder / "unet", folder]
    place = next((p for p in places if (p / "config.json").is_file()), None)
    if place is None:
        raise ValueError(
            f"`source` must be a folder with transformer/config.json, unet/config.json or config.json; {folder} has "
            "none. A name on the hub is for diffusers: from_diffusers(DiffusionPipeline.from_pretrained(name))."
        )
    name = json.loads((place / "config.json").read_text()).get("_class_name", "")
    if not hasattr(diffusers, name):
        raise ValueError(f"`source` must hold a network of diffusers; {place} holds {name!r}.")
    network = getattr(diffusers, name).from_pretrained(place, **loading)
    scheduler = None
    file = folder / "scheduler" / "scheduler_config.json"
    if file.is_file():
        kind = json.loads(file.read_text())["_class_name"]
        scheduler = getattr(diffusers, kind).from_pretrained(folder / "scheduler")
    return network, scheduler


def import_diffusers(what: str) -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(f"{what} needs diffusers: pip install 'fm_ext[diffusers]'") from error


def config_of(thing: Any) -> Mapping[str, Any]:
    """The configuration of one of diffusers' objects; of any other, its attributes."""
    if thing is None:
        return {}
    config = getattr(getattr(thing, "_orig_mod", thing), "config", None)
    return config if isinstance(config, Mapping) else vars(thing)


def class_name(network: nn.Module) -> str:
    return type(getattr(network, "_orig_mod", network)).__name__


def _is_flow(scheduler: Any) -> bool:
    config = config_of(scheduler)
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )
