"""Linear systems for a whole batch at once, by products alone: conjugate gradients and GMRES."""

from collections.abc import Callable
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


def gmres(product: Product, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """`u` and `C u`, where `u` has the least residual |b - A u| in the Krylov space of A and b, for any A.

    Arnoldi's orthogonal basis, made orthogonal twice against rounding, turns the residual into |beta e_1 - H w|, with H
    of `iterations` + 1 rows. That is solved in float64 by QR, with rows of H's rounding below H: a sample that is
    solved already (b = 0), or whose Krylov space is exhausted, adds 0 there, and nothing is singular. A sample that is
    not finite stays alone with it.
    """
    size = dot(b, b).sqrt()
    basis, others = [unit(b, size)], []
    hessenberg = double(b.new_zeros(len(b), 2 * iterations + 1, iterations))
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
    rounding = torch.finfo(b.dtype).eps * torch.linalg.matrix_norm(hessenberg)
    rounding = rounding.clamp(min=torch.finfo(hessenberg.dtype).tiny ** 0.5)
    hessenberg[:, iterations + 1 :].diagonal(dim1=1, dim2=2).copy_(rounding[:, None])
    q, r = torch.linalg.qr(hessenberg)
    right = q[:, :1].mT * double(size).reshape(-1, 1, 1)
    weights = torch.linalg.solve_triangular(r, right, upper=True).to(b.dtype)
    weights = weights.view(len(b), iterations, *(1 for _ in b.shape[1:]))
    u = sum(weights[:, i] * basis[i] for i in range(iterations))
    c = sum(weights[:, i] * others[i] for i in range(iterations))
    return torch.as_tensor(u), torch.as_tensor(c)


def unit(v: Tensor, length: Tensor) -> Tensor:
    """`v` divided by its length; 0 where that is 0."""
    return torch.where(length > 0, v / torch.where(length > 0, length, 1.0), 0.0)


SOLVERS = {"cg": cg, "gmres": gmres}
