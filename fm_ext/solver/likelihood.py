"""The divergence along a trajectory, and log-likelihoods in bits."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fm_ext.solver.methods import Norm, SampleNorm, VelocityField


def bits_per_dimension(
    log_p: Float[Tensor, " batch"],
    dimensions: int | Int64[Tensor, " batch"],
    *,
    bin_width: float = 1 / 127.5,
) -> Float[Tensor, " batch"]:
    r"""What an image costs in bits, per entry: $-\log_2 p(x) / D - \log_2 \Delta$.

    A density of images with values in [-1, 1] becomes one of 8-bit levels, which lie $\Delta = 2 / 255$ apart: per
    entry $-\log_2 \Delta = \log_2 127.5 = 6.994$ bits are added. It is an upper bound of the code length, on
    average over the noise $u$, when the density was taken at dequantised images, `x + u * bin_width` with $u$ uniform
    in [0, 1) for levels `x = k / 127.5 - 1` (Theis et al., arXiv 1511.01844, section 3.1):

        x = images + torch.rand_like(images) / 127.5

    At images on the levels themselves a density may be as high as it likes, and the figure says nothing.

    Args:
        log_p: log-densities in nats, `(batch,)`; standard errors divide by `dimensions * math.log(2)` only.
        dimensions: entries of one image, D; with a mask, the number of missing entries of each, `(batch,)`.
        bin_width: distance of neighbouring levels in the data's units; 1 for a density, not of levels.
    """
    if not bin_width > 0:
        raise ValueError(f"`bin_width` must be positive; got {bin_width}.")
    return -log_p / (dimensions * math.log(2)) - math.log2(bin_width)


class AugmentedField:
    r"""The velocity and its divergence, as one field on `(batch, D + probes)`.

    Each probe $z$ of independent signs integrates $z^\top (\partial v / \partial x)\, z$, whose mean is the divergence
    (Hutchinson; Grathwohl et al., arXiv 1810.01367, equation 8); it stays the same along the trajectory. Without
    probes the divergence is summed from D exact derivatives.

    Args:
        field: the velocity.
        x: the state at the first time.
        probes: their number; 0 for the exact divergence.
        generator: where they come from.
        create_graph: whether the results are to be differentiated again.
        moving: bool, broadcastable to `x`: False where the velocity is 0, which takes neither probe nor derivative;
            None for all. A probe there would only add noise, from the derivatives of moving entries by still ones.
    """

    def __init__(
        self,
        field: VelocityField,
        x: Tensor,
        probes: int,
        generator: torch.Generator | None,
        create_graph: bool,
        moving: Tensor | None = None,
    ):
        self.field, self.shape, self.create_graph = field, x.shape, create_graph
        self.dimensions = math.prod(x.shape[1:])
        device = x.device if generator is None else generator.device
        bits = torch.randint(2, (probes, *x.shape), generator=generator, device=device)
        self.probes = 2 * bits.to(x.device, torch.promote_types(x.dtype, torch.float32)) - 1
        self.entries = list(range(self.dimensions))
        if moving is not None:
            moving = moving.expand_as(x)
            self.probes = self.probes.masked_fill(~moving, 0)
            self.entries = moving.reshape(len(x), self.dimensions).any(0).nonzero()[:, 0].tolist()

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        x = state[:, : self.dimensions].view(self.shape)
        if not self.create_graph:
            x = x.detach()
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            v = self.field(t, x)
            if not v.requires_grad:
                raise ValueError(
                    "the velocity carries no gradient to `x`: the model runs under torch.no_grad(), or ignores `x` "
                    "(then add 0 * x to it)."
                )
            traces = self._estimates(x, v) if len(self.probes) else self._exact(x, v)
        if not self.create_graph:
            v = v.detach()
        return torch.cat([v.reshape(len(v), self.dimensions), torch.stack(traces, dim=1)], dim=1)

    def _estimates(self, x: Tensor, v: Tensor) -> list[Tensor]:
        products = (self._vjp(x, v, z) * z for z in self.probes)
        return [p.reshape(len(p), self.dimensions).sum(1) for p in products]

    def _exact(self, x: Tensor, v: Tensor) -> list[Tensor]:
        trace: Tensor = x.new_zeros(len(x))
        for i in self.entries:
            one = torch.zeros_like(v)
            one.view(len(v), self.dimensions)[:, i] = 1
            trace = trace + self._vjp(x, v, one).reshape(len(v), self.dimensions)[:, i]
        return [trace]

    def _vjp(self, x: Tensor, v: Tensor, z: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            v, x, z, retain_graph=True, create_graph=self.create_graph, materialize_grads=True
        )
        return product

    def start(self, x: Tensor) -> Tensor:
        """The state that begins at `x` with nothing integrated."""
        nothing = x.new_zeros(len(x), max(1, len(self.probes)))
        return torch.cat([x.reshape(len(x), self.dimensions), nothing], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state as `x` and what each probe has integrated, `(batch, probes)`."""
        return state[:, : self.dimensions].view(self.shape), state[:, self.dimensions :]

    def result(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x`, the integral of the divergence, and the standard error of that, 0 for the exact one."""
        x, integrals = self.split(state)
        count = integrals.shape[1]
        several = integrals.numel() > len(integrals)  # probes, and samples at all
        error = integrals.detach().std(1) if several else torch.zeros_like(integrals[:, 0])
        return x, integrals.mean(1), error / count**0.5

    def norm(self, norm: Norm) -> Norm:
        """The larger of `norm` over `x` and the worst sample's error of the integrals."""

        def both(ratio: Tensor) -> Tensor:
            x, integrals = self.split(ratio)
            return torch.maximum(torch.as_tensor(norm(x)), SampleNorm()(integrals))

        return both


def log_density(log_p0: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`log_p0(x)`, which must be one value a sample."""
    log_p = log_p0(x)
    if log_p.shape == (len(x),) or (log_p.ndim == 0 and len(x) == 1):
        return log_p.reshape(len(x))
    raise ValueError(
        f"`log_p0` must return one value a sample, ({len(x)},); got {tuple(log_p.shape)}. For independent entries sum "
        "over them: torch.distributions.Independent(Normal(zeros, ones), zeros.ndim)."
    )
