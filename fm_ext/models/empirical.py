"""The exact velocity of a finite data set, its score and density, and exact draws of its inpainting posterior."""

import math

import torch
from flow_matching.path.scheduler import Scheduler
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fm_ext.path.scheduler.ends import end_slope
from fm_ext.path.scheduler.precision import double, hold, single
from fm_ext.utils.inputs import align_time, check_mask, randn_like


class EmpiricalVelocityModel(nn.Module):
    r"""The marginal velocity of the flow from $N(0, I)$ to a finite data set, in closed form.

    The data are $X_1 = x_i + h\,\epsilon$ with probability $\pi_i$: points for $h = 0$, a mixture of $N(x_i, h^2 I)$
    for a `bandwidth` $h > 0$. With $X_t = \alpha_t X_1 + \sigma_t X_0$ and
    $s_t^2 = \alpha_t^2 h^2 + \sigma_t^2$ the state given $i$ is $N(\alpha_t x_i, s_t^2 I)$, and so

    $$w_i(x, t) = \frac{\pi_i \exp(-\|x - \alpha_t x_i\|^2 / 2 s_t^2)}{\sum_j \pi_j \exp(-\|x - \alpha_t x_j\|^2 /
    2 s_t^2)}, \qquad m = \sum_i w_i x_i,$$

    $$u_t(x) = \sum_i w_i\,u_t(x \mid x_i) = \dot\alpha_t m + \frac{\alpha_t \dot\alpha_t h^2 + \sigma_t
    \dot\sigma_t}{s_t^2}\,(x - \alpha_t m)$$

    (Lipman et al., arXiv 2412.06264, equation 4.8, the marginalisation). This is what a network that is trained on the
    data by conditional flow matching, with independent pairs, estimates, and what it would become if it could be any
    function: for $h = 0$ the flow ends at the data, every sample a copy.

    With a `mask` it is the velocity of the masked path of the same data: the weights are those of the known entries as
    well, which count as data at $t = 1$, and the velocity is 0 there. So it is the exact model for training-free
    methods (called without a mask) and for trained inpainting (called with one).

    Weights are computed in float64 in the log domain, whatever the dtype of `x`, over blocks of the data: memory grows
    with the batch times `block` and, where gradients are asked for, with nothing else (the blocks are computed again
    in the backward pass).

    At $t = 0$ all is regular. At $t = 1$ with $h = 0$ weights and `target` are their limits, the nearest data point (or
    the mean of those that are equally near); velocity and score are infinite but at the data, and raise an error.

    Args:
        data: $x_i$, `(count, ...)`, floating point.
        scheduler: any affine schedule.
        bandwidth: $h$, at least 0, in units of the data.
        weights: $\pi_i$, `(count,)`, positive, of any sum; None for equal ones.
        labels: classes `(count,)` of the data, at least 0, for a class-conditional field.
        block: data points taken at once.

    Attributes:
        schedule: `scheduler`.
        null_label: the label that stands for all classes, one above the largest; None without labels.

    Raises:
        TypeError: for data that are not floating point, labels that are not integers, or a `scheduler` that is none.
        ValueError: for a shape or a range other than the above.
    """

    answers = "velocity"
    holds_known = True
    data: Tensor
    weights: Tensor
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self,
        data: Float[Tensor, " count *dim"],
        scheduler: Scheduler,
        bandwidth: float = 0.0,
        *,
        weights: Float[Tensor, " count"] | None = None,
        labels: Int[Tensor, " count"] | None = None,
        block: int = 4096,
    ):
        super().__init__()
        if not isinstance(scheduler, Scheduler):
            raise TypeError(
                f"`scheduler` must be a flow_matching.path.scheduler.Scheduler, for example CondOTScheduler(); got "
                f"{scheduler!r}."
            )
        if not data.is_floating_point():
            raise TypeError(
                f"`data` must be floating point; got {data.dtype}. Images of bytes become data by "
                "`x.float() / 127.5 - 1`."
            )
        if data.ndim < 2 or len(data) == 0:
            raise ValueError(
                f"`data` must be (count, ...) with at least one point; got {tuple(data.shape)}. Numbers become points "
                "of one dimension by `data[:, None]`."
            )
        if not data.isfinite().all():
            raise ValueError("`data` must be finite; got NaN or infinity.")
        if not 0 <= bandwidth < math.inf:
            raise ValueError(f"`bandwidth` must be finite and at least 0; got {bandwidth}.")
        if block < 1:
            raise ValueError(f"`block` must be at least 1; got {block}.")
        if weights is None:
            weights = torch.ones(len(data), device=data.device)
        if weights.shape != data.shape[:1] or not ((weights > 0) & weights.isfinite()).all():
            raise ValueError(
                f"`weights` must hold one positive number a data point, ({len(data)},); got {tuple(weights.shape)}, "
                f"positive: {bool((weights > 0).all())}. Leave out the points of weight 0."
            )
        if labels is not None:
            if labels.is_floating_point() or labels.dtype == torch.bool:
                raise TypeError(f"`labels` must be integers; got {labels.dtype}.")
            if labels.shape != data.shape[:1] or bool((labels < 0).any()):
                raise ValueError(
                    f"`labels` must hold one class of at least 0 a data point, ({len(data)},); got "
                    f"{tuple(labels.shape)}, least {labels.min().item() if labels.numel() else None}."
                )
        self.schedule, self.bandwidth, self.block = scheduler, float(bandwidth), int(block)
        self.register_buffer("data", data.detach(), persistent=False)
        self.register_buffer("weights", weights.detach(), persistent=False)
        self.register_buffer("log_weights", double(weights).log(), persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.null_label = None if labels is None else int(labels.max()) + 1
        self._end_slope = float(end_slope(scheduler))

    def extra_repr(self) -> str:
        """How much data, their shape, the schedule and the bandwidth."""
        count, *shape = self.data.shape
        return f"{count} points of {tuple(shape)}, {self.schedule!r}, bandwidth={self.bandwidth}"

    def forward(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, " batch *dim"]:
        """Returns the velocity $u_t(x)$.

        Args:
            x: the state.
            t: times, 0-d, `(1,)`, `(batch,)`, `(batch, 1, ..., 1)` or of `x`'s shape; outside [0, 1] the nearer end.
            mask: True = missing; the other entries of `x` are known, and their velocity is 0. None for no known ones.
            label: classes, `(batch,)` or 0-d; `null_label`, or None, for the data of all classes.

        Raises:
            ValueError: for a state or a label that the data do not have; where the velocity is infinite: at
                $t = 1$ with `bandwidth=0`.
        """
        at = self._conditions(x, t, mask)
        if self.bandwidth == 0 and bool((at.empty & at.moving).any()):
            raise ValueError(
                "the velocity at `t` = 1 is infinite with `bandwidth=0`, for the data are points. Take a method that "
                "does not ask there (method='euler' or 'midpoint' with a step size), a `time_grid` that ends before "
                "1, or a `bandwidth` > 0."
            )
        mean = self._mean(at, label)
        velocity = at.d_alpha * mean + at.gain * (at.x - at.alpha * mean)
        return torch.where(at.moving, velocity, 0.0).to(x.dtype).view_as(x)

    def target(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, " batch *dim"]:
        r"""$E[X_1 \mid X_t = x] = m + \frac{\alpha_t h^2}{s_t^2} (x - \alpha_t m)$, at any time; arguments as above."""
        at = self._conditions(x, t, mask)
        mean = self._mean(at, label)
        shrink = at.alpha * self.bandwidth**2 * at.precision
        target = mean + torch.where(at.empty, 0.0, shrink) * (at.x - at.alpha * mean)
        return torch.where(at.moving, target, at.x).to(x.dtype).view_as(x)

    def score(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, " batch *dim"]:
        r"""$\nabla_x \ln p_t(x) = -(x - \alpha_t m) / s_t^2$; arguments and errors as above."""
        at = self._conditions(x, t, mask)
        self._check_density(at)
        score = -at.precision * (at.x - at.alpha * self._mean(at, label))
        return score.to(x.dtype).view_as(x)

    def log_density(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, " batch"]:
        r"""$\ln p_t(x)$ in nats, `(batch,)`; with a mask that of the known entries at $t = 1$ and the others at `t`."""
        at = self._conditions(x, t, mask)
        self._check_density(at)
        top, total, _ = self._sums(at, label)
        squares = (at.precision * at.x.square()).sum(1)
        scale = (at.precision.log() - math.log(2 * math.pi)).expand_as(at.x).sum(1)
        log_prior = self._log_prior(label, len(x))
        return (top + total.log() - log_prior + (scale - squares) / 2).to(x.dtype)

    def posterior_weights(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch count"]:
        """$w_i(x, t)$, the probability of each data point given the state, `(batch, count)`; arguments as above."""
        return self._weights(self._conditions(x, t, mask), label).to(x.dtype)

    def inpainting_weights(
        self,
        image: Float[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."],
        noise_std: float = 0.0,
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch count"]:
        r"""The probability of each data point given the known entries, `(batch, count)`.

        Proportional to $\pi_i\, N(y;\, x_i, (h^2 + \sigma_y^2) I)$ over the known entries. Where bandwidth and noise
        are 0 it is the limit: the nearest point.

        Args:
            image: its values at missing entries do not matter, NaN included.
            mask: True = missing, broadcastable to `image`.
            noise_std: standard deviation $\sigma_y$ of the noise on the known entries.
            label: classes, as for the velocity.
        """
        return self._weights(self._known(image, mask, noise_std), label).to(image.dtype)

    @torch.no_grad()
    def sample_posterior(
        self,
        image: Float[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."],
        fills: int | None = None,
        noise_std: float = 0.0,
        label: Int[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "..."]:
        r"""Exact and independent draws of $X_1$ given the known entries: what `InpaintingSolver` approximates.

        A data point by `inpainting_weights`, and $N(x_i, h^2 I)$ around it in the missing entries. The known ones are
        returned as they are, or, with noise on them, drawn from their own posterior. A mask of ones draws from the
        data.

        Args:
            image: `(batch, ...)`; its values at missing entries do not matter, NaN included.
            mask: True = missing, broadcastable to `image`.
            fills: draws for each image.
            noise_std: standard deviation of the noise on the known entries.
            label: classes, as for the velocity.
            generator: of all random numbers.

        Returns:
            `(batch, ...)`, or `(fills, batch, ...)` with `fills`, in the dtype of `image`.
        """
        if fills is not None and fills < 1:
            raise ValueError(f"`fills` must be at least 1; got {fills}.")
        at = self._known(image, mask, noise_std)
        device = image.device if generator is None else generator.device
        weights = self._weights(at, label).to(device)
        count = 1 if fills is None else fills
        index = torch.multinomial(weights, count, replacement=True, generator=generator).T
        points = double(self.data)[index.to(self.data.device)].flatten(2)
        z = randn_like(points.to(image.device), generator)
        variance = at.alpha * self.bandwidth**2  # of the data around a point, in the known entries
        total = variance + noise_std**2
        trust = torch.where(total > 0, variance / torch.where(total > 0, total, 1.0), 1.0)
        mean = torch.where(at.alpha > 0, points + trust * (at.x - points), points)
        std = torch.where(
            at.alpha > 0, (trust * noise_std**2).sqrt(), torch.full_like(trust, self.bandwidth)
        )
        drawn = mean + std * z
        if noise_std == 0:
            drawn = torch.where(at.alpha > 0, at.x, drawn)
        drawn = drawn.to(image.dtype).view(count, *image.shape)
        return drawn[0] if fills is None else drawn

    def _conditions(self, x: Tensor, t: Tensor, mask: Tensor | None) -> "_State":
        """The state, flat and in float64, and the law of it given a data point."""
        self._check_state("x", x)
        out = self.schedule(hold(double(single(align_time(t, x)))))
        sigma = out.sigma_t.masked_fill(out.sigma_t <= 1e-15 * out.alpha_t, 0.0)
        flow = torch.where(out.d_sigma_t.isinf(), -self._end_slope, sigma * out.d_sigma_t)
        alpha, sigma, d_alpha, flow = (
            _flat(value, x) for value in (out.alpha_t, sigma, out.d_alpha_t, flow)
        )
        moving = torch.ones((), dtype=torch.bool, device=x.device)
        if mask is not None:
            moving = check_mask(mask, x, like="x").expand_as(x).flatten(1)
            alpha, sigma = torch.where(moving, alpha, 1.0), torch.where(moving, sigma, 0.0)
        variance = (alpha * self.bandwidth).square() + sigma.square()
        state = self._state(double(x).flatten(1), alpha, variance, moving)
        state.d_alpha = d_alpha
        gain = (alpha * d_alpha * self.bandwidth**2 + flow) * state.precision
        state.gain = torch.where(moving & ~state.empty, gain, 0.0)
        return state

    def _known(self, image: Tensor, mask: Tensor, noise_std: float) -> "_State":
        """The known entries as a state: the missing ones have alpha 0."""
        self._check_state("image", image)
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"`noise_std` must be finite and at least 0; got {noise_std}.")
        known = ~check_mask(mask, image, like="image").expand_as(image).flatten(1)
        y = double(image).flatten(1).masked_fill(~known, 0.0)
        alpha = double(known.float())
        variance = torch.where(known, self.bandwidth**2 + noise_std**2, 1.0)
        return self._state(y, alpha, double(variance), known)

    def _state(self, x: Tensor, alpha: Tensor, variance: Tensor, moving: Tensor) -> "_State":
        """Where the variance is 0, weights are those of the nearest point.

        They come out of a variance that is small beside the gaps between distances, and large beside their rounding.
        """
        empty = variance == 0
        if self.bandwidth == 0 and bool(empty.any()):
            size = max(float(x.detach().abs().max()), float(self.data.abs().max()), 1e-30)
            floor = 64 * torch.finfo(x.dtype).eps * x.shape[1] * size**2
            variance = torch.where(empty, floor, variance)
        return _State(x, alpha, 1 / variance, empty, moving)

    def _sums(self, at: "_State", label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        r"""The largest logit, and $\sum_i e^{l_i - top}$ and $\sum_i e^{l_i - top} x_i$ over the data."""
        starts = range(0, len(self.data), self.block)
        classes = self._classes(label, len(at.x))
        arguments = at.pull, at.curvature, classes
        if len(starts) > 1 and torch.is_grad_enabled() and at.pull.requires_grad:
            parts = [
                checkpoint(
                    self._part, start, *arguments, use_reentrant=False, preserve_rng_state=False
                )
                for start in starts
            ]
        else:
            parts = [self._part(start, *arguments) for start in starts]
        tops, totals, sums = zip(*parts, strict=True)  # pyright: ignore[reportArgumentType]
        top = torch.stack(tops).amax(0)
        scales = [(each - top).exp() for each in tops]
        total = sum(scale * total for scale, total in zip(scales, totals, strict=True))
        mean = sum(scale[:, None] * part for scale, part in zip(scales, sums, strict=True))
        return top, torch.as_tensor(total), torch.as_tensor(mean)

    def _part(
        self, start: int, pull: Tensor, curvature: Tensor, classes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_sums` over one block."""
        points, logits = self._logits(start, pull, curvature, classes)
        # Finite, also in a block without a point of the class; a constant, which drops out of the quotient.
        top = logits.detach().amax(1).clamp(min=torch.finfo(logits.dtype).min)
        shares = (logits - top[:, None]).exp()
        return top, shares.sum(1), shares @ points

    def _logits(
        self, start: int, pull: Tensor, curvature: Tensor, classes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r"""Data points, and $\ln \pi_i + \sum_j p_j (\alpha_j x_j x_{ij} - \alpha_j^2 x_{ij}^2 / 2)$ of each."""
        rows = slice(start, start + self.block)
        points = double(self.data[rows]).flatten(1)
        if curvature.shape[1] == 1:
            squares = torch.linalg.vecdot(points, points)[:, None]
        else:
            squares = points.square()
        logits = pull @ points.T - curvature @ squares.T / 2 + self.log_weights[rows]
        if classes is not None:
            assert self.labels is not None
            other = (self.labels[rows] != classes[:, None]) & (classes[:, None] != self.null_label)
            logits = logits.masked_fill(other, -torch.inf)
        return points, logits

    def _mean(self, at: "_State", label: Tensor | None) -> Tensor:
        _, total, mean = self._sums(at, label)
        return mean / total[:, None]

    def _weights(self, at: "_State", label: Tensor | None) -> Tensor:
        classes = self._classes(label, len(at.x))
        starts = range(0, len(self.data), self.block)
        logits = [self._logits(start, at.pull, at.curvature, classes)[1] for start in starts]
        return torch.cat(logits, 1).softmax(1)

    def _log_prior(self, label: Tensor | None, batch: int) -> Tensor:
        """The logarithm of the sum of the class's weights, `(batch,)`."""
        classes = self._classes(label, batch)
        if classes is None:
            return self.log_weights.logsumexp(0).expand(batch)
        assert self.labels is not None
        other = (self.labels != classes[:, None]) & (classes[:, None] != self.null_label)
        return self.log_weights.expand(batch, -1).masked_fill(other, -torch.inf).logsumexp(1)

    def _classes(self, label: Tensor | None, batch: int) -> Tensor | None:
        if label is None:
            return None
        if self.labels is None:
            raise ValueError(
                "`label` was given to data without classes; build EmpiricalVelocityModel(..., labels=...)."
            )
        if label.shape not in ((), (batch,)):
            raise ValueError(f"`label` must be ({batch},) or 0-d; got {tuple(label.shape)}.")
        present = torch.isin(label, self.labels) | (label == self.null_label)
        if not bool(present.all()):
            raise ValueError(
                f"`label` must be a class of the data, or {self.null_label} for all; got {label.tolist()}."
            )
        return label.expand(batch)

    def _check_state(self, name: str, x: Tensor) -> None:
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(
                f"`{name}` must be (batch, {', '.join(map(str, self.data.shape[1:]))}), as the data are; got "
                f"{tuple(x.shape)}."
            )

    def _check_density(self, at: "_State") -> None:
        if self.bandwidth == 0 and bool(at.empty.any()):
            raise ValueError(
                "with `bandwidth=0` there is no density at `t` = 1, nor at known entries, for the data are points. "
                "Take an earlier time, or a `bandwidth` > 0."
            )


class _State:
    r"""A state, and per entry what its law given a data point is: $N(\alpha x_i, 1 / precision)$.

    All are float64 and flat, `(batch or 1, entries or 1)`. `empty` is where the variance is 0.
    """

    d_alpha: Tensor
    gain: Tensor

    def __init__(self, x: Tensor, alpha: Tensor, precision: Tensor, empty: Tensor, moving: Tensor):
        self.x, self.alpha, self.precision = x, alpha, precision
        self.empty, self.moving = empty, moving
        self.pull = precision * alpha * x
        self.curvature = (precision * alpha.square()).expand(len(x), -1)


def _flat(value: Tensor, x: Tensor) -> Tensor:
    """A value that broadcasts beside `x`, as `(batch or 1, entries or 1)`."""
    if value.numel() in (1, len(value) if value.ndim else 1):
        return value.reshape(-1, 1)
    return value.expand(len(value), *x.shape[1:]).flatten(1)
