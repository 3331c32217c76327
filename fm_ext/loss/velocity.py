"""The conditional flow matching loss."""

from typing import Literal

import torch
from einops import reduce
from flow_matching.path import PathSample
from flow_matching.path.scheduler import Scheduler
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.prediction import Prediction, coefficients, quantity, regular_times
from fm_ext.utils.inputs import align_time, check_mask


def velocity_loss(
    velocity: Float[Tensor, " batch *dim"],
    sample: PathSample,
    *,
    prediction: Prediction = "velocity",
    space: Prediction = "velocity",
    scheduler: Scheduler | None = None,
    t_eps: float = 0.05,
    weight: Float[Tensor, "..."] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    r"""Squared velocity error, averaged over each sample's missing entries.

    $$\ell_i = \frac{w_i}{\sum_j m_{ij}} \sum_j m_{ij} \big(v_{ij} - \dot X_{t,ij}\big)^2$$

    with $m = 1$ where the entry is missing, and everywhere when the sample has no mask (Lipman et al., arXiv
    2210.02747, equation 9). The average is taken per sample, so the scale of the loss depends neither on the area of
    the masks nor on the size of the images. A sample in which nothing is missing contributes 0, and so does a batch
    without samples.

    A network may predict one thing and have its error weighed in another. At given $X_t$ every prediction is an affine
    function of every other, so its error there is its own error times a factor of time, $b_t$: the loss is the squared
    error of the prediction, times $b_t^2$. To predict the data under the loss of the velocity (JiT, Li and He, arXiv
    2511.13720, algorithm 1) is `prediction="x_1"`, with $b_t = \dot\alpha_t - \alpha_t \dot\sigma_t / \sigma_t$,
    on the straight path $1 / (1 - t)$; `prediction="x_1", space="x_1"` is plain regression on the data.

    Args:
        velocity: the model's output at `(sample.x_t, sample.t)`, of `sample.dx_t`'s shape: a velocity, or what
            `prediction` names.
        sample: what `path.sample` returned; its `mask`, which `MaskedProbPath` adds, is obeyed.
        prediction: what the model predicts. "epsilon" and "x_0" both mean `sample.x_0`; "score" means
            $-X_0 / \sigma_t$, for a source $N(0, I)$.
        space: what the error is measured in.
        scheduler: the path's, needed where `prediction` and `space` differ, and for a score.
        t_eps: at an end where $b_t$ is infinite it is kept at its value at this distance from that end.
        weight: one factor a sample, for example a weighting of `t`. It multiplies; it is not normalised.
        reduction: "mean" or "sum" over the batch, or "none" for one loss a sample.

    Returns:
        A scalar, or `(batch,)` for "none"; at least float32, also for half-precision velocities.

    Raises:
        ValueError: for a velocity or weight of another shape, an unknown reduction, prediction or space, a missing
            scheduler, or `t_eps` outside (0, 0.5).
    """
    if velocity.shape != sample.dx_t.shape:
        raise ValueError(
            f"`velocity` must have the shape of `sample.dx_t`, {tuple(sample.dx_t.shape)}; got "
            f"{tuple(velocity.shape)}. A network with more input channels than image channels needs out_channels=."
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    dtype = torch.promote_types(velocity.dtype, torch.float32)
    error, factor = _error(velocity.to(dtype), sample, prediction, space, scheduler, t_eps)
    mask = getattr(sample, "mask", None)
    if mask is None:
        loss = reduce(error.square(), "batch ... -> batch", "mean")
    else:
        missing = check_mask(mask, error, like="velocity").expand_as(error)
        total = reduce(torch.where(missing, error, 0).square(), "batch ... -> batch", "sum")
        loss = total / reduce(missing, "batch ... -> batch", "sum").clamp(min=1)
    if factor is not None:
        loss = loss * factor.square().to(dtype).view(loss.shape)
    if weight is not None:
        if weight.shape != loss.shape:
            raise ValueError(
                f"`weight` must hold one factor a sample, {tuple(loss.shape)}; got {tuple(weight.shape)}."
            )
        loss = loss * weight
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" or len(loss) == 0 else loss.mean()


def _error(
    output: Tensor,
    sample: PathSample,
    prediction: Prediction,
    space: Prediction,
    scheduler: Scheduler | None,
    t_eps: float,
) -> tuple[Tensor, Tensor | None]:
    """The error of the prediction, and the factor that makes it one in `space`; None for 1."""
    source, target = quantity("prediction", prediction), quantity("space", space)
    truth = {"target": sample.x_1, "epsilon": sample.x_0, "velocity": sample.dx_t}
    if source == target and source in truth:
        return output - truth[source].to(output.dtype), None
    if scheduler is None:
        raise ValueError(
            f"`scheduler` is needed for `prediction` = {prediction!r} with `space` = {space!r}: give the path's, "
            "scheduler=path.scheduler."
        )
    if source == "score":  # infinite at the data; -sigma * score is epsilon, and is not
        sigma = scheduler(sample.t).sigma_t.to(output.dtype)
        output, source = -align_time(sigma, output) * output, "epsilon"
    error = output - truth[source].to(output.dtype)
    if source == target:
        return error, None
    times = regular_times(scheduler, source, target, (t_eps, t_eps))
    held = sample.t.to(torch.promote_types(sample.t.dtype, torch.float32)).clamp(*times)
    return error, coefficients(scheduler, source, target, held)[1]
