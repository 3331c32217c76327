"""Linear systems and quadratic forms for a whole batch at once, by products alone: conjugate gradients and GMRES."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fm_ext.path.scheduler.precision import double

# u -> (C u, A u): the system's matrix A, and whatever else of u is wanted without a product more.
Product = Callable[[Tensor], Any]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products, one a sample, `(batch, 1, ..., 1)`."""
    axes = tuple(range(1, a.ndim))
    return (a * b).sum(axes, keepdim=True) if axes else a * b


def cg(product: Product, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """`u` and `C u` after some conjugate gradients from 0, for a symmetric positive definite A.

    A sample stands still where the curvature is not positive, which proves that its A is none (Steihaug's rule).
    """
    u, c, r, p = torch.zeros_like(b), torch.zeros_like(b), b, b
    norm = dot(r, r)
    for _ in range(iterations):
        c_p, a_p = product(p)
        curvature = dot(p, a_p)
        good = (curvature > 0) & (norm > 0)
        step = torch.where(good, norm / torch.where(good, curvature, 1.0), 0.0)
        u, c, r = u + step * p, c + step * c_p, r - step * a_p
        previous, norm = norm, dot(r, r)
        p = torch.where(good, r + norm / torch.where(good, previous, 1.0) * p, p)
    return u, c


@dataclass(frozen=True)
class Krylov:
    """The space of b, A b, A A b, ... by Arnoldi's orthogonal basis, made orthogonal twice against rounding.

    Attributes:
        size: |b|, `(batch, 1, ..., 1)`.
        basis: unit vectors like b; 0 where b is, and where the space of a sample is exhausted.
        others: `C v` of each.
        hessenberg: A in the basis, `(batch, iterations + 1, iterations)`, float64.
    """

    size: Tensor
    basis: list[Tensor]
    others: list[Tensor]
    hessenberg: Tensor

    @classmethod
    def of(cls, product: Product, b: Tensor, iterations: int) -> "Krylov":
        """By `iterations` products."""
        size = dot(b, b).sqrt()
        basis, others = [unit(b, size)], []
        hessenberg = double(b.new_zeros(len(b), iterations + 1, iterations))
        for k in range(iterations):
            c_v, w = product(basis[k])
            others.append(c_v)
            length = dot(w, w).sqrt()
            for _ in range(2):
                for i, v in enumerate(basis):
                    along = dot(v, w)
                    w = w - along * v
                    hessenberg[:, i, k] += along.reshape(len(b))
            rest = dot(w, w).sqrt()
            rest = torch.where(rest <= 10 * torch.finfo(w.dtype).eps * length, 0.0, rest)
            hessenberg[:, k + 1, k] = rest.reshape(len(b))
            basis.append(unit(w, rest))
        return cls(size, basis[:-1], others, hessenberg)

    def least_residual(self) -> tuple[Tensor, Tensor]:
        """`u` and `C u`, where `u` has the least residual |b - A u| in the space: GMRES.

        The residual is that of |b| e_1 - H w, solved in float64 by QR with rows of H's rounding below H: a sample that
        is solved already (b = 0), or whose space is exhausted, adds 0 there, and nothing is singular. A sample that is
        not finite stays alone with it.
        """
        rounding = self._rounding(torch.finfo(self.size.dtype).eps)
        diagonal = torch.diag_embed(rounding[:, None].expand(-1, len(self.basis)))
        q, r = torch.linalg.qr(torch.cat([self.hessenberg, diagonal], 1))
        right = q[:, :1].mT * double(self.size).reshape(-1, 1, 1)
        weights = torch.linalg.solve_triangular(r, right, upper=True).to(self.size.dtype)
        weights = weights.view(-1, len(self.basis), *(1 for _ in self.size.shape[1:]))
        u = sum(weights[:, i] * v for i, v in enumerate(self.basis))
        c = sum(weights[:, i] * c_v for i, c_v in enumerate(self.others))
        return torch.as_tensor(u), torch.as_tensor(c)

    def quadrature(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Gauss' quadrature of $b^\top f(A)\, b$ for a symmetric positive definite A, `(batch,)` in float64.

        An A that is not quite symmetric counts by its symmetric part, and an eigenvalue that is not positive, which is
        error alone, as the rounding of the others.
        """
        inside = self.hessenberg[:, :-1]
        finite = inside.isfinite().all(2).all(1)
        inside = torch.where(finite[:, None, None], inside, 0.0)
        values, vectors = torch.linalg.eigh((inside + inside.mT) / 2)
        floor = self._rounding(torch.finfo(self.size.dtype).eps ** 0.5).nan_to_num(1.0)
        terms = function(values.clamp(min=floor[:, None])) * vectors[:, 0].square()
        size = double(self.size).flatten()
        return torch.where(finite, size.square() * terms.sum(1), torch.nan)

    def _rounding(self, eps: float) -> Tensor:
        """`eps` times A's size, and above 0."""
        norm = eps * torch.linalg.matrix_norm(self.hessenberg)
        return norm.clamp(min=torch.finfo(norm.dtype).tiny ** 0.5)


def gmres(product: Product, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """`u` and `C u`, where `u` has the least residual |b - A u| in the Krylov space of A and b, for any A."""
    return Krylov.of(product, b, iterations).least_residual()


def unit(v: Tensor, length: Tensor) -> Tensor:
    """`v` divided by its length; 0 where that is 0."""
    return torch.where(length > 0, v / torch.where(length > 0, length, 1.0), 0.0)


SOLVERS = {"cg": cg, "gmres": gmres}
