"""Optimal transport from Gaussian noise to a finite data set, by one number a row."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from fm_ext.utils.inputs import check_whole

BLOCK = 2**13
"""Rows of the data set that are compared with noise at a time."""

PURPOSES = "step", "check", "unit"


class SemidiscreteTransport:
    r"""Assigns to any noise the row of a data set that optimal transport sends it to.

    Between $N(0, I)$ and the $N$ equally likely rows $y_j$, the transport of least squared distance is

    $$x \mapsto y_{j(x)}, \qquad j(x) = \operatorname*{arg\,max}_j\; \langle x, y_j \rangle + b_j,$$

    for the numbers $b$ that make every row as likely as any other (Mousavi-Hosseini et al., arXiv 2509.25519;
    $b_j = g_j - \|y_j\|^2 / 2$ in terms of the potential $g$ of half the squared distance). Assigning costs a matrix
    product and the memory of a block of rows, whatever the batch that the pairs are for, and is the transport between
    the whole laws, not between batches. It is no `Coupling`: noise chooses the row, so it samples the data set, see
    `fm_ext.data.assigned_loader`.

    With `label` there is a potential for each class, from the same noise, and a model is given the label. Known pixels
    under random masks are a condition that no potential of the whole rows respects: pair without transport there.

    `fit` finds $b$ by stochastic gradients of the concave dual, which raise $b_j$ for a share $1/N$ of the noise and
    lower it for the share that row $j$ gets, and averages it with weights that grow. The step shrinks like one
    over the root of the noise drawn, from the mean gap between a noise's best and second best row, which is the
    natural unit of $b$ whatever the dimension. It starts at $b_j = -z\,\|y_j - \bar y\|$ with $z = \Phi^{-1}(1 - 1/N)$:
    each row is then as likely as any other to exceed the same threshold, so long rows get no more than short ones
    (derived here; in high dimensions this alone is near).

    Args:
        x_1: the rows, `(rows, ...)`, floating point; kept, not copied.
        label: `(rows,)`, int64; the transport stays within classes. None: one class.
        seed: of the noise that `fit` draws.

    Attributes:
        potential: $b$, `(rows,)`, float32 or wider; the averaged one.
        epochs: noise drawn by `fit` so far, per row of each class: a dictionary by class, 0 where there are no labels.
        chi_squared: by class, how uneven the rows are, estimated by the last `fit`; None before it.

    Raises:
        TypeError: for rows that are not floating point, or labels that are not int64.
        ValueError: without rows, or for labels of another length.
    """

    def __init__(
        self,
        x_1: Float[Tensor, " rows *dim"],
        *,
        label: Int64[Tensor, " rows"] | None = None,
        seed: int = 0,
    ):
        if not x_1.is_floating_point():
            raise TypeError(
                f"`x_1` must be floating point; got {x_1.dtype}. Bytes become data by `x_1.float() / 127.5 - 1`."
            )
        if x_1.ndim < 2 or not len(x_1):
            raise ValueError(f"`x_1` must hold rows, (rows, ...); got {tuple(x_1.shape)}.")
        if label is not None and label.dtype != torch.int64:
            raise TypeError(f"`label` must be int64; got {label.dtype}. Write `label.long()`.")
        if label is not None and label.shape != x_1.shape[:1]:
            raise ValueError(f"`label` must be ({len(x_1)},); got {tuple(label.shape)}.")
        self.x_1, self.label = x_1, label
        self.seed = check_whole("seed", seed, 0)
        self._dtype = torch.promote_types(x_1.dtype, torch.float32)
        where = torch.zeros(len(x_1), dtype=torch.int64) if label is None else label.cpu()
        self._rows = {int(k): (where == k).nonzero()[:, 0].to(x_1.device) for k in where.unique()}
        self.potential = torch.empty(len(x_1), dtype=self._dtype, device=x_1.device)
        self._current = torch.empty_like(self.potential)
        for rows in self._rows.values():
            self._current[rows] = self.potential[rows] = self._first_guess(rows)
        self.epochs = dict.fromkeys(self._rows, 0.0)
        self._steps = dict.fromkeys(self._rows, 0)
        self._units: dict[int, float] = {}
        self.chi_squared: dict[int, float] | None = None

    @torch.no_grad()
    def fit(
        self,
        *,
        tolerance: float = 0.05,
        epochs: float = 200.0,
        batch_size: int = 1024,
        check_every: float = 5.0,
        rate: float = 1.0,
        progress: bool = False,
    ) -> dict[int, float]:
        r"""Improves the potential until the rows are even enough; called again, it goes on where it stopped.

        The criterion is the paper's, equation 3.5: $\chi^2 = N \sum_j p_j^2 - 1$ with $p_j$ the share of the noise
        that row $j$ gets, 0 for an exact potential, N - 1 if one row gets all. It is estimated without bias from new
        noise.

        Args:
            tolerance: the $\chi^2$ of each class at which to stop; 0.05 in the paper. Not negative.
            epochs: at most so much noise per row in this call.
            batch_size: noise a step.
            check_every: noise per row between two estimates of $\chi^2$.
            rate: of the first steps, in units of the gap between a noise's best and second best row, for one epoch of
                noise; a step is at most half a unit.
            progress: whether to show a bar of epochs with the $\chi^2$ of the class.

        Returns:
            The estimate of $\chi^2$ by class, also kept in `chi_squared`. A class that does not come to `tolerance`
            is the reason for a warning.

        Raises:
            ValueError: for a number out of range.
        """
        batch_size = check_whole("batch_size", batch_size, 1)
        for name, value in {"epochs": epochs, "check_every": check_every, "rate": rate}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite; got {value}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"`tolerance` must be finite and not negative; got {tolerance}.")
        found = {}
        for k, rows in self._rows.items():
            found[k], last = self._chi_squared(k, tolerance), self.epochs[k] + epochs
            with tqdm(total=epochs, unit=" epochs", disable=not progress) as bar:
                while found[k] > tolerance and self.epochs[k] < last - 1e-9:
                    stop = min(last, self.epochs[k] + check_every)
                    while self.epochs[k] < stop - 1e-9:
                        self._step(k, rows, batch_size, rate)
                    found[k] = self._chi_squared(k, tolerance)
                    bar.set_postfix(chi_squared=f"{found[k]:.3f}")
                    bar.update(round(self.epochs[k] - last + epochs - bar.n, 2))
        self.chi_squared = found
        above = {k: round(value, 3) for k, value in found.items() if value > tolerance}
        if above:
            warnings.warn(
                f"chi squared is above `tolerance` = {tolerance} after {epochs:g} epochs, by class: {above}. "
                "Call fit() again to go on.",
                stacklevel=2,
            )
        return found

    def assign(
        self, x_0: Float[Tensor, " batch *dim"], label: Int64[Tensor, " batch"] | None = None
    ) -> Int64[Tensor, " batch"]:
        """The row of each noise, in one pass over the data.

        Args:
            x_0: noise, `(batch, ...)`.
            label: the classes to stay in, where the rows have any.

        Returns:
            Numbers of rows, on the device of the data.

        Raises:
            ValueError: for noise of another shape than the rows, labels that are missing or not wanted, of another
                length, or of no row.
        """
        if x_0.shape[1:] != self.x_1.shape[1:]:
            raise ValueError(
                f"`x_0` must be noise of the shape of the rows, {tuple(self.x_1.shape[1:])}; got "
                f"{tuple(x_0.shape[1:])}."
            )
        if (label is None) != (self.label is None):
            raise ValueError(
                "`label` must be given where the transport has labels, and only there; got "
                f"{'none' if label is None else 'some'}."
            )
        device = self.x_1.device
        result = torch.empty(len(x_0), dtype=torch.int64, device=device)
        if label is None:
            return self._best(x_0.to(device), self._rows[0], self.potential)[0]
        if label.shape != x_0.shape[:1]:
            raise ValueError(f"`label` must be ({len(x_0)},); got {tuple(label.shape)}.")
        for k in label.unique().tolist():
            if k not in self._rows:
                raise ValueError(f"`label` must be one of {[*self._rows]}; got {k}.")
            chosen = label == k
            noise = x_0[chosen.to(x_0.device)].to(device)
            result[chosen.to(device)] = self._best(noise, self._rows[k], self.potential)[0]
        return result

    @torch.no_grad()
    def dual(
        self, x_0: Float[Tensor, " batch *dim"], label: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        r"""The dual objective at each noise: its mean is at most the least mean squared distance, and that at best.

        $$\|x\|^2 + \frac{1}{N} \sum_j \big(\|y_j\|^2 + 2 b_j\big) - 2 \max_j \big(\langle x, y_j \rangle + b_j\big)$$

        (Weak duality holds for any potential.) The mean squared distance to the assigned rows, less the mean of this,
        bounds what the potential could still gain or owes to uneven rows.

        Args:
            x_0: noise, `(batch, ...)`.
            label: as in `assign`.
        """
        row = self.assign(x_0, label)
        x, y = (
            part.to(self._dtype).flatten(1) for part in (x_0.to(self.x_1.device), self.x_1[row])
        )
        means = {k: self._mean_part(rows) for k, rows in self._rows.items()}
        labels = [0] * len(x) if label is None else label.tolist()
        constant = torch.tensor([means[k] for k in labels], dtype=self._dtype, device=x.device)
        best = (x * y).sum(1) + self.potential[row]
        return x.square().sum(1) + constant - 2 * best

    @property
    def identity(self) -> dict[str, Any]:
        """What decides on the assignments, as JSON has it: equal where a resumed run is the same run."""
        numbers = torch.arange(1, len(self.potential) + 1, device=self.potential.device)
        mark = (self.potential.double() * numbers.double().sin()).sum().item()
        return {"rows": len(self.x_1), "potential": float(f"{mark:.6g}")}

    def state_dict(self) -> dict[str, Any]:
        """All that `fit` has found and needs to go on, for `torch.save`; not the data."""
        return {
            "potential": self.potential.clone(),
            "current": self._current.clone(),
            "steps": dict(self._steps),
            "epochs": dict(self.epochs),
            "units": dict(self._units),
            "chi_squared": self.chi_squared,
            "seed": self.seed,
            "data": self._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            ValueError: if it is of other data.
        """
        own = self._fingerprint()
        if not torch.allclose(state["data"], own, rtol=0, atol=1e-6 * own[0].item()):
            raise ValueError(
                "`state` must be of the same rows in the same order, and the same labels; it is of others. Fit anew."
            )
        self.potential = state["potential"].to(self.potential)
        self._current = state["current"].to(self.potential)
        self._steps, self.epochs = dict(state["steps"]), dict(state["epochs"])
        self._units, self.chi_squared = dict(state["units"]), state["chi_squared"]
        self.seed = state["seed"]

    def _first_guess(self, rows: Tensor) -> Tensor:
        sums = torch.stack([y.sum(0) for _, y in self._blocks(rows)])
        mean = sums.sum(0) / len(rows)
        lengths = torch.cat([(y - mean).norm(dim=1) for _, y in self._blocks(rows)])
        share = torch.tensor(1 - 1 / max(2, len(rows)), dtype=torch.float64)
        return -torch.special.ndtri(share).to(lengths) * lengths

    def _step(self, k: int, rows: Tensor, batch: int, rate: float) -> None:
        if k not in self._units:
            best, second = self._best(
                self._noise(k, "unit", 0, 256), rows, self._current, second=True
            )[1]
            self._units[k] = (best - second).mean().item() if len(rows) > 1 else 1.0
        row, _ = self._best(self._noise(k, "step", self._steps[k], batch), rows, self._current)
        drawn = batch / len(rows)  # noise per row
        # Shares answer to one unit by a factor of about e, so half a unit a step does not overshoot.
        size = self._units[k] * min(0.5, rate * drawn / math.sqrt(1 + self.epochs[k]))
        shares = torch.bincount(row, minlength=len(self._current))[rows] / drawn
        self._current[rows] += size * (1 - shares)
        self._steps[k] += 1
        self.epochs[k] += drawn
        # Weights that grow linearly (Lacoste-Julien et al., arXiv 1212.2002): of all noise so far three quarters count.
        self.potential[rows] = self.potential[rows].lerp(
            self._current[rows], 2 / (self._steps[k] + 1)
        )

    def _chi_squared(self, k: int, tolerance: float) -> float:
        """An estimate whose standard error for even rows is a fifth of the tolerance, or 0.001."""
        rows = self._rows[k]
        size = max(2, math.ceil(5 * math.sqrt(2 * len(rows)) / max(tolerance, 0.005)))
        counts = torch.zeros(len(self.potential), dtype=torch.int64, device=rows.device)
        for first in range(0, size, 1024):
            batch = min(1024, size - first)
            noise = self._noise(k, "check", self._steps[k] * 2**20 + first, batch)
            counts += torch.bincount(
                self._best(noise, rows, self.potential)[0], minlength=len(counts)
            )
        return chi_squared(counts[rows])

    def _noise(self, k: int, purpose: str, step: int, batch: int) -> Tensor:
        """Noise that is a function of the seed, the class, the purpose and the step, so that `fit` can go on."""
        words = (self.seed, [*self._rows].index(k), PURPOSES.index(purpose), step)
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        device = self.x_1.device
        generator = torch.Generator(device).manual_seed(seed)
        shape = (batch, *self.x_1.shape[1:])
        return torch.randn(shape, dtype=self._dtype, device=device, generator=generator)

    def _best(
        self, x_0: Tensor, rows: Tensor, potential: Tensor, second: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The best of `rows` for each noise, and the scores of the best, or of the best two, `(1 or 2, batch)`."""
        x = x_0.to(self._dtype).flatten(1)
        top = x.new_full((1 + second, len(x)), -math.inf)
        row = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for block, y in self._blocks(rows):
            scores = torch.addmm(potential[block], x, y.T)
            best, place = scores.max(1)
            better = best > top[0]
            row = torch.where(better, block[place], row)
            if second:
                both = scores.topk(min(2, scores.shape[1]), dim=1).values.T
                top = torch.cat([top, both]).topk(2, dim=0).values
            else:
                top = torch.where(better, best, top[0])[None]
        return row, top

    def _blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for block in rows.split(BLOCK):
            yield block, self.x_1[block].to(self._dtype).flatten(1)

    def _mean_part(self, rows: Tensor) -> float:
        squares = sum(y.double().square().sum().item() for _, y in self._blocks(rows))
        return (squares + 2 * self.potential[rows].double().sum().item()) / len(rows)

    def _fingerprint(self) -> Tensor:
        """Numbers that other rows, another order or other labels change."""
        length = torch.cat(
            [
                y.norm(dim=1)
                for _, y in self._blocks(torch.arange(len(self.x_1), device=self.x_1.device))
            ]
        )
        label = torch.zeros_like(length) if self.label is None else self.label.to(length)
        order = torch.arange(len(length), device=length.device, dtype=torch.float64).cos()
        sums = [
            length.double().sum(),
            (length.double() * order).sum(),
            (label.double() * order).sum(),
        ]
        return torch.stack(
            [*sums, torch.tensor(len(length), dtype=torch.float64, device=order.device)]
        ).cpu()


def chi_squared(counts: Int64[Tensor, " rows"]) -> float:
    r"""An estimate without bias of $N \sum_j p_j^2 - 1$ from how often each of N rows came, two draws or more."""
    total = counts.sum().item()
    pairs = (counts.double() * (counts.double() - 1)).sum().item()
    return len(counts) * pairs / (total * (total - 1)) - 1
