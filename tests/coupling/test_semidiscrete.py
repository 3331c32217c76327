"""Laws of the transport between Gaussian noise and a finite data set."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from fm_ext.coupling import SemidiscreteTransport, semidiscrete

NORMAL = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)


def line(n=10):
    """Points of the line out of order, and where noise goes: the k-th interval of equal probability to the k-th."""
    points = (torch.randn(n, 1, dtype=torch.float64) * 2 + 5).sort(0).values[torch.randperm(n)]
    ranks = points[:, 0].argsort()
    return points, lambda x: ranks[(NORMAL.cdf(x[:, 0]) * n).long().clamp(max=n - 1)]


@pytest.mark.filterwarnings("ignore:chi squared is above")
def test_the_line_in_closed_form():
    points, truth = line()
    transport = SemidiscreteTransport(points)
    assert transport.fit(tolerance=0.0, batch_size=64, epochs=4000, check_every=4000)[0] < 0.005
    x = torch.randn(4000, 1, dtype=torch.float64)
    assert (transport.assign(x) == truth(x)).double().mean() > 0.96


@pytest.mark.filterwarnings("ignore:chi squared is above")
@pytest.mark.parametrize("dim", [2, 30])
def test_against_the_exact_solution_of_a_large_sample(dim):
    """The least cost of 600 noises and each row as often bounds the dual; the assignment costs what the dual says."""
    y = 3 * torch.randn(12, dim, dtype=torch.float64) + 1
    transport = SemidiscreteTransport(y)
    x = torch.randn(600, dim, dtype=torch.float64)
    cost = torch.cdist(x, y.repeat(50, 1)).square()
    least = cost[linear_sum_assignment(cost)].mean()
    before = transport.dual(x).mean()
    transport.fit(tolerance=0.0, batch_size=64, epochs=4000, check_every=4000)
    after = transport.dual(x).mean()
    assert before <= after + 1e-3 * least and 0.99 * least < after <= least + 1e-9
    more = torch.randn(40_000, dim, dtype=torch.float64)
    found = (more - y[transport.assign(more)]).square().sum(1).mean()
    assert abs(found / transport.dual(more).mean() - 1) < 0.01


def test_rows_are_even_and_stay_so_under_other_noise():
    y = torch.randn(40, 5) * torch.rand(40, 1) * 3
    transport = SemidiscreteTransport(y)
    found = transport.fit(tolerance=0.02, batch_size=64, epochs=600, check_every=50)[0]
    counts = torch.bincount(transport.assign(torch.randn(20_000, 5)), minlength=40)
    assert abs(semidiscrete.chi_squared(counts) - found) < 0.03
    nearest = torch.bincount(torch.cdist(torch.randn(20_000, 5), y).argmin(1), minlength=40)
    assert semidiscrete.chi_squared(nearest) > 0.5


def test_chi_squared_has_no_bias():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    draws = torch.multinomial(p, 5 * 40_000, replacement=True).view(-1, 5)
    counts = torch.nn.functional.one_hot(draws, 4).sum(1)
    estimates = torch.tensor([semidiscrete.chi_squared(row) for row in counts[:8000]])
    want = 4 * p.square().sum() - 1
    assert abs(estimates.mean() - want) < 4 * estimates.std() / 8000**0.5


def test_what_moves_or_scales_all_rows_changes_no_assignment():
    y, x = torch.randn(20, 3, dtype=torch.float64), torch.randn(500, 3, dtype=torch.float64)
    fitted = []
    for rows in (y, y + torch.tensor([5.0, -3.0, 9.0]), 7 * y):
        transport = SemidiscreteTransport(rows)
        with pytest.warns(UserWarning, match="chi squared is above `tolerance` = 0.0 .*Call fit"):
            transport.fit(tolerance=0.0, batch_size=32, epochs=20)
        fitted.append(transport)
    assigned = [transport.assign(x) for transport in fitted]
    assert torch.equal(assigned[0], assigned[1]) and torch.equal(assigned[0], assigned[2])
    assert_close(fitted[1].potential, fitted[0].potential)
    assert_close(fitted[2].potential, 7 * fitted[0].potential)
    fitted[0].potential += 3.0
    assert torch.equal(fitted[0].assign(x), assigned[1])


def test_blocks_are_one_pass(monkeypatch):
    y, x = torch.randn(23, 2, 3), torch.randn(50, 2, 3)
    transport = SemidiscreteTransport(y)
    whole = transport.assign(x), transport.dual(x)
    assert torch.equal(whole[0], (x.flatten(1) @ y.flatten(1).T + transport.potential).argmax(1))
    monkeypatch.setattr(semidiscrete, "BLOCK", 5)
    assert torch.equal(transport.assign(x), whole[0])
    assert_close(transport.dual(x), whole[1])
    best, second = transport._best(x, transport._rows[0], transport.potential, second=True)[1]
    scores = x.flatten(1) @ y.flatten(1).T + transport.potential
    assert_close(torch.stack([best, second], 1), scores.topk(2, dim=1).values)


def test_classes_keep_to_themselves():
    y, label = torch.randn(30, 4), torch.tensor([0, 7]).repeat_interleave(torch.tensor([10, 20]))
    order = torch.randperm(30)
    y, label = y[order], label[order]
    both = SemidiscreteTransport(y, label=label)
    found = both.fit(tolerance=0.05, batch_size=32, epochs=300, check_every=20)
    assert set(found) == {0, 7} and max(found.values()) <= 0.05
    wanted = torch.tensor([0, 7]).repeat(50)
    x = torch.randn(100, 4)
    rows = both.assign(x, wanted)
    assert torch.equal(label[rows], wanted)
    alone = SemidiscreteTransport(y[label == 7])
    alone.potential = both.potential[label == 7]
    seven = (label == 7).nonzero()[:, 0]
    assert torch.equal(rows[wanted == 7], seven[alone.assign(x[wanted == 7])])
    assert both.dual(x, wanted).shape == (100,)


@pytest.mark.filterwarnings("ignore:chi squared is above")
def test_it_goes_on_where_it_stopped(tmp_path):
    y = torch.randn(30, 4)
    through, first, second = (SemidiscreteTransport(y, seed=seed) for seed in (3, 3, 0))
    given = {"tolerance": 0.0, "batch_size": 30, "check_every": 4}
    through.fit(epochs=8, **given)
    first.fit(epochs=4, **given)
    torch.save(first.state_dict(), tmp_path / "transport.pt")
    second.load_state_dict(torch.load(tmp_path / "transport.pt"))
    assert second.fit(epochs=4, **given) == through.chi_squared
    assert torch.equal(second.potential, through.potential)
    assert second.identity == through.identity != first.identity
    for other in (torch.randn(30, 4), y.flip(0), y[:20]):
        with pytest.raises(ValueError, match=r"`state` must be of the same rows .* Fit anew"):
            SemidiscreteTransport(other).load_state_dict(first.state_dict())
    labelled = SemidiscreteTransport(y, label=torch.arange(30) % 2)
    with pytest.raises(ValueError, match="and the same labels"):
        labelled.load_state_dict(first.state_dict())


def test_one_row_gets_everything():
    transport = SemidiscreteTransport(torch.randn(1, 3))
    assert transport.fit() == {0: 0.0} and transport.assign(torch.randn(4, 3)).eq(0).all()


def test_bad_input(untyped):
    y, label = torch.randn(6, 2), torch.arange(6) % 2
    for arguments, error, message in [
        ({"x_1": y.long()}, TypeError, r"`x_1` must be floating point; got torch.int64"),
        ({"x_1": y[:0]}, ValueError, r"`x_1` must hold rows, \(rows, ...\); got \(0, 2\)"),
        ({"x_1": y, "label": label.int()}, TypeError, r"`label` must be int64.*label.long"),
        ({"x_1": y, "label": label[:4]}, ValueError, r"`label` must be \(6,\); got \(4,\)"),
    ]:
        with pytest.raises(error, match=message):
            SemidiscreteTransport(**arguments)
    plain, labelled = SemidiscreteTransport(y), SemidiscreteTransport(y, label=label)
    for name in ("epochs", "check_every", "rate"):
        with pytest.raises(ValueError, match=f"`{name}` must be positive and finite; got 0"):
            plain.fit(**{name: 0})
    with pytest.raises(ValueError, match="`tolerance` must be finite and not negative; got -1"):
        plain.fit(tolerance=-1)
    with pytest.raises(
        ValueError, match=r"`x_0` must be noise of the shape of the rows, \(2,\); got \(3,\)"
    ):
        plain.assign(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"`label` must be given where .* only there; got some"):
        plain.assign(y, label)
    with pytest.raises(ValueError, match=r"`label` must be given where .* only there; got none"):
        labelled.assign(y)
    with pytest.raises(ValueError, match=r"`label` must be \(6,\); got \(4,\)"):
        labelled.assign(y, label[:4])
    with pytest.raises(ValueError, match=r"`label` must be one of \[0, 1\]; got 5"):
        labelled.assign(y, label + 5)
