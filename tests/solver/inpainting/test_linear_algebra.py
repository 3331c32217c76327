"""Laws of the batched Krylov solvers and of the batched L-BFGS."""

import pytest
import torch

from fm_ext.solver.inpainting.krylov import SOLVERS, Krylov, gmres
from fm_ext.solver.inpainting.lbfgs import minimise

SIZE = 6


def systems(symmetric=True):
    """Three systems, the second of them solved already (its right side is 0)."""
    root = torch.randn(3, SIZE, SIZE, dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(SIZE) if symmetric else root + 4 * torch.eye(SIZE)
    right = torch.randn(3, 2, 3, dtype=torch.float64)
    right[1] = 0
    product = lambda u: (
        2 * u,
        (matrix @ u.flatten(1)[:, :, None]).view_as(u),
    )
    exact = torch.linalg.solve(matrix, right.flatten(1)).view_as(right)
    return product, right, exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SOLVERS)
def test_as_many_iterations_as_unknowns_solve_the_system(name, dtype):
    product, right, exact = systems()
    narrow = lambda u: tuple(v.to(dtype) for v in product(u.double()))
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-2}
    )
    for iterations in (SIZE, SIZE + 2):  # the Krylov space is exhausted at SIZE
        u, c = SOLVERS[name](narrow, right.to(dtype), iterations)
        torch.testing.assert_close(u.double(), exact, **tolerance)
        torch.testing.assert_close(c, 2 * u)
        assert torch.equal(u[1], torch.zeros_like(u[1]))


def test_gmres_solves_asymmetric_systems_and_its_residual_never_grows():
    product, right, exact = systems(symmetric=False)
    norms = []
    for iterations in range(1, SIZE + 1):
        u, _ = gmres(product, right, iterations)
        norms.append((right - product(u)[1]).flatten(1).norm(dim=1))
    norms = torch.stack(norms)
    assert (norms[1:] <= norms[:-1] + 1e-9).all()
    torch.testing.assert_close(u, exact)


def test_gmres_has_the_least_residual_of_its_krylov_space():
    product, right, _ = systems(symmetric=False)
    u, _ = gmres(product, right, 2)
    space = torch.stack([right.flatten(1), product(right)[1].flatten(1)], dim=2)[[0, 2]]
    images = torch.stack(
        [product(right)[1].flatten(1), product(product(right)[1])[1].flatten(1)], dim=2
    )[[0, 2]]
    weights = torch.linalg.lstsq(images, right[[0, 2]].flatten(1)[:, :, None]).solution
    torch.testing.assert_close(u[[0, 2]].flatten(1), (space @ weights)[:, :, 0])


@pytest.mark.parametrize("function", [torch.log, torch.reciprocal])
def test_the_quadrature_is_exact_in_the_whole_space(function):
    product, right, _ = systems()
    right[2] = torch.nan
    basis = torch.eye(SIZE, dtype=torch.float64).view(SIZE, 1, 2, 3)
    matrix = torch.stack([product(v.expand(3, 2, 3))[1].flatten(1) for v in basis], 2)
    values, vectors = torch.linalg.eigh(matrix)
    expected = (
        (vectors.mT @ right.flatten(1)[:, :, None])[..., 0].square() * function(values)
    ).sum(1)
    for iterations in (SIZE, SIZE + 2):
        found = Krylov.of(product, right, iterations).quadrature(function)
        torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[1] == 0 and found[2].isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("iterations", [1, 2, 4, 8])
def test_no_sample_can_kill_the_batch(dtype, iterations):
    """Normal equations of a singular system are singular, and torch raises for all samples then."""
    torch.manual_seed(1)
    matrix = torch.randn(7, 4, 4, dtype=dtype)
    right = torch.randn(7, 4, dtype=dtype)
    matrix[0] = 0
    matrix[1] = torch.nan
    matrix[2] = 1e-30 * torch.eye(4)
    matrix[3] = torch.ones(4, 1) @ torch.ones(1, 4)  # of rank 1
    matrix[4] = torch.eye(4) + 1e-14 * matrix[4]  # an exhausted Krylov space, but for rounding
    right[5] = 0
    product = lambda u: ((matrix @ u[..., None])[..., 0],) * 2
    u, _ = gmres(product, right, iterations)
    assert u[[0, 2, 3, 4, 5, 6]].isfinite().all() and u[1].isnan().all()
    assert u[5].eq(0).all() and u[0].eq(0).all()
    left = (right - (matrix @ u[..., None])[..., 0]).norm(dim=1)
    assert (left <= (1 + 1e-5) * right.norm(dim=1))[[0, 2, 3, 4, 5, 6]].all()
    assert left[4] <= 10 * torch.finfo(dtype).eps ** 0.5 * right[4].norm()
    alone, _ = gmres(lambda u: ((matrix[6:] @ u[..., None])[..., 0],) * 2, right[6:], iterations)
    torch.testing.assert_close(u[6:], alone)


def test_conjugate_gradients_stand_still_where_the_matrix_is_negative():
    b = torch.ones(2, 3)
    product = lambda u: (u, torch.tensor([[-1.0], [2.0]]) * u)
    u, _ = SOLVERS["cg"](product, b, 4)
    torch.testing.assert_close(u, torch.tensor([[0.0], [0.5]]).expand(2, 3))


def test_lbfgs_finds_the_minimum_of_every_sample_alone():
    def rosenbrock(x):  # of different stiffness for every sample, with its minimum at (1, 1)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            stiff = torch.tensor([1.0, 10.0, 100.0], dtype=x.dtype)[: len(x), None]
            value = stiff * (x[:, 1:] - x[:, :1] ** 2) ** 2 + (1 - x[:, :1]) ** 2
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    start = torch.tensor([[-1.2, 1.0]] * 3, dtype=torch.float64)
    result = minimise(rosenbrock, start, range(60))
    torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=1e-5)
    assert torch.equal(minimise(rosenbrock, start[:1], range(60)), result[:1])
    still = minimise(rosenbrock, torch.ones(1, 2, dtype=torch.float64), range(3))
    assert torch.equal(still, torch.ones(1, 2, dtype=torch.float64))
