"""Fills holes with a model that was trained on whole images: the solver, and its methods by name."""

import difflib
import math
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from flow_matching.path.scheduler import CondOTScheduler, Scheduler
from flow_matching.solver.solver import Solver
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fm_ext.models.latent import LatentCodec
from fm_ext.path.scheduler.ends import check_schedule
from fm_ext.path.scheduler.transform import ScheduleTransformedModel
from fm_ext.solver.field import check_keywords, check_state
from fm_ext.solver.inpainting.d_flow import DFlow
from fm_ext.solver.inpainting.ding import DING
from fm_ext.solver.inpainting.guided import OTODE, MomentMatching
from fm_ext.solver.inpainting.method import Method, check, real, whole
from fm_ext.solver.inpainting.problem import Problem, Source
from fm_ext.solver.inpainting.renoising import Flower, PnPFlow
from fm_ext.solver.inpainting.replacement import RePaint, Replace, RestoraFlow
from fm_ext.solver.inpainting.twisted import TwistedSMC
from fm_ext.utils.inputs import (
    check_extras,
    check_mask,
    is_wrapper,
    map_samples,
    map_tensors,
    repeat_samples,
)

METHODS: dict[str, type[Method]] = {
    "d_flow": DFlow,
    "ding": DING,
    "flower": Flower,
    "moment_matching": MomentMatching,
    "ot_ode": OTODE,
    "pnp": PnPFlow,
    "repaint": RePaint,
    "replace": Replace,
    "restora": RestoraFlow,
    "twisted_smc": TwistedSMC,
}


class InpaintingSolver(Solver):
    r"""Completes images with any velocity model, by one of ten published methods; no training, no mask channel.

    All are written for the straight path, $X_t = t\,X_1 + (1 - t)\,X_0$; a model of another schedule is asked
    through `ScheduleTransformedModel`, which knows the same $E[X_1 \mid X_t]$. So the formulas are the papers' own,
    steps are equal in $\alpha / (\alpha + \sigma)$, and the schedule that a model was trained on makes no difference.

    | `method`          | options (defaults)                                | noisy | assumes                       |
    |-------------------|---------------------------------------------------|-------|-------------------------------|
    | "moment_matching" | `products` 4, `start` 0.1, `eta` 1,               | yes   | independent, Gaussian source  |
    |                   | `linear_solver` "gmres"                           |       |                               |
    | "twisted_smc"     | `products` 4, `until` 0.35, `threshold` 0.5,      | yes   | independent, Gaussian source  |
    |                   | `start` 0.1; weighs an image's fills              |       |                               |
    | "flower"          | `gamma` 1                                         | yes   | independent source            |
    | "ding"            |                                                   | yes   | independent, Gaussian source  |
    | "ot_ode"          | `start` 0.2                                       | yes   | independent, Gaussian source  |
    | "pnp"             | `step` 1, `exponent` 0.5, `averages` 1            | yes   | independent source            |
    | "restora"         | `corrections` 1                                   | no    | independent source            |
    | "repaint"         | `jump_n_sample` 10, `jump_length` 1               | no    | independent, Gaussian source  |
    | "replace"         |                                                   | no    | independent source            |
    | "d_flow"          | `iterations` 20                                   | no    | nothing                       |

    Formulas, sources and measured calibration: `docs/content/guides/pretrained.md`.

    Args:
        velocity_model: called as `velocity_model(x=x, t=t, **extras)` with a 0-d `t`.
        scheduler: the schedule it was trained with.
        method: one of the names above.
        source: draws $X_0$ for a model whose source is not $N(0, I)$: `source(like, generator)` answers with a
            tensor of `like`'s shape, dtype and device.
        coupled: True for a model whose source and data were not drawn independently: optimal transport, reflow,
            image to image.
        codec: for a model of latents. Image and mask stay those of pixels: the image is encoded without its hole, the
            hole of its latents filled, the answer decoded, and the known pixels pasted back. No method needs a
            gradient of the decoder, and each of the network it needs is one in the latents.
        **options: of the method.

    Attributes:
        nfe: evaluations of the model by the last call of `sample`; a batch counts once.
        gradients: vector-Jacobian products of the model in it.

    Raises:
        ValueError: for an unknown method, an option outside its range, a model that lives on another schedule, or one
            that holds known entries by itself and so was trained with masks.
        TypeError: for an option that the method has not.
    """

    def __init__(
        self,
        velocity_model: nn.Module | Callable[..., Tensor],
        scheduler: Scheduler,
        method: str = "moment_matching",
        *,
        source: Source | None = None,
        coupled: bool = False,
        codec: LatentCodec | None = None,
        **options: object,
    ):
        super().__init__()
        if not isinstance(scheduler, Scheduler):
            raise TypeError(
                f"`scheduler` must be a flow_matching.path.scheduler.Scheduler, for example CondOTScheduler(); "
                f"got {scheduler!r}."
            )
        _check_model(velocity_model, scheduler)
        self.velocity_model, self.scheduler = velocity_model, scheduler
        self.method_name, self.method = method, _get_method(method, options)
        self.source, self.coupled, self.codec = source, coupled, codec
        self.nfe = self.gradients = 0
        broken = []
        if coupled and self.method.independent:
            broken.append("source and data drawn independently (`coupled=True` says they were not)")
        if source is not None and self.method.gaussian:
            broken.append("a source N(0, I) (`source=` says it is another)")
        if broken:
            free = [name for name, other in METHODS.items() if not other.independent]
            warnings.warn(
                f"method {method!r} assumes a model trained with {' and '.join(broken)}; its fills are a heuristic "
                f"then. {', '.join(free)} does not assume it.",
                stacklevel=2,
            )

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]  # upstream's ODESolver differs too
        self,
        image: Float[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."],
        steps: int = 50,
        generator: torch.Generator | None = None,
        noise_std: float = 0.0,
        fills: int | None = None,
        progress: bool = False,
        **model_extras: Any,
    ) -> Float[Tensor, "..."]:
        r"""Draws completions of `image`.

        Args:
            image: `(batch, ...)`; its values in missing entries do not matter, NaN included.
            mask: True = missing, broadcastable to `image`: `(batch, 1, height, width)` for images.
            steps: intervals of time. The cost is `nfe` and `gradients`, which depend on the method.
            generator: of all random numbers.
            noise_std: standard deviation of Gaussian noise on the known entries, in units of `image`. If it is 0 they
                are returned bit for bit; if not they are denoised too.
            fills: completions of each image, computed as one batch.
            progress: whether to show a progress bar.
            **model_extras: handed to the model; for several fills they are repeated, but `shared` ones.

        Returns:
            `(batch, ...)`, or `(fills, batch, ...)`, in the dtype of `image`. In half precision the model gets
            that dtype, and the state between steps is float32.

        Raises:
            TypeError: for an image that is not floating point, a mask that is not bool, or a keyword that nothing
                takes.
            ValueError: for a mask that does not broadcast to the image, `steps` or `fills` below 1, a negative
                `noise_std`, or noise under a method whose formula has no place for it; for a model whose answer has
                another shape, or no gradient where the method needs it; for a `source` whose answer is not like the
                image (in float32 for half precision); for extras of another length than the batch.
        """
        check_keywords(self.velocity_model, model_extras, self, "sample")
        mask = self._check(image, mask, steps, noise_std, fills)
        copies = 1 if fills is None else int(fills)
        given, pixels = image, mask
        if self.codec is not None:
            image = self.codec.encode(given, pixels, generator=generator)
            mask = self.codec.mask(pixels.expand(-1, -1, *given.shape[-2:]))
        whole, hole = repeat_samples(image, copies), repeat_samples(mask, copies)
        compute = torch.promote_types(image.dtype, torch.float32)
        with torch.inference_mode(False), torch.no_grad():
            extras = check_extras(model_extras, image)
            extras = map_samples(extras, lambda extra: repeat_samples(extra, copies))
            # No gradient passes a tensor of inference mode.
            extras = map_tensors(extras, lambda e: e.clone() if e.is_inference() else e)
            problem = Problem(
                self._straight(),
                whole.to(compute).masked_fill(hole, 0.0),
                ~hole,
                noise_std=noise_std,
                steps=int(steps),
                source=self.source,
                coupled=self.coupled,
                generator=generator,
                extras=extras,
                dtype=image.dtype,
                progress=progress,
                copies=copies,
            )
            filled = self.method.fill(problem).to(image.dtype)
            self.nfe, self.gradients = problem.nfe, problem.gradients
            if noise_std == 0:
                filled = torch.where(hole, filled, whole)
            if self.codec is not None:
                around = repeat_samples(given, copies), repeat_samples(pixels, copies)
                filled = self.codec.paste(self.codec.decode(filled), *around)
        return filled if fills is None else filled.unflatten(0, (copies, len(image)))

    def _straight(self) -> nn.Module | Callable[..., Tensor]:
        if type(self.scheduler) is CondOTScheduler:
            return self.velocity_model
        return ScheduleTransformedModel(self.velocity_model, self.scheduler, CondOTScheduler())

    def _check(
        self, image: Tensor, mask: Tensor, steps: int, noise_std: float, fills: int | None
    ) -> Tensor:
        check_state("image", image)
        mask = check_mask(mask, image, like="image")
        check(
            None,
            steps=(steps, whole(1)),
            fills=(1 if fills is None else fills, whole(1)),
            noise_std=(noise_std, real("finite and at least 0", lambda std: 0 <= std < math.inf)),
        )
        if noise_std > 0 and not self.method.noisy:
            able = ", ".join(name for name, other in METHODS.items() if other.noisy)
            raise ValueError(
                f"`noise_std` must be 0 for method {self.method_name!r}, whose formula has no place for noise; got "
                f"{noise_std}. Use one of {able}."
            )
        if self.codec is not None and noise_std > 0:
            raise ValueError(
                f"`noise_std` must be 0 with a `codec`: noise on pixels is none of the latents'; got {noise_std}. "
                "Denoise the image first, or fill latents of your own without a `codec`."
            )
        return mask


def _get_method(name: str, options: dict[str, object]) -> Method:
    if name not in METHODS:
        nearest = difflib.get_close_matches(str(name), METHODS, n=1)
        raise ValueError(
            f"`method` must be one of {', '.join(METHODS)}; got {name!r}."
            + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        )
    known = [field.name for field in fields(METHODS[name])]  # pyright: ignore[reportArgumentType]
    if unknown := [key for key in options if key not in known]:
        raise TypeError(
            f"method {name!r} takes {', '.join(f'`{key}`' for key in known) or 'no options'}; "
            f"got {', '.join(f'`{key}`' for key in unknown)}."
        )
    return METHODS[name](**options)


def _check_model(model: Any, scheduler: Scheduler) -> None:
    check_schedule("scheduler", scheduler, model)
    inner = model
    while is_wrapper(inner):
        if "mask" in inner.own:
            raise ValueError(
                f"`velocity_model` must be trained without masks; got {type(inner).__name__}, which holds known "
                "entries by itself. Write ODESolver(model).sample(torch.where(mask, noise, image), steps=9, mask=mask)."
            )
        inner = inner.model
