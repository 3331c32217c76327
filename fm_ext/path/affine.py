"""Affine probability paths: upstream's, in less memory and right at the ends."""

import torch
from flow_matching.path import AffineProbPath as UpstreamAffineProbPath
from flow_matching.path import CondOTProbPath as UpstreamCondOTProbPath
from flow_matching.path import PathSample
from flow_matching.path.scheduler import CondOTScheduler, ConvexScheduler, Scheduler
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fm_ext.path.prediction import Quantity, coefficients
from fm_ext.path.scheduler.precision import double
from fm_ext.path.wrapper import ProbPath
from fm_ext.utils.inputs import align_time


class AffineProbPath(ProbPath, UpstreamAffineProbPath):
    r"""$X_t = \alpha_t X_1 + \sigma_t X_0$, with velocity $\dot X_t = \dot\alpha_t X_1 + \dot\sigma_t X_0$.

    A drop-in for upstream's class (Lipman et al., arXiv 2412.06264, section 4.8): the same names, arguments and
    results. `sample` allocates its two results and nothing else of their size, and refuses ends that would broadcast.
    The conversions `a_to_b(a, x_t, t)` take `t` 0-d, `(1,)`, `(batch,)`, `(batch, 1, ..., 1)` or of `x_t`'s shape, and
    are right up to the ends; [a table](../guides/affine.md#the-ends) has them all. Where the arguments do not determine
    the answer they raise a ValueError; on an accelerator, and inside `vmap` and `torch.compile`, where `t` cannot be
    looked at, the answer is NaN there.

    Half precision is computed in float32, `t` of any floating dtype is read as it is, and results have the dtype of
    the data. `t` outside [0, 1] is not refused: what happens there is the scheduler's choice.

    Args:
        scheduler: any upstream `Scheduler`, for example one of `fm_ext.path.scheduler`.
    """

    def __init__(self, scheduler: Scheduler):
        if not isinstance(scheduler, Scheduler):
            raise TypeError(
                f"`scheduler` must be a flow_matching.path.scheduler.Scheduler, for example CosineScheduler(); "
                f"got {scheduler!r}."
            )
        self.scheduler = scheduler

    def sample(
        self,
        x_0: Float[Tensor, " batch *dim"],
        x_1: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        r"""The point and the velocity of the conditional path at `t`.

        Args:
            x_0: source, `(batch, ...)`.
            x_1: target, of the same shape and dtype.
            t: times, 0-d, `(1,)`, `(batch,)` or `(batch, 1, ..., 1)`. Where $\dot\sigma$ is infinite (the variance
                preserving diffusions at t = 1), so is `dx_t`.
            mask: not used here; `MaskedProbPath` around this path holds known entries.
            label: not used.
            condition: not used.
            generator: not used.

        Returns:
            `x_t` and `dx_t` in the dtype of the ends; `x_0` and `x_1` are the arguments themselves, and so is a `t` of
            shape `(batch,)`, to which others are expanded.

        Raises:
            AssertionError: if the batch sizes differ (upstream's check).
            ValueError: if the shapes of the ends differ.
            TypeError: if the ends or `t` are not floating point, or the ends differ in dtype.
        """
        t = self._times(x_0, x_1, t)
        check_ends(x_0, x_1, t)
        dtype = x_1.dtype
        compute = torch.promote_types(dtype, torch.float32)
        shape = (-1, *(1 for _ in x_1.shape[1:]))
        x, y = x_0.to(compute), x_1.to(compute)
        if type(self.scheduler) is CondOTScheduler:
            x_t = torch.lerp(x, y, t.to(compute).view(shape))
            dx_t = y - x
        else:
            out = self.scheduler(double(t))
            alpha = out.alpha_t.to(compute).view(shape)
            d_alpha = out.d_alpha_t.to(compute).view(shape)
            # The in-place operations write into tensors made on the same line: autograd has saved none of them.
            if isinstance(self.scheduler, ConvexScheduler):
                x_t = torch.lerp(x, y, alpha)
                dx_t = (y - x).mul_(d_alpha)
            else:
                sigma = out.sigma_t.to(compute).view(shape)
                d_sigma = out.d_sigma_t.to(compute).view(shape)
                x_t = (sigma * x).addcmul_(alpha, y)
                dx_t = (d_sigma * x).addcmul_(d_alpha, y)
        return PathSample(x_t=x_t.to(dtype), dx_t=dx_t.to(dtype), x_1=x_1, x_0=x_0, t=t)

    def target_to_velocity(
        self,
        x_1: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$\dot\alpha x_1 + \dot\sigma (x_t - \alpha x_1) / \sigma$; needs $\sigma > 0$."""
        return self._convert("target", "velocity", x_1, x_t, t)

    def epsilon_to_velocity(
        self,
        epsilon: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$\dot\sigma\epsilon + \dot\alpha (x_t - \sigma\epsilon) / \alpha$; needs $\alpha>0$ or $\dot\alpha=0$."""
        return self._convert("epsilon", "velocity", epsilon, x_t, t)

    def velocity_to_target(
        self,
        velocity: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(\sigma v - \dot\sigma x_t) / (\sigma\dot\alpha - \alpha\dot\sigma)$; $x_t / \alpha$ where $\sigma = 0$."""
        return self._convert("velocity", "target", velocity, x_t, t)

    def epsilon_to_target(
        self,
        epsilon: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(x_t - \sigma \epsilon) / \alpha$; needs $\alpha > 0$."""
        return self._convert("epsilon", "target", epsilon, x_t, t)

    def velocity_to_epsilon(
        self,
        velocity: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(\dot\alpha x_t - \alpha v) / (\sigma\dot\alpha - \alpha\dot\sigma)$; $x_t / \sigma$ where $\alpha = 0$."""
        return self._convert("velocity", "epsilon", velocity, x_t, t)

    def target_to_epsilon(
        self,
        x_1: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(x_t - \alpha x_1) / \sigma$; needs $\sigma > 0$."""
        return self._convert("target", "epsilon", x_1, x_t, t)

    def target_to_score(
        self,
        x_1: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(\alpha x_1 - x_t) / \sigma^2$; needs $\sigma > 0$."""
        return self._convert("target", "score", x_1, x_t, t)

    def epsilon_to_score(
        self,
        epsilon: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$-\epsilon / \sigma$; needs $\sigma > 0$."""
        return self._convert("epsilon", "score", epsilon, x_t, t)

    def velocity_to_score(
        self,
        velocity: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(\alpha v - \dot\alpha x_t) / (\sigma^2\dot\alpha - \alpha\sigma\dot\sigma)$; needs that to be > 0."""
        return self._convert("velocity", "score", velocity, x_t, t)

    def score_to_velocity(
        self,
        score: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$\dot\alpha (x_t + \sigma^2 s) / \alpha - \sigma\dot\sigma s$; needs $\alpha > 0$ or $\dot\alpha = 0$."""
        return self._convert("score", "velocity", score, x_t, t)

    def score_to_target(
        self,
        score: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$(x_t + \sigma^2 s) / \alpha$ (Tweedie); needs $\alpha > 0$."""
        return self._convert("score", "target", score, x_t, t)

    def score_to_epsilon(
        self,
        score: Float[Tensor, " batch *dim"],
        x_t: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
    ) -> Float[Tensor, " batch *dim"]:
        r"""$-\sigma s$."""
        return self._convert("score", "epsilon", score, x_t, t)

    def _convert(
        self, source: Quantity, target: Quantity, value: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        if value.shape != x_t.shape:
            raise ValueError(
                f"the {source} and `x_t` must have the same shape; got {tuple(value.shape)} and {tuple(x_t.shape)}."
            )
        t = align_time(t, x_t)
        dtype = torch.promote_types(value.dtype, x_t.dtype)
        compute = torch.promote_types(dtype, torch.float32)
        a, b = coefficients(self.scheduler, source, target, t)
        _refuse_undetermined(f"{source}_to_{target}", a, t)
        a, b = a.to(compute), b.to(compute)
        # An infinite velocity at the data must not turn the answer, which does not depend on it, into NaN.
        return (a * x_t + torch.where(b == 0, 0.0, b * value)).to(dtype)


class CondOTProbPath(AffineProbPath, UpstreamCondOTProbPath):
    r"""The straight path, $X_t = t\,X_1 + (1 - t)\,X_0$ and $\dot X_t = X_1 - X_0$; exactly the ends at the ends."""

    def __init__(self) -> None:
        super().__init__(CondOTScheduler())


def check_ends(x_0: Tensor, x_1: Tensor, t: Tensor) -> None:
    """Raises unless the ends agree in shape and dtype, and all are floating point."""
    if x_0.shape != x_1.shape:
        raise ValueError(
            f"`x_0` and `x_1` must have the same shape, also where one is grey; got {tuple(x_0.shape)} and "
            f"{tuple(x_1.shape)}. Write `x_0.expand_as(x_1)` if broadcasting is meant."
        )
    if x_0.dtype != x_1.dtype or not x_1.is_floating_point():
        raise TypeError(
            f"`x_0` and `x_1` must be floating point of the same dtype; got {x_0.dtype} and {x_1.dtype}. "
            "Images of bytes become data by `x.float() / 127.5 - 1`."
        )
    if not t.is_floating_point():
        raise TypeError(f"`t` must be floating point; got {t.dtype}. Write `t.float()`.")


def _refuse_undetermined(name: str, a: Tensor, t: Tensor) -> None:
    """Raises where the coefficients are NaN, wherever looking at them is free of a device synchronisation."""
    if a.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bad = a.isnan()
    try:
        found = bool(bad.any())
    except (
        RuntimeError
    ):  # under vmap, where a condition on the data cannot be asked; the result is NaN
        return
    if found:
        raise ValueError(
            f"`{name}` has no answer at t = {t[bad].flatten()[0].item():g}: `x_t` and the {name.split('_')[0]} do not "
            f"determine the {name.split('_')[-1]} there. Keep `t` inside (0, 1), or let the model predict something "
            "that does: x_1 or velocity at t = 0, epsilon or velocity at t = 1."
        )
