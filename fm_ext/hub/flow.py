"""A trained flow with all that sampling needs: saved as a folder, loaded by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from flow_matching.path import AffineProbPath, ProbPath
from flow_matching.path.scheduler import Scheduler
from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

import fm_ext
from fm_ext.coupling import Coupling
from fm_ext.hub import card, folder
from fm_ext.models import (
    GuidedVelocityModel,
    LatentCodec,
    MaskedVelocityModel,
    MeanFlowModel,
    PredictionVelocityModel,
    UNetWrapper,
)
from fm_ext.path import MaskedProbPath
from fm_ext.path import ProbPath as ExtendedProbPath
from fm_ext.path.wrapper import nested_paths
from fm_ext.solver import (
    ExponentialSolver,
    InpaintingSolver,
    MeanFlowSolver,
    ODESolver,
    uniform_grid,
)
from fm_ext.solver.inpainting.solver import METHODS
from fm_ext.solver.methods import ADAPTIVE, FIXED, SCIPY
from fm_ext.utils.inputs import check_mask, check_whole, randn_like, repeat_samples
from fm_ext.utils.model_wrapper import ModelWrapper

Callback = Callable[[float, Tensor], None]
Label = int | str | Sequence[int | str] | Tensor
TASKS = ("sample", "fill", "translate")
ANCESTRAL, JUMPS = "ancestral", "jumps"
USUAL_STEPS = {ANCESTRAL: 16, JUMPS: 1} | dict.fromkeys(METHODS, 50)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a flow was sampled when it was measured.

    Args:
        method: of `ODESolver`; "ancestral", which is `ExponentialSolver` with eta = 1, for flows from noise; "jumps" of
            a `MeanFlowModel`; or one of `InpaintingSolver` for filling by a model trained on whole images.
        steps: at least 1; None for adaptive methods.
        guidance_scale: s of `GuidedVelocityModel`, or for jumps an input of the network; 1 is none.
    """

    method: str = "midpoint"
    steps: int | None = 8
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.steps is not None:
            object.__setattr__(self, "steps", check_whole("steps", self.steps, 1))
        if not isinstance(self.guidance_scale, (int, float)) or not math.isfinite(
            self.guidance_scale
        ):
            raise ValueError(
                f"`guidance_scale` must be a finite number; got {self.guidance_scale!r}."
            )


class FlowModel(ModelHubMixin):
    """A trained velocity model, its path, and how it is sampled.

        flow = FlowModel.from_pretrained("mnist")         # a shipped name, a folder, or owner/name on the hub
        images = flow.sample(16, label=3)                 # (16, channel, height, width), in [-1, 1]
        fills = flow.fill(image, mask, fills=4)           # (4, batch, channel, height, width)
        flow = FlowModel(trainer.ema_model, path, shape=(1, 28, 28))
        flow.save_pretrained("outputs/digits")            # config.json, model.safetensors, README.md
        flow.push_to_hub("owner/digits")

    What it can do (`tasks`) follows from the path: on a `MaskedProbPath` it fills; from noise it samples, and fills by
    a training-free method; from images (`source="image"`) it translates.

    A flow of latents has a `codec`: what is given and what comes back are images all the same, and known pixels come
    back bit for bit.

    Args:
        velocity_model: called as `velocity_model(x=x, t=t, **extras)`; what is saved are its weights, and its class and
            arguments by registered names.
        path: what it was trained on.
        shape: of one sample, `(channel, height, width)` for images; that of the images for a flow of latents.
        codec: between images and the latents that the model was trained on; None: it was trained on the samples
            themselves. To be saved, its autoencoder is one of diffusers' or of a registered class.
        tasks: among "sample", "fill" and "translate"; None: what follows from the path. A model of a masked path that
            has seen masks of the whole image may say "sample" too.
        source: "noise", or "image" for a path that starts from images.
        classes: names of the classes, in the order of the labels; None for a model without.
        samplers: by task, what it was measured with.
        data_range: what samples are cut to; None for data without ends.
        measured: what the card tells: `fm_ext.hub.Measured`.
        stored_as: dtype of the weights on disk, for example `torch.float16`; they are computed with in float32. None:
            as they are.

    Attributes:
        velocity_model: the velocity model.
        path: the path, `flow_matching.path.ProbPath`.
        scheduler: its scheduler.
    """

    def __init__(
        self,
        velocity_model: nn.Module,
        path: ProbPath,
        *,
        shape: Sequence[int],
        codec: LatentCodec | None = None,
        tasks: Sequence[str] | None = None,
        source: str = "noise",
        classes: Sequence[str] | None = None,
        samplers: Mapping[str, Sampler] | None = None,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
        measured: card.Measured | None = None,
        stored_as: torch.dtype | None = None,
    ):
        if not isinstance(velocity_model, nn.Module):
            raise TypeError(
                f"`velocity_model` must be a torch.nn.Module; got {type(velocity_model).__name__}."
            )
        if not isinstance(path, ProbPath):
            raise TypeError(
                "`path` must be a flow_matching.path.ProbPath, for example CondOTProbPath(); got "
                f"{type(path).__name__}."
            )
        if source not in ("noise", "image"):
            raise ValueError(f'`source` must be "noise" or "image"; got {source!r}.')
        if codec is not None and not isinstance(codec, LatentCodec):
            raise TypeError(
                f"`codec` must be a LatentCodec, for example LatentCodec(vae); got {type(codec).__name__}."
            )
        self.velocity_model, self.path, self.source = velocity_model, path, source
        self.shape, self.codec = tuple(int(n) for n in shape), codec
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"`shape` must hold lengths of at least 1; got {self.shape}.")
        if codec is not None and (
            len(self.shape) != 3 or any(side % codec.factor for side in self.shape[1:])
        ):
            raise ValueError(
                f"`shape` must be that of images, (channel, height, width), with sides that are multiples of the "
                f"codec's factor, {codec.factor}; got {self.shape}."
            )
        if tasks is None:
            masked = ("fill",) if self.masked else ("sample", "fill")
            tasks = masked if source == "noise" else ("translate",)
        if not tasks or (unknown := [task for task in tasks if task not in TASKS]):
            raise ValueError(f"`tasks` must be among {', '.join(TASKS)}; got {tuple(tasks)}.")
        self.tasks = tuple(task for task in TASKS if task in tasks)
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        self.samplers = {task: self._default(task) for task in self.tasks} | dict(samplers or {})
        if unknown := [task for task in self.samplers if task not in self.tasks]:
            raise ValueError(
                f"`samplers` must be for its tasks, {', '.join(self.tasks)}; got {unknown[0]!r}."
            )
        if data_range is not None and not data_range[0] < data_range[1]:
            raise ValueError(f"`data_range` must be (lowest, highest), or None; got {data_range}.")
        self.data_range = data_range
        self.measured = card.Measured() if measured is None else measured
        self.stored_as = stored_as

    @property
    def masked(self) -> bool:
        """Whether it was trained on a masked path, and so takes the mask."""
        return any(isinstance(path, MaskedProbPath) for path in nested_paths(self.path))

    @property
    def hides_known(self) -> bool:
        """Whether fills can be guided on the known pixels: it was trained with `mask_dropout`."""
        modules = self.velocity_model.modules()
        return any(isinstance(m, UNetWrapper) and m.mask_dropout > 0 for m in modules)

    @property
    def from_noise(self) -> bool:
        """Whether it goes from noise of its own, N(0, I), on an affine path, so that the noise can be renewed."""
        *wrappers, path = nested_paths(self.path)
        couplings = [wrapper.coupling for wrapper in wrappers if hasattr(wrapper, "coupling")]
        kept = all(c.keeps_pairs and type(c).source is Coupling.source for c in couplings)
        source = getattr(type(path), "source", ExtendedProbPath.source)
        affine = isinstance(path, AffineProbPath) and source is ExtendedProbPath.source
        return kept and affine and self.source == "noise" and "translate" not in self.tasks

    @property
    def jumps(self) -> bool:
        """Whether it can go all the way at once: its model is a `MeanFlowModel`."""
        return isinstance(self.velocity_model, MeanFlowModel)

    @property
    def takes_scale(self) -> bool:
        """Whether its jumps can be guided: the network takes the scale as an input."""
        if not isinstance(self.velocity_model, MeanFlowModel):
            return False
        modules = [m for m in self.velocity_model.modules() if hasattr(m, "guidance_input")]
        if modules:
            return all(m.guidance_input for m in modules)
        takes = self.velocity_model.takes
        return takes is None or "guidance_scale" in takes

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler of the path.

        Raises:
            AttributeError: for a path without one, as a bridge is.
        """
        return self.path.scheduler  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next((p.dtype for p in self._tensors() if p.is_floating_point()), torch.float32)

    def to(self, device: torch.device | str) -> "FlowModel":
        """Moves the weights; returns itself."""
        self.velocity_model.to(device)
        if self.codec is not None:
            self.codec.to(device)
        return self

    # ---- saved and loaded ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # more than the mixin's
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        device: torch.device | str = "cpu",
    ) -> "FlowModel":
        """Loads a flow, in eval mode. Nothing of the folder is executed, and no pickle is read.

        Args:
            pretrained_model_name_or_path: one of `shipped_names()`, a folder, or owner/name on the hub. A folder that
                is called as a shipped model is given as "./name" or `Path("name")`.
            revision: branch, tag or commit on the hub.
            token: for private models; None: that of `hf auth login`.
            cache_dir: where downloads are kept.
            force_download: whether to download what is in the cache.
            local_files_only: whether to take the cache's files without asking the hub.
            device: where the weights go.

        Raises:
            FileNotFoundError: if there is no such folder or name, or it is not complete.
            ValueError: if what it holds is damaged, of a newer format, of another network, or a pickle.
            OSError: if the hub refuses.
        """
        found = folder.find_folder(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        config = folder.read_config(found)
        model = folder.read_module(found, "model", folder.WEIGHTS, config)
        codec: Any = None
        if config["codec"] is not None:
            codec = folder.read_module(found, "codec", folder.CODEC, config)
        path = folder.build(config["path"], {}, "path")
        try:
            flow = cls(
                model,
                path,
                shape=config["shape"],
                codec=codec,
                tasks=config["tasks"],
                source=config["source"],
                classes=config["classes"],
                samplers={task: Sampler(**how) for task, how in config["samplers"].items()},
                data_range=config["data_range"] and tuple(config["data_range"]),
                measured=card.read_measured(config["measured"]),
                stored_as=config["stored_as"] and folder.dtype_named(config["stored_as"]),
            )
            derived = flow._config()
            for name in ("mask", "prediction"):
                if config[name] != derived[name]:
                    raise ValueError(
                        f"`{name}` must be {derived[name]!r} for this model and path; got {config[name]!r}."
                    )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{found / folder.CONFIG} cannot be used: {error}") from error
        return flow.to(device)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        velocity_model: nn.Module,
        path: ProbPath,
        *,
        ema: bool = True,
        **description: Any,
    ) -> "FlowModel":
        """A flow with the weights of a `Trainer`'s checkpoint; needs the extra `train`.

        Args:
            checkpoint: a checkpoint, or a run's `output_dir` for its newest one.
            velocity_model: built like the trained one; it is changed in place.
            path: what it was trained on.
            ema: take the averaged weights, else those of the last step.
            **description: `shape`, and what else `FlowModel` takes.

        Raises:
            FileNotFoundError: if there are no such weights.
            ValueError: if they are of another network, or damaged.
        """
        from fm_ext.training import load_weights

        load_weights(checkpoint, velocity_model, ema=ema)
        return cls(velocity_model.eval(), path, **description)

    def _save_pretrained(self, save_directory: Path) -> None:
        write = folder.write_module
        model = write(save_directory, folder.WEIGHTS, self.velocity_model, self.stored_as)
        if self.codec is not None:
            write(save_directory, folder.CODEC, self.codec, self.stored_as)
        else:  # of the flow that was here before
            (save_directory / folder.CODEC).unlink(missing_ok=True)
        path = folder.describe(self.path, {})
        folder.write_config(save_directory, self._config(model, path))
        self.generate_model_card().save(save_directory / folder.CARD)

    def _config(self, model: Any = None, path: Any = None) -> dict[str, Any]:
        prediction = next(
            (
                m.prediction
                for m in self.velocity_model.modules()
                if isinstance(m, PredictionVelocityModel)
            ),
            "velocity",
        )
        return {
            "format": folder.FORMAT,
            "library": f"fm_ext {fm_ext.__version__}",
            "model": model,
            "path": path,
            "codec": None if self.codec is None else folder.describe(self.codec, {}),
            "prediction": prediction,
            "mask": "true_is_missing" if self.masked else None,
            "source": self.source,
            "tasks": list(self.tasks),
            "shape": list(self.shape),
            "data_range": None if self.data_range is None else list(self.data_range),
            "classes": None if self.classes is None else list(self.classes),
            "samplers": {task: asdict(how) for task, how in self.samplers.items()},
            "stored_as": None if self.stored_as is None else str(self.stored_as).split(".")[1],
            "measured": asdict(self.measured),
        }

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of what was measured; written anew by every `save_pretrained`."""
        config = self._config()
        return card.write_card(self.measured, config, sum(p.numel() for p in self._tensors()))

    # ---- sampled -------------------------------------------------------------------------------

    def sampler(
        self,
        task: str,
        method: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Sampler:
        """How a task is sampled: as the model was measured, but for what is given.

        Another method comes with its own usual number of steps: 16 of "ancestral", one of "jumps", 50 of a
        training-free one, 8 of another one with fixed steps.

        Args:
            task: "sample", "fill" or "translate".
            method: see `Sampler`, as the next two.
            steps: at least 1.
            guidance_scale: any number; at least 1 for jumps.

        Returns:
            What `sample`, `fill` and `translate` do with the same arguments.

        Raises:
            ValueError: for a task that it was not trained to do; "ancestral" for a flow that is not `from_noise`;
                "jumps" for a model that is no `MeanFlowModel`, or with a guidance that its network does not take;
                `steps` below 1, or a scale that is not finite.
            TypeError: for `steps` that are not whole.
        """
        if task not in self.tasks:
            raise ValueError(
                f"this model was not trained to {task}; it can {' and '.join(self.tasks)}. Shipped models that can: "
                f"{', '.join(folder.shipped_names(task)) or 'none'}."
            )
        how = self.samplers[task]
        if method is not None and method != how.method:
            usual = _usual_steps(method)
            same = usual == _usual_steps(how.method)  # then it takes as many as the measured one
            how = replace(how, method=method, steps=how.steps if same else usual)
        if steps is not None:
            how = replace(how, steps=steps)
        if guidance_scale is not None:
            how = replace(how, guidance_scale=guidance_scale)
        self._check(how)
        return replace(how, steps=how.steps or USUAL_STEPS.get(how.method))

    def methods(self, task: str) -> tuple[str, ...]:
        """What suits a task: the measured method, then all others but the adaptive ones, which suit where "euler" does.

        Args:
            task: one of `tasks`.
        """
        suit: list[str] = []
        if task != "fill" or self.masked:
            suit += [*FIXED, *[ANCESTRAL] * self.from_noise, *[JUMPS] * self.jumps]
        if task == "fill" and (not self.masked or "sample" in self.tasks):
            suit += METHODS
        return tuple(dict.fromkeys((self.samplers[task].method, *suit)))

    def _check(self, how: Sampler) -> None:
        """Refuses a method that is not for this model."""
        if how.method == ANCESTRAL and not self.from_noise:
            raise ValueError(
                f"`method` must not be {ANCESTRAL!r} for a flow whose source is not noise of its own, which cannot be "
                "renewed; 'midpoint' is for any."
            )
        if how.method != JUMPS:
            return
        if not self.jumps:
            raise ValueError(
                f"`method` must not be {JUMPS!r} for a model that is no MeanFlowModel; 'midpoint' is for any."
            )
        if how.guidance_scale < 1 or (how.guidance_scale > 1 and not self.takes_scale):
            allowed = "at least 1" if self.takes_scale else "1, for its network takes no scale,"
            raise ValueError(
                f"`guidance_scale` must be {allowed} for {JUMPS!r}; got {how.guidance_scale:g}. 'midpoint' guides the "
                "velocity, by any scale."
            )

    def sample(
        self,
        count: int,
        *,
        label: Label | None = None,
        method: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Float[Tensor, "..."]:
        """Draws samples from noise.

        Args:
            count: how many; computed as one batch.
            label: a class, by number or name, for all; or one for each; None: no class.
            method: of `ODESolver`, "ancestral" or "jumps"; None, as for the next two: what the model was measured with.
            steps: at least 1; without them a method of another kind takes its usual ones, see `sampler`.
            guidance_scale: on the class, where one is given; 1 is none.
            generator: of the noise; "ancestral" draws from it in each step.
            callback: called as `callback(fraction, state)` as the flow goes on: the fraction of the way in (0, 1], and
                the state `(count, *shape)` there, decoded if it is one of latents. What it raises ends the sampling.

        Returns:
            `(count, *shape)`, cut to `data_range`.

        Raises:
            ValueError: if the model does not sample; for an unknown class, method or number of steps.
        """
        how = self.sampler("sample", method, steps, guidance_scale)
        count = check_whole("count", count, 1)
        labels = self._labels(label, count)
        like = torch.zeros(1, *self.shape, device=self.device, dtype=self.dtype)
        noise = randn_like(
            self._encoded(like, generator=generator).expand(count, *[-1] * len(self.shape)),
            generator,
        )
        extras: dict[str, Any] = {} if labels is None else {"label": labels}
        if self.masked:
            extras["mask"] = torch.ones_like(noise[:, :1], dtype=torch.bool)
        start = self._source(noise, generator, extras)
        return self._integrate(self._guided(how, labels), start, how, callback, extras, generator)

    def fill(
        self,
        image: Float[Tensor, " batch *dim"],
        mask: Bool[Tensor, "..."],
        *,
        fills: int | None = None,
        label: Label | None = None,
        method: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Float[Tensor, "..."]:
        """Fills what is missing; known entries come back bit for bit.

        A model of a masked path is asked with the mask. Any other one, and this one where `method` is one of
        `InpaintingSolver`'s, fills by a training-free method.

        Args:
            image: `(batch, *shape)` in `data_range`; what is missing does not matter.
            mask: bool, True = missing: `(batch, 1, height, width)`, or `(1, 1, height, width)` for all.
            fills: how many of each image; None for one, without an axis of its own.
            label: as in `sample`, for each image.
            method: of `ODESolver` or `InpaintingSolver`, "ancestral" or "jumps"; None, as for the next two: what the
                model was measured with.
            steps: at least 1.
            guidance_scale: on the class, or without one on the known pixels; 1 is none.
            generator: of the noise; "ancestral" draws from it in each step.
            callback: see `sample`; the state is `(fills * batch, *shape)`. Training-free methods tell the states that
                they ask the model at.

        Returns:
            `(batch, *shape)`, or `(fills, batch, *shape)`.

        Raises:
            ValueError: if the model does not fill; for an image or mask of another shape, and as `sample`.
            TypeError: for a mask that is not bool.
        """
        how = self.sampler("fill", method, steps, guidance_scale)
        image = self._images(image)
        mask = check_mask(mask, image, like="image").to(self.device)
        copies = 1 if fills is None else check_whole("fills", fills, 1)
        labels = self._labels(label, len(image))
        if how.method in METHODS:
            filled = self._fill_untrained(how, image, mask, copies, labels, generator, callback)
        else:
            filled = self._fill_trained(how, image, mask, copies, labels, generator, callback)
        filled = torch.where(mask, filled.unflatten(0, (copies, len(image))), image)
        return filled[0] if fills is None else filled

    def translate(
        self,
        image: Float[Tensor, " batch *dim"],
        *,
        label: Label | None = None,
        method: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Float[Tensor, " batch *dim"]:
        """Takes images of the source to images of the target.

        Args:
            image: `(batch, *shape)` in `data_range`.
            label: as in `sample`.
            method: see `sample`.
            steps: see `sample`.
            guidance_scale: see `sample`.
            generator: of the noise that the path adds to its source, if it does.
            callback: see `sample`.

        Returns:
            `(batch, *shape)`, cut to `data_range`.

        Raises:
            ValueError: if the model does not translate; for images of another shape, and as `sample`.
        """
        how = self.sampler("translate", method, steps, guidance_scale)
        image = self._images(image)
        labels = self._labels(label, len(image))
        extras: dict[str, Any] = {} if labels is None else {"label": labels}
        start = self._source(self._encoded(image, generator=generator), generator, extras)
        return self._integrate(self._guided(how, labels), start, how, callback, extras, generator)

    # ---- inside --------------------------------------------------------------------------------

    def _fill_trained(
        self,
        how: Sampler,
        image: Tensor,
        mask: Tensor,
        copies: int,
        labels: Tensor | None,
        generator: torch.Generator | None,
        callback: Callback | None,
    ) -> Tensor:
        if not self.masked:
            raise ValueError(
                f"`method` must be one of {', '.join(METHODS)} for a model that was trained on whole images; got "
                f"{how.method!r}."
            )
        around = repeat_samples(image, copies), repeat_samples(mask, copies)
        if self.codec is not None:
            image = self._encoded(image, mask, generator)
            mask = self.codec.mask(mask.expand(-1, -1, *self.shape[1:]))
        whole, hole = repeat_samples(image, copies), repeat_samples(mask, copies)
        extras: dict[str, Any] = {"mask": hole}
        if labels is not None:
            extras["label"] = repeat_samples(labels, copies)
        noise = self._source(randn_like(whole, generator), generator, extras)
        model: nn.Module = self._guided(how, labels, hide_known=labels is None)
        if not getattr(model, "holds_known", False):
            model = MaskedVelocityModel(model)
        start = torch.where(hole, noise, whole)
        filled = self._integrate(model, start, how, callback, extras, generator)
        return filled if self.codec is None else self._cut(self.codec.paste(filled, *around))

    def _fill_untrained(
        self,
        how: Sampler,
        image: Tensor,
        mask: Tensor,
        copies: int,
        labels: Tensor | None,
        generator: torch.Generator | None,
        callback: Callback | None,
    ) -> Tensor:
        model: nn.Module = self._guided(how, labels)
        if self.masked:
            if "sample" not in self.tasks:
                raise ValueError(
                    f"`method` must be one of ODESolver's for this model, which knows no whole images; got "
                    f"{how.method!r}."
                )
            model = _AllMissing(model)
        if callback is not None:
            model = _Reporting(model, callback, self._decoded)
        solver = InpaintingSolver(model, self.scheduler, how.method, codec=self.codec)
        extras: dict[str, Any] = {} if labels is None else {"label": labels}
        filled = solver.sample(
            image,
            mask=mask,
            steps=cast(int, how.steps),
            fills=copies,
            generator=generator,
            **extras,
        )
        filled = self._cut(filled.flatten(0, 1))
        if callback is not None:
            callback(1.0, filled)
        return filled

    def _integrate(
        self,
        model: nn.Module,
        start: Tensor,
        how: Sampler,
        callback: Callback | None,
        extras: dict[str, Any],
        generator: torch.Generator | None,
    ) -> Tensor:
        asked = model if callback is None else _Reporting(model, callback, self._decoded)
        if how.method == JUMPS:
            end = self._jumped(start, how, callback, extras)
        elif how.method == ANCESTRAL:
            ends = PredictionVelocityModel(asked, self.scheduler, prediction="velocity")
            renewed = {"eta": 1.0, "generator": generator}
            end = ExponentialSolver(ends).sample(
                start, 1 / cast(int, how.steps), **renewed, **extras
            )
        else:
            given = {} if how.steps is None else {"steps": how.steps}
            end = ODESolver(asked).sample(start, method=how.method, **given, **extras)
        result = self._cut(self._decoded(end))
        if callback is not None:
            callback(1.0, result)
        return result

    def _jumped(
        self, start: Tensor, how: Sampler, callback: Callback | None, extras: dict[str, Any]
    ) -> Tensor:
        if how.guidance_scale != 1 and "label" in extras:
            extras = extras | {"guidance_scale": how.guidance_scale}
        model, grid = cast(MeanFlowModel, self.velocity_model), uniform_grid(cast(int, how.steps))
        states = MeanFlowSolver(model).sample(
            start, time_grid=grid, return_intermediates=True, **extras
        )
        if callback is not None:
            for t, state in zip(grid[1:-1].tolist(), states[1:-1], strict=True):
                callback(t, self._decoded(state))
        return states[-1]

    def _default(self, task: str) -> Sampler:
        if task == "fill" and not self.masked:
            return Sampler(method="moment_matching", steps=USUAL_STEPS["moment_matching"])
        if self.jumps:
            return Sampler(method=JUMPS, steps=USUAL_STEPS[JUMPS])
        if task == "fill" and self.from_noise:
            return Sampler(method=ANCESTRAL, steps=USUAL_STEPS[ANCESTRAL])
        return Sampler()

    def _guided(self, how: Sampler, labels: Tensor | None, hide_known: bool = False) -> nn.Module:
        if how.guidance_scale == 1 or (labels is None and not hide_known):
            return self.velocity_model
        if hide_known and not self.hides_known:
            raise ValueError(
                f"`guidance_scale` must be 1 for a fill without `label` by this model, which was not trained with "
                f"`mask_dropout`; got {how.guidance_scale}."
            )
        if how.method == JUMPS and hide_known:
            raise ValueError(
                f"`guidance_scale` must be 1 for {JUMPS!r} without `label`, as the network's scale is of the class; "
                f"got {how.guidance_scale:g}. 'midpoint' guides on the known pixels."
            )
        if how.method == JUMPS:  # the scale is an input
            return self.velocity_model
        return GuidedVelocityModel(self.velocity_model, how.guidance_scale, hide_known=hide_known)

    def _source(
        self, x_0: Tensor, generator: torch.Generator | None, extras: Mapping[str, Any]
    ) -> Tensor:
        source: Any = getattr(self.path, "source", None)
        if source is None:
            return x_0
        given = {key: extras.get(key) for key in ("mask", "label")}
        return source(x_0, generator=generator, **given)

    def _labels(self, label: Label | None, count: int) -> Tensor | None:
        if label is None:
            return None
        if self.classes is None:
            raise ValueError("`label` must be None, for this model knows no classes.")
        if isinstance(label, Tensor):
            label = label.tolist() if label.ndim else int(label)
        rows = [label] * count if isinstance(label, (int, str)) else list(label)
        if len(rows) != count:
            raise ValueError(
                f"`label` must be one class for all, or one for each of {count}; got {len(rows)}."
            )
        numbers = []
        for row in rows:
            number = self.classes.index(row) if row in self.classes else row
            if not isinstance(number, int) or not 0 <= number < len(self.classes):
                raise ValueError(
                    f"`label` must be a number from 0 to {len(self.classes) - 1} or one of "
                    f"{', '.join(self.classes)}; got {row!r}."
                )
            numbers.append(number)
        return torch.tensor(numbers, device=self.device)

    def _images(self, image: Tensor) -> Tensor:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"`image` must be a float tensor, in {self.data_range}; got {got}. Bytes become one by "
                "`image.float() / 127.5 - 1`, a picture by `fm_ext.hub.fill_picture`."
            )
        if tuple(image.shape[1:]) != self.shape or not len(image):
            raise ValueError(
                f"`image` must be (batch, {', '.join(map(str, self.shape))}); got {tuple(image.shape)}. Pictures of "
                "any size go through `fm_ext.hub.fill_picture`."
            )
        return image.to(self.device, self.dtype)

    def _encoded(
        self, image: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return image if self.codec is None else self.codec.encode(image, mask, generator=generator)

    def _decoded(self, x: Tensor) -> Tensor:
        return x if self.codec is None else self.codec.decode(x)

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.data_range is None else x.clamp(*self.data_range)

    def _tensors(self) -> list[Tensor]:
        return [*self.velocity_model.parameters(), *self.velocity_model.buffers()]


class _AllMissing(ModelWrapper):
    """A model of a masked path as one of whole images: all is missing."""

    @property
    def takes(self) -> frozenset[str] | None:
        inner = super().takes
        return None if inner is None else inner - {"mask"}

    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        mask = torch.ones(len(x), 1, *x.shape[2:], dtype=torch.bool, device=x.device)
        return self.ask(x, t, {**extras, "mask": mask})


class _Reporting(ModelWrapper):
    """Tells a callback the times and states that a solver asks at, where it goes on."""

    def __init__(self, model: nn.Module, callback: Callback, decoded: Callable[[Tensor], Tensor]):
        super().__init__(model)
        self.callback, self.decoded, self.furthest = callback, decoded, 0.0

    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        answer = self.ask(x, t, extras)
        time = float(t.max())
        if self.furthest < time < 1:
            self.furthest = time
            self.callback(time, self.decoded(x.detach()))
        return answer


def _usual_steps(method: str) -> int | None:
    """How many steps a method takes unless it is told; None for an adaptive one."""
    return None if method in (*ADAPTIVE, *SCIPY) else USUAL_STEPS.get(method, 8)
