"""Laws of the couplings of least transport cost."""

import itertools

import pytest
import torch
from flow_matching.path import CondOTProbPath
from scipy.optimize import linear_sum_assignment

from fm_ext.coupling import (
    GreedyTransport,
    IndependentCoupling,
    OptimalTransport,
    SinkhornTransport,
)
from fm_ext.coupling.optimal_transport import (
    SMALL,
    _prices,
    assign,
    condition_distance,
    condition_weight,
    squared_distance,
)
from fm_ext.path import CoupledProbPath, MaskedProbPath

PERMUTATIONS = [OptimalTransport(), GreedyTransport(), IndependentCoupling()]
TRANSPORTS = [OptimalTransport(), GreedyTransport(), SinkhornTransport()]
name = lambda x: type(x).__name__


def batch(n=24, shape=(3, 4, 5), dtype=torch.float64):
    return torch.randn(n, *shape, dtype=dtype), torch.randn(n, *shape, dtype=dtype) + 1


def cost(x_0, x_1):
    return (x_0 - x_1).flatten(1).square().sum(1)


def brute_force(x_0, x_1):
    rows = torch.arange(len(x_0))
    pairs = squared_distance(x_1, x_0)
    return min(pairs[rows, list(p)].sum() for p in itertools.permutations(range(len(x_0))))


@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coupling", PERMUTATIONS + TRANSPORTS[2:], ids=name)
def test_sources_are_rows_of_the_batch_and_a_permutation_uses_each_once(coupling, shape, dtype):
    x_0, x_1 = batch(shape=shape, dtype=dtype)
    before = x_1.clone()
    paired, index = coupling(x_0, x_1)
    assert torch.equal(paired, x_0[index]) and paired.dtype == dtype
    assert torch.equal(x_1, before)
    assert index.dtype == torch.int64
    if coupling in PERMUTATIONS:
        assert torch.equal(index.sort().values, torch.arange(24))


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("coupling", TRANSPORTS, ids=name)
def test_small_batches(coupling, n):
    x_0, x_1 = batch(n, (2,))
    assert coupling(x_0, x_1)[0].shape == x_0.shape
    if n == 1:
        assert coupling(x_0, x_1)[1].tolist() == [0]


@pytest.mark.parametrize("n", [2, 5, 7])
def test_optimal_transport_is_brute_force(n):
    x_0, x_1 = batch(n, (2,))
    torch.testing.assert_close(
        cost(OptimalTransport()(x_0, x_1)[0], x_1).sum(), brute_force(x_0, x_1)
    )


@pytest.mark.parametrize("coupling", TRANSPORTS[:2], ids=name)
def test_cost_is_at_most_that_of_the_pairs_as_they_came(coupling):
    for _ in range(5):
        x_0, x_1 = batch()
        assert cost(coupling(x_0, x_1)[0], x_1).sum() <= cost(x_0, x_1).sum()


def test_exchanges_never_cost_and_a_full_round_of_them_reaches_every_pair():
    x_0, x_1 = batch(64, (2,))
    pairs = squared_distance(x_1, x_0)
    totals = [
        pairs[torch.arange(64), GreedyTransport(rounds).assign(pairs, None)].sum()
        for rounds in range(0, 130, 2)
    ]
    assert all(b <= a for a, b in itertools.pairwise(totals))
    swapped = GreedyTransport(2).assign(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None)
    assert swapped.tolist() == [1, 0]


def test_targets_that_agree_on_their_order_of_sources_do_not_need_a_round_each(monkeypatch):
    rounds = 0
    minimum = torch.Tensor.min

    def counted(x, *args):
        nonlocal rounds
        rounds += x.ndim == 2
        return minimum(x, *args)

    monkeypatch.setattr(torch.Tensor, "min", counted)
    source = torch.rand(500, dtype=torch.float64)
    pairs = torch.rand(500, 1, dtype=torch.float64) * source
    index = GreedyTransport(500).assign(pairs, None)
    assert 0 < rounds <= 64
    assert torch.equal(index.sort().values, torch.arange(500))
    rows = torch.arange(500)
    found, least, came = (pairs[rows, j].sum() for j in (index, assign(pairs), rows))
    assert found - least < 0.02 * (came - least)


def costs(case, n, dtype):
    if case == "tokens":
        return (torch.randint(3, (n, 1, 6)) != torch.randint(3, (n, 6))).sum(-1).to(dtype)
    if case == "no geometry":
        return torch.rand(n, n, dtype=dtype) - 0.5
    if case == "product":
        return 100 * torch.rand(n, 1, dtype=dtype) * torch.rand(n, dtype=dtype)
    if case == "constant":
        return torch.full((n, n), 3.0, dtype=dtype)
    x_0, x_1 = torch.randn(2, n, 2, dtype=dtype)
    if case == "clusters":
        x_0 = 4 * torch.randint(0, 3, (n, 1)) + 0.1 * x_0
    elif case == "images":
        x_0, x_1 = torch.randn(n, 300, dtype=dtype), x_1 @ torch.randn(2, 300, dtype=dtype)
    elif case == "all sources equal":
        x_0 = torch.zeros_like(x_0)
    elif case == "all targets equal":
        x_1 = torch.zeros_like(x_1)
    elif case == "corners":
        x_0, x_1 = (x_0 > 0).to(dtype), (x_1 > 0).to(dtype)
    elif case == "every row four times":
        x_0, x_1 = (x[: n // 4 + 1].repeat(4, 1)[:n] for x in (x_0, x_1))
    elif case == "the same batch":
        x_0 = x_1[torch.randperm(n)]
    elif case == "an outlier":
        x_0[0] = 1e4
    return squared_distance(x_1, x_0)


CASES = ["noise", "images", "clusters", "no geometry", "product", "an outlier", "the same batch"]
TIED = ["corners", "tokens", "constant", "every row four times"]
TIED += ["all sources equal", "all targets equal"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [SMALL, SMALL + 1, 301])
@pytest.mark.parametrize("case", CASES + TIED)
def test_assignment_is_scipys_optimum(case, n, dtype):
    pairs = costs(case, n, dtype)
    before = pairs.clone()
    index = assign(pairs)
    rows, columns = linear_sum_assignment(pairs.numpy())
    found, best = (pairs[rows, j].double().sum() for j in (index, columns))
    assert torch.equal(pairs, before)
    assert torch.equal(index.sort().values, torch.arange(n))
    assert torch.equal(assign(pairs), index)
    assert abs(found - best) <= 1e-12 * pairs.double().abs().sum(1).max()


@pytest.mark.parametrize("case", ["noise", "images", "tokens", "no geometry"])
def test_assignment_of_more_than_a_thousand_rows(case):
    pairs = costs(case, 1100, torch.float32)
    rows, columns = linear_sum_assignment(pairs.numpy())
    found, best = (pairs[rows, j].double().sum() for j in (assign(pairs), columns))
    torch.testing.assert_close(found, best, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("case", ["noise", "images", "clusters", "no geometry"])
def test_prices_are_nearly_optimal(case):
    """By weak duality no prices give more than the least cost; these give nearly that, minima alone do not."""
    pairs = costs(case, 301, torch.float64)
    pairs -= pairs.amin(1, keepdim=True)
    pairs -= pairs.amin(0)
    bound = lambda v: (pairs - v).amin(1).sum() + v.sum()
    best = pairs[torch.arange(301), assign(pairs)].sum()
    assert 0.95 * best <= bound(_prices(pairs)) <= best * (1 + 1e-12)
    assert bound(torch.zeros(301)) < 0.5 * best


@pytest.mark.parametrize("kind", ["integers", "words", "binary", "classes", "empty holes", "tail"])
def test_ties_and_heavy_tails_are_left_to_the_solver(kind):
    """From prices it takes up to hundred times as long there."""
    n = 700
    pairs = {
        "integers": lambda: torch.randint(0, 100, (n, n)),
        "words": lambda: torch.cdist(*torch.randint(999, (2, n, 40)).float(), p=0),
        "binary": lambda: torch.rand(n, n) < 0.5,
        "classes": lambda: torch.randint(50, (n, 1)) != torch.randint(50, (n,)),
        "empty holes": lambda: torch.rand(n, n) * (torch.rand(n, 1) < 0.5),
        "tail": lambda: torch.rand(n, n).double() ** 20,
    }[kind]()
    pairs = pairs.to(torch.promote_types(pairs.dtype, torch.float32))
    slack = pairs - pairs.amin(1, keepdim=True)
    assert torch.equal(_prices(pairs), slack.amin(0))
    rows, columns = linear_sum_assignment(pairs.numpy())
    found, best = (pairs[rows, j].double().sum() for j in (assign(pairs), columns))
    torch.testing.assert_close(found, best, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("power", [1, 20, 60])
def test_prices_are_finite_however_much_costs_differ(power):
    for pairs in (torch.rand(200, 200), torch.rand(200, 1) * torch.rand(200)):
        pairs = pairs.double() ** power
        for cost in (pairs, pairs.T, 1e25 * pairs, 1e-25 * pairs):
            assert _prices(cost).isfinite().all() and _prices(cost.float()).isfinite().all()


@pytest.mark.parametrize("coupling", TRANSPORTS, ids=name)
def test_gradients_reach_the_sources_that_were_chosen(coupling):
    x_0, x_1 = batch()
    x_0.requires_grad_()
    paired, index = coupling(x_0, x_1)
    paired.sum().backward()
    used = index.bincount(minlength=24).double()
    assert x_0.grad is not None
    torch.testing.assert_close(x_0.grad, used.view(24, 1, 1, 1).expand_as(x_0))


@pytest.mark.parametrize("coupling", TRANSPORTS[:2], ids=name)
def test_deterministic_and_indifferent_to_a_common_shift(coupling):
    x_0, x_1 = batch()
    index = coupling(x_0, x_1)[1]
    assert torch.equal(coupling(x_0, x_1)[1], index)
    assert torch.equal(coupling(x_0 + 1000, x_1 + 1000)[1], index)


def test_distances_of_large_numbers_do_not_drown_in_rounding():
    x_0, x_1 = batch(16, (50,))
    near = squared_distance((x_1 + 1e3).float(), (x_0 + 1e3).float())
    torch.testing.assert_close(near.double(), torch.cdist(x_1, x_0) ** 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("offset", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("shape", [(2,), (300,)], ids=str)
def test_batches_in_float32_may_be_far_from_each_other(shape, offset):
    x_0, x_1 = batch(100, shape, torch.float32)
    far = x_1 + offset
    index = OptimalTransport()(x_0, far)[1]
    rounded = (far.double() - far.double().mean(0)).float()  # what adding the offset has left
    torch.testing.assert_close(
        cost(x_0[index], rounded).sum(),
        cost(OptimalTransport()(x_0.double(), rounded.double())[0], rounded).sum().float(),
        rtol=1e-6,
        atol=0,
    )
    gap = cost(GreedyTransport()(x_0, far)[0], rounded).mean()
    assert gap < cost(x_0[index], rounded).mean() + 0.1 * cost(x_0, rounded).mean()


@pytest.mark.parametrize("masked", [False, True])
def test_clusters_in_float32_may_be_far_from_each_other(masked):
    cluster = 1e3 * torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])[torch.arange(200) % 4]
    x_0, x_1 = (cluster + 0.1 * torch.randn(200, 2) for _ in range(2))
    mask = torch.ones(200, 2, dtype=torch.bool) if masked else None
    index, best = (
        OptimalTransport()(a, b, mask=mask)[1]  # without known pixels: all rows are alike
        for a, b in ((x_0, x_1), (x_0.double(), x_1.double()))
    )
    found, least = (cost(x_0[i].double(), x_1.double()).sum() for i in (index, best))
    torch.testing.assert_close(found, least, rtol=1e-5, atol=0)
    assert least < 0.2 * cost(x_0, x_1).sum()


def test_holes_in_float32_may_be_far_from_the_source():
    x_0, x_1 = batch(100, (8,), torch.float32)
    far, mask = x_1 + 1e5, torch.rand(100, 8) < 0.5
    coupling = OptimalTransport(weight=0.0)
    index = coupling(x_0, far, mask=mask)[1]
    assert torch.equal(index, coupling(x_0.double(), far.double(), mask=mask)[1])


def test_distance_of_centred_batches_differs_by_numbers_of_rows_and_columns():
    x_0, x_1 = batch(20)
    change = squared_distance(x_1, x_0, centred=True) - squared_distance(x_1, x_0)
    change = change - change.mean(0) - change.mean(1, keepdim=True) + change.mean()
    torch.testing.assert_close(change, torch.zeros_like(change))
    own = squared_distance(x_1, x_1, centred=True)
    torch.testing.assert_close(own, squared_distance(x_1, x_1))


@pytest.mark.parametrize("coupling", TRANSPORTS, ids=name)
def test_labels_stay_in_their_class_and_each_class_is_solved_by_itself(coupling):
    x_0, x_1 = batch(40, (2,))
    label = torch.randint(-1, 4, (40,))
    generator = lambda: torch.Generator().manual_seed(1)
    paired, index = coupling(x_0, x_1, label=label, generator=generator())
    assert torch.equal(label[index], label) and torch.equal(paired, x_0[index])
    if coupling in PERMUTATIONS:
        for c in label.unique():
            rows = (label == c).nonzero()[:, 0]
            alone = coupling(x_0[rows], x_1[rows])[1]
            assert torch.equal(index[rows], rows[alone])
        assert torch.equal(index.sort().values, torch.arange(40))


@pytest.mark.parametrize("kind", [OptimalTransport, GreedyTransport])
def test_cost_in_the_hole_ignores_known_pixels_of_the_target(kind):
    x_0, x_1 = batch()
    mask = torch.rand(24, 1, 4, 5) < 0.5
    coupling = kind(weight=0.0)
    index = coupling(x_0, x_1, mask=mask)[1]
    other = torch.where(mask, x_1, 100 * torch.randn_like(x_1))
    assert torch.equal(coupling(x_0, other, mask=mask)[1], index)
    assert not torch.equal(coupling(x_0, other)[1], index)
    full = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    whole, plain = (cost(kind()(x_0, x_1, mask=m)[0], x_1).sum() for m in (full, None))
    torch.testing.assert_close(
        whole, plain, rtol=0.02 if kind is GreedyTransport else 1e-12, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 63, 700])
@pytest.mark.parametrize("kind", [OptimalTransport, GreedyTransport, SinkhornTransport])
def test_sources_move_among_rows_of_equal_conditions_only(kind, width, dtype):
    """Among these as without conditions, and whatever the condition is: its last number may be all that differs."""
    x_0, x_1 = batch(40, (2,))
    number = torch.arange(40) % 3
    condition = torch.ones(40, width, dtype=dtype)
    condition[:, -1] = number.to(dtype)
    one = torch.arange(40) % 2
    within = kind()(x_0, x_1, label=number, generator=torch.Generator().manual_seed(1))[1]
    index = kind()(x_0, x_1, condition=condition, generator=torch.Generator().manual_seed(1))[1]
    assert torch.equal(index, within) and not torch.equal(index, torch.arange(40))
    both = kind()(x_0, x_1, condition=condition, label=one)[1]
    assert torch.equal(number[both], number) and torch.equal(one[both], one)


@pytest.mark.parametrize("kind", [OptimalTransport, GreedyTransport, SinkhornTransport])
def test_the_mask_and_the_known_pixels_are_a_condition(kind):
    x_0, x_1 = batch(24, (1, 4, 5))
    mask = torch.zeros(24, 1, 4, 5, dtype=torch.bool)
    mask[:, :, :2], mask[12:, :, 2] = True, True
    rows = torch.arange(24)
    group = rows // 12 * 3 + rows % 3
    x_1 = torch.where(mask, x_1, group[:, None, None, None].double())
    index = kind()(x_0, x_1, mask=mask, generator=torch.Generator().manual_seed(1))[1]
    assert torch.equal(group[index], group) and not torch.equal(index, rows)
    same = kind()(x_0, x_1, mask=mask, label=group, generator=torch.Generator().manual_seed(1))[1]
    assert torch.equal(index, same)


@pytest.mark.parametrize("kind", [OptimalTransport, GreedyTransport, SinkhornTransport])
def test_a_batch_in_which_nothing_is_equal_moves_nothing_and_says_so_once(kind):
    x_0, x_1 = batch()
    mask, coupling = torch.rand(24, 1, 4, 5) < 0.5, kind()
    with pytest.warns(RuntimeWarning, match=f"{kind.__name__} moved no source.*24 rows") as caught:
        assert coupling(x_0, x_1, mask=mask)[1].tolist() == list(range(24))
    assert coupling(x_0, x_1, mask=mask)[1].tolist() == list(range(24))  # no second warning
    advice = str(caught[0].message).split("independent. ")[1].split(" exchanges")[0]
    assert len(eval(advice)(x_0, x_1, mask=mask)[1].unique()) > 1
    kind()(x_0[:1], x_1[:1], mask=mask[:1])  # one row could not move
    near = kind(ratio=0.2)(x_0, x_1, mask=mask, generator=torch.Generator().manual_seed(0))[1]
    assert not torch.equal(near, torch.arange(24))


def law_of_fills(coupling, given=("mask",), batches=60, rho=0.9, y=1.5):
    """Mean and deviation of what fills the first coordinate beside y, with the velocity that these pairs teach.

    In this family of Gaussians the best linear regression of the velocity on the state and on y is the velocity.
    """
    generator = torch.Generator().manual_seed(0)
    path = MaskedProbPath(CoupledProbPath(CondOTProbPath(), coupling))
    triples = []
    for _ in range(batches):
        z, x_0 = torch.randn(2, 256, 2, dtype=torch.float64, generator=generator)
        known = z[:, 1:]
        x_1 = torch.cat([rho * known + (1 - rho**2) ** 0.5 * z[:, :1], known], dim=1)
        words = {"mask": torch.tensor([[True, False]]), "condition": known}
        s = path.sample(x_0, x_1, torch.zeros(256), **{name: words[name] for name in given})
        triples.append(torch.cat([s.x_0[:, :1], x_1], dim=1))
    triples = torch.cat(triples)
    centre, covariance = triples.mean(0), torch.cov(triples.T)
    mean, deviation, steps = torch.zeros(()).double(), torch.ones(()).double(), 200
    change = torch.tensor([-1.0, 1.0, 0.0]).double()
    for t in (torch.arange(steps) + 0.5) / steps:
        state = torch.tensor([[1 - t, t, 0.0], [0.0, 0.0, 1.0]]).double()
        a, b = torch.linalg.solve(state @ covariance @ state.T, state @ covariance @ change)
        offset = b * y + change @ centre - torch.stack([a, b]) @ (state @ centre)
        growth = (a / steps).exp()
        mean, deviation = growth * mean + (growth - 1) / a * offset, growth * deviation
    return mean.item(), deviation.item()


FILLS = {  # of the Gaussian pair with correlation 0.9 beside y = 1.5, where the truth is 1.350 +- 0.436
    "independent": (IndependentCoupling(), 1.35, 0.436),
    "default": (OptimalTransport(), 1.35, 0.436),
    "ratio=0.05": (OptimalTransport(ratio=0.05), 1.335, 0.437),
    "ratio=0.2": (OptimalTransport(ratio=0.2), 1.15, 0.456),
    "weight=0": (OptimalTransport(weight=0.0), 0.065, 0.957),
}


@pytest.mark.filterwarnings("ignore:OptimalTransport moved no source")
@pytest.mark.parametrize("name", FILLS)
def test_law_of_the_fills_of_a_gaussian_pair(name):
    """The default is right; a bias is chosen by name. Also where the known value is given as a condition once more."""
    coupling, mean, deviation = FILLS[name]
    batches = 16 if "=" in name else 150
    got = law_of_fills(coupling, batches=batches)
    assert got == pytest.approx((mean, deviation), abs=0.025)
    if name == "default":
        assert law_of_fills(coupling, ("mask", "condition"), batches) == got


def test_masked_distance_is_its_formula():
    x_0, x_1 = batch(6)
    mask = torch.rand(6, 1, 4, 5) < 0.5
    formula = ((x_1[:, None] - x_0) ** 2 * mask[:, None]).sum((2, 3, 4))
    torch.testing.assert_close(squared_distance(x_1, x_0, mask), formula)


def test_condition_with_infinite_weight_is_the_label_and_with_none_is_plain():
    x_0, x_1 = batch(32, (2,))
    label = torch.randint(0, 3, (32,))
    condition = torch.nn.functional.one_hot(label).double()
    heavy = OptimalTransport(weight=1e6)(x_0, x_1, condition=condition)
    assert torch.equal(heavy[1], OptimalTransport()(x_0, x_1, label=label)[1])
    light = OptimalTransport(weight=0.0)(x_0, x_1, condition=condition)
    assert torch.equal(light[1], OptimalTransport()(x_0, x_1)[1])
    assert torch.equal(OptimalTransport(ratio=1.0)(x_0, x_1, condition=condition)[1], light[1])


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3])
def test_weight_leaves_the_ratio_of_candidates(ratio):
    x_0, x_1 = batch(60, (2,))
    c = torch.randn(60, 3, dtype=torch.float64)
    pairs, penalty = squared_distance(x_1, x_0), squared_distance(c, c).clamp(min=0)
    penalty.fill_diagonal_(0)
    weight = condition_weight(pairs, penalty, ratio)
    share = lambda w: (pairs + w * penalty <= pairs.diagonal()[:, None]).double().mean()
    assert share(weight) <= ratio < share(weight * 0.999) + 1 / 3600


@pytest.mark.parametrize("ratio", [0.05, 0.01])
@pytest.mark.parametrize("width", [3, 64, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_repeated_conditions_with_a_searched_weight_are_the_label(dtype, width, ratio):
    x_0, x_1 = batch(120, (2,), torch.float32)
    label = torch.randint(10, (120,))
    condition = torch.nn.functional.normalize(torch.randn(10, width), dim=1)[label].to(dtype)
    distance = condition_distance(condition)
    assert torch.equal(distance == 0, label[:, None] == label)
    weight = condition_weight(squared_distance(x_1, x_0), distance.float(), ratio)
    assert weight <= 1.01 * (30**2 / distance[distance > 0].min())
    exact, greedy = (c(ratio=ratio) for c in (OptimalTransport, GreedyTransport))
    within = cost(OptimalTransport()(x_0, x_1, label=label)[0], x_1).mean()
    for coupling in (exact, greedy):
        paired, index = coupling(x_0, x_1, condition=condition)
        assert (label[index] == label).float().mean() > 0.95
        assert cost(paired, x_1).mean() < within + 0.1


def test_nearer_conditions_with_a_smaller_ratio():
    x_0, x_1 = batch(64, (2,))
    c = torch.randn(64, 2, dtype=torch.float64)
    far = []
    for ratio in (1.0, 0.3, 0.05, 1e-9):
        index = OptimalTransport(ratio=ratio)(x_0, x_1, condition=c)[1]
        far.append(cost(c[index], c).sum())
    assert all(b < a for a, b in itertools.pairwise(far[:3])) and far[3] <= far[2]


def test_given_cost_is_obeyed():
    tokens = torch.randint(0, 3, (2, 20, 6))
    hamming = lambda x_1, x_0: (x_1[:, None] != x_0).sum(-1)
    paired, _ = OptimalTransport(cost=hamming)(*tokens)
    assert (paired != tokens[1]).sum() < (tokens[0] != tokens[1]).sum()


def test_given_cost_gets_the_mask_it_asks_for():
    x_0, x_1 = batch(24)
    mask, label = torch.rand(24, 1, 4, 5) < 0.5, torch.arange(24) % 3
    coupling = OptimalTransport(cost=squared_distance, weight=0.0)
    plain = OptimalTransport(weight=0.0)
    for given in ({}, {"mask": mask}, {"mask": mask[:1]}, {"mask": mask, "label": label}):
        assert torch.equal(coupling(x_0, x_1, **given)[1], plain(x_0, x_1, **given)[1])


@pytest.mark.parametrize("coupling", [OptimalTransport, GreedyTransport, SinkhornTransport])
def test_what_a_cost_returns_is_checked(coupling):
    x_0, x_1 = batch(8, (2,))
    pairs = lambda x_1, x_0: squared_distance(x_1, x_0)
    for wrong in (
        lambda x_1, x_0: pairs(x_1, x_0)[:, :, None],
        lambda x_1, x_0: pairs(x_1, x_0)[:, :1],
        lambda x_1, x_0: pairs(x_1, x_0).diagonal(),
        lambda x_1, x_0: pairs(x_1, x_0).sum(),
    ):
        with pytest.raises(ValueError, match=r"`cost` must return a row.*\(8, 8\).*; got \("):
            coupling(cost=wrong)(x_0, x_1)
    with pytest.raises(TypeError, match="`cost` must return a tensor; got ndarray"):
        coupling(cost=lambda x_1, x_0: pairs(x_1, x_0).numpy())(x_0, x_1)
    with pytest.raises(ValueError, match="what `cost` returns and `condition` must be finite"):
        coupling(cost=lambda x_1, x_0: pairs(x_1, x_0) + torch.inf)(x_0, x_1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool], ids=str)
def test_costs_are_summed_in_float32_at_least(dtype):
    x_0, x_1 = batch(300, (4,))
    given = (30 * squared_distance(x_1, x_0)).round().clamp(max=60000).to(dtype)
    index = OptimalTransport(cost=lambda x_1, x_0: given)(x_0, x_1)[1]
    assert torch.equal(index, assign(given.float()))


def test_sinkhorn_becomes_exact_as_regularisation_vanishes():
    x_0, x_1 = batch(32, (2,))
    best = cost(OptimalTransport()(x_0, x_1)[0], x_1).mean()
    pairs = squared_distance(x_1, x_0)
    gaps = []
    for epsilon in (1.0, 0.1, 0.01, 1e-3):
        sinkhorn = SinkhornTransport(epsilon, max_iterations=50000, tolerance=1e-3)
        plan = sinkhorn.log_plan(pairs).exp()
        torch.testing.assert_close(plan.sum(1), torch.full_like(plan[0], 1 / 32))
        assert (32 * plan.sum(0) - 1).abs().mean() <= 1e-3
        gaps.append((plan * pairs).sum() - best)
    assert all(b < a for a, b in itertools.pairwise(gaps))
    assert abs(gaps[-1]) < 1e-2 * best
    likely = sinkhorn.log_plan(pairs).argmax(1) == OptimalTransport()(x_0, x_1)[1]
    assert likely.double().mean() >= 0.9


def test_sinkhorn_is_the_entropic_plan_of_two_gaussians():
    """Between N(0, 1) and N(0, 1) at cost |x - y|^2 the covariance is sqrt(1 + e^2/16) - e/4, e = epsilon."""
    n, epsilon = 400, 1.0
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    plan = SinkhornTransport(epsilon, relative=False, tolerance=1e-6).log_plan(
        squared_distance(x[:, None], x[:, None])
    )
    expected = (1 + epsilon**2 / 16) ** 0.5 - epsilon / 4
    assert abs((plan.exp() * x[:, None] * x).sum().item() - expected) < 1e-2


def test_sinkhorn_draws_from_its_plan_by_the_generator():
    x_0, x_1 = batch(8, (2,))
    coupling = SinkhornTransport(0.5)
    plan = 8 * coupling.log_plan(squared_distance(x_1, x_0)).exp()
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(8, 8, dtype=torch.float64)
    for _ in range(400):
        counts[torch.arange(8), coupling(x_0, x_1, generator=generator)[1]] += 1
    torch.testing.assert_close(counts / 400, plan, rtol=0, atol=0.12)
    one, two = (coupling(x_0, x_1, generator=torch.Generator().manual_seed(3))[1] for _ in range(2))
    assert torch.equal(one, two)


def test_sinkhorn_at_image_dimensions_and_on_equal_points():
    x_0, x_1 = batch(16, (3, 32, 32), torch.float32)
    paired, index = SinkhornTransport(1e-3)(x_0, x_1)
    best = OptimalTransport()(x_0, x_1)[0]
    assert len(index.unique()) > 8
    assert cost(paired, x_1).mean() < 1.01 * cost(best, x_1).mean() < cost(x_0, x_1).mean()
    same = torch.ones(6, 2)
    assert SinkhornTransport()(same, same)[1].shape == (6,)


def test_sinkhorn_is_indifferent_to_what_no_plan_can_change():
    x_0, x_1 = batch(16, (2,))
    pairs = squared_distance(x_1, x_0)
    for sinkhorn in (
        SinkhornTransport(tolerance=1e-6, max_iterations=9999),
        SinkhornTransport(1.0, relative=False, tolerance=1e-6),
    ):
        plan = sinkhorn.log_plan(pairs).exp()
        for other in (pairs - 1000, pairs + 100 * torch.randn(16, 1)):
            torch.testing.assert_close(sinkhorn.log_plan(other).exp(), plan, rtol=0, atol=1e-5)
    for other in (0 * pairs, torch.rand(16, 1).expand(16, 16)):
        uniform = torch.full_like(pairs, 1 / 256)
        torch.testing.assert_close(SinkhornTransport().log_plan(other).exp(), uniform.to(other))


def test_sinkhorns_default_gains_most_of_the_optimum_at_image_dimensions():
    x_0, low = torch.randn(128, 784), torch.randn(128, 10)
    x_1 = low @ torch.randn(10, 784) / 3 - 0.7
    least = cost(OptimalTransport()(x_0, x_1)[0], x_1).mean()
    found, came = cost(SinkhornTransport()(x_0, x_1)[0], x_1).mean(), cost(x_0, x_1).mean()
    assert found - least < 0.2 * (came - least)


def test_sinkhorns_unit_is_not_the_conditions():
    x_0, x_1 = batch(128, (2,))
    label = torch.arange(128) % 4
    condition = torch.nn.functional.one_hot(label).double()
    pairs, penalty = squared_distance(x_1, x_0), squared_distance(condition, condition)
    plans = [SinkhornTransport().log_plan(pairs + w * penalty, pairs).exp() for w in (1e3, 1e6)]
    torch.testing.assert_close(*plans, rtol=0, atol=1e-5)
    obeyed = SinkhornTransport(weight=1e6)(x_0, x_1, condition=condition)[0]
    within = cost(SinkhornTransport()(x_0, x_1, label=label)[0], x_1).mean()
    assert cost(obeyed, x_1).mean() - within < 0.3 * (cost(x_0, x_1).mean() - within)


def test_sinkhorn_says_when_it_did_not_converge():
    x_0, x_1 = batch(64, (2,))
    with pytest.warns(RuntimeWarning, match="`max_iterations` = 20 left an error of"):
        SinkhornTransport(1e-4, max_iterations=20)(x_0, x_1)


@pytest.mark.parametrize("iterations", [1, 5, 14])
def test_the_error_that_sinkhorn_tells_is_that_of_its_plan(iterations):
    pairs = squared_distance(*batch(64, (2,)))
    with pytest.warns(RuntimeWarning) as caught:
        plan = SinkhornTransport(0.01, max_iterations=iterations).log_plan(pairs).exp()
    error = (64 * plan.sum(0) - 1).abs().mean()
    assert f"left an error of {error:.3g} in" in str(caught[0].message)
    SinkhornTransport(10.0, max_iterations=iterations + 5).log_plan(pairs)  # no warning


def test_autocast_does_not_reach_the_costs():
    x_0, x_1 = batch(200, (64,), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = OptimalTransport()(x_0, x_1)[1]
    assert torch.equal(inside, OptimalTransport()(x_0, x_1)[1])


def test_bad_input(untyped):
    x_0, x_1 = batch(8, (2,))
    coupling = OptimalTransport()
    with pytest.raises(TypeError, match="unexpected keyword argument 'lable'"):
        coupling(x_0, x_1, lable=torch.zeros(8))
    with pytest.raises(ValueError, match=r"`x_0` and `x_1` must have the same shape"):
        coupling(x_0[:4], x_1)
    with pytest.raises(TypeError, match=r"must be floating point for squared distances.*cost="):
        coupling(x_0.long(), x_1.long())
    with pytest.raises(ValueError, match=r"`label` must be \(8,\); got \(8, 1\)"):
        coupling(x_0, x_1, label=torch.zeros(8, 1))
    with pytest.raises(ValueError, match="`condition` must have one row a sample, 8"):
        coupling(x_0, x_1, condition=torch.zeros(7, 1))
    with pytest.raises(TypeError, match="`mask` must be bool with True = missing"):
        coupling(x_0, x_1, mask=torch.ones(8, 2))
    with pytest.raises(ValueError, match="`mask` must have as many axes as `x_1`"):
        coupling(x_0, x_1, mask=torch.ones(8, 1, 2).bool())
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        OptimalTransport(cost=lambda x_1, x_0: torch.cdist(x_1, x_0))(
            x_0, x_1, mask=torch.ones(8, 2).bool()
        )
    with pytest.raises(ValueError, match="`condition` must be finite"):
        coupling(x_0, x_1, condition=torch.full((8, 1), torch.nan))
    with pytest.raises(ValueError, match="`ratio` and `weight` must not both be given"):
        OptimalTransport(ratio=0.1, weight=1.0)
    with pytest.raises(ValueError, match="must be finite"):
        coupling(x_0 * torch.nan, x_1)
    with pytest.raises(ValueError, match="`ratio` must lie in"):
        OptimalTransport(ratio=0)
    with pytest.raises(ValueError, match="`weight` must be finite and not negative"):
        OptimalTransport(weight=-1)
    with pytest.raises(ValueError, match="`rounds` must not be negative"):
        GreedyTransport(-1)
    with pytest.raises(ValueError, match="`regularization` must be positive"):
        SinkhornTransport(0)
    with pytest.raises(ValueError, match="`max_iterations` must be at least 1"):
        SinkhornTransport(max_iterations=0)
