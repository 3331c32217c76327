"""Laws of compiled steps, run by test_compiled.py: they are the same steps."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fm_ext.models import MLP, GuidedVelocityModel
from fm_ext.solver import ODESolver, uniform_grid
from fm_ext.solver.methods import FIXED

EAGER = {"backend": "eager"}  # the graph that is compiled, run as it is


class Field(nn.Module):
    """A velocity that holds known entries still, and tells how often Python runs it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.runs = 0

    def forward(self, x, t, mask, label):
        if not torch.compiler.is_compiling():
            self.runs += 1
        return torch.where(mask, torch.sin(self.weight * x * label[:, None]) + t, 0.0)


@pytest.fixture(autouse=True)
def forget():
    yield
    torch._dynamo.reset()


@pytest.fixture
def extras():
    return {"mask": torch.rand(6, 3) < 0.6, "label": torch.arange(6)}


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("grid", [[0.0, 1.0], [1.0, 0.2, 0.1, 0.0]])
def test_the_same_states_and_evaluations(method, grid, extras):
    field, x = Field(), torch.randn(6, 3, dtype=torch.float64)
    arguments = {
        "method": method,
        "step_size": 0.15,
        "time_grid": grid,
        "return_intermediates": True,
    }
    plain = ODESolver(field)
    want = plain.sample(x, **arguments, **extras)
    field.runs = 0
    solver = ODESolver(field, compile=EAGER)
    got = solver.sample(x, **arguments, **extras)
    assert field.runs == 0, "every evaluation was compiled"
    assert solver.nfe == plain.nfe
    assert_close(got, want, rtol=1e-14, atol=1e-14)
    known = ~extras["mask"]
    assert all(torch.equal(state[known], x[known]) for state in got)


def test_steps_of_other_lengths_and_another_call_compile_nothing_anew(extras):
    field, x = Field(), torch.randn(6, 3, dtype=torch.float64)
    graphs = []
    solver = ODESolver(field, compile={"backend": lambda graph, _: graphs.append(0) or graph})
    solver.sample(x, time_grid=[0.0, 0.1, 0.5, 1.0], **extras)
    solver.sample(2 * x, steps=7, **{**extras, "mask": ~extras["mask"]})
    assert len(graphs) == 1


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("view", [False, True])
def test_a_method_and_a_shape_are_one_graph(inference, view):
    field, graphs = Unconditional(), []
    solver = ODESolver(field, compile={"backend": lambda graph, _: graphs.append(0) or graph})
    for number, method in enumerate(("euler", "heun2"), 1):  # a compilation takes a second
        for _ in range(2):
            x = torch.randn(12, 3)[:6] if view else torch.randn(6, 3)
            with torch.inference_mode(inference):
                solver.sample(x.clone() if inference and not view else x, steps=3, method=method)
        assert len(graphs) == number
    assert field.runs == 0


class Unconditional(Field):
    def forward(self, x, t, **extras):
        if not torch.compiler.is_compiling():
            self.runs += 1
        return torch.sin(x) + t


def test_nothing_runs_uncompiled_however_much_the_process_has_compiled():
    """torch.compile keeps eight graphs with the code of a function, and then it stops compiling it."""
    count = 0
    for _ in range(2):
        field = Unconditional()
        solver = ODESolver(field, compile=EAGER)
        for method in ("euler", "heun2"):
            for dtype in (torch.float32, torch.float64):
                for shape in ((2, 3), (1, 2), (4, 1, 2, 2)):
                    solver.sample(torch.randn(shape, dtype=dtype), steps=2, method=method)
                    count += 1
        assert field.runs == 0
    assert count == 24


@pytest.mark.parametrize("more", [{}, {"fullgraph": True}])
def test_what_compiles_anew_without_end_is_told_of(more):
    class Fickle(Unconditional):
        def forward(self, x, t):
            return len(self.name) * super().forward(x, t)

    field = Fickle()
    solver = ODESolver(field, compile=EAGER | more)
    with pytest.raises(RuntimeError, match=r"as many graphs as torch.compile keeps, 8"):
        for number in range(9):
            field.name = "a" * (number + 1)
            solver.sample(torch.randn(2, 3), steps=2)
    assert field.runs == 0 and number == 8
    ODESolver(field, compile=EAGER).sample(torch.randn(2, 3), steps=2)


def test_a_model_that_breaks_the_graph_is_run_and_its_error_is_its_own():
    class Broken(nn.Module):
        def forward(self, x, t):
            return -x if x.sum().item() < 1e9 else x

    x = torch.randn(2, 3)
    assert_close(
        ODESolver(Broken(), compile=EAGER).sample(x, steps=4, method="rk4"),
        ODESolver(Broken()).sample(x, steps=4, method="rk4"),
    )
    with pytest.raises(ValueError, match=r"must answer with the shape of its state"):
        ODESolver(lambda x, t: x[:1], compile=EAGER).sample(x, steps=2)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # dynamo asks
def test_gradients(extras):
    x = torch.randn(6, 3, dtype=torch.float64)
    gradients = []
    for compile in (False, EAGER):
        field, start = Field(), x.clone().requires_grad_()
        end = ODESolver(field, compile=compile).sample(
            start, method="rk4", steps=3, enable_grad=True, **extras
        )
        gradients.append(torch.autograd.grad(end.square().sum(), [start, field.weight]))
    assert_close(gradients[1], gradients[0])


def test_half_precision_and_parts_of_the_batch():
    class Cosine(nn.Module):
        def forward(self, x, t):
            assert x.dtype == torch.bfloat16
            return torch.cos(x)

    x = torch.randn(7, 2).bfloat16()
    want = ODESolver(Cosine()).sample(x, method="heun3", steps=50)
    got = ODESolver(Cosine(), compile=EAGER).sample(x, method="heun3", steps=50, batch_size=3)
    assert got.dtype == torch.bfloat16
    assert_close(got, want)


def test_a_half_network_that_puts_the_time_beside_the_state():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x, t):
            return self.linear(torch.cat([x, t.expand(len(x), 1)], dim=1))

    net, x = Beside().bfloat16(), torch.randn(4, 2).bfloat16()
    got = ODESolver(net, compile=EAGER).sample(x, steps=5, method="heun2")
    assert_close(got, ODESolver(net).sample(x, steps=5, method="heun2"))


def test_a_used_solver_is_pickled_and_copied_without_its_graphs():
    x = torch.randn(3, 2)
    solver = ODESolver(MLP(2, 8), compile=EAGER)
    want = solver.sample(x, steps=3)
    for other in (pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)):
        assert_close(other.sample(x, steps=3), want)
        assert other.velocity_model is not solver.velocity_model
    assert_close(solver.sample(x, steps=3), want)


def test_an_interval_of_guidance_is_one_graph():
    class Labelled(nn.Module):
        null_label = 3

        def forward(self, x, t, label):
            return torch.sin(x) * (1 + label[:, None]) + t

    x, label = torch.randn(6, 3), torch.arange(6) % 3
    guided = GuidedVelocityModel(Labelled(), 2.0, interval=(0.2, 0.7))
    want = ODESolver(guided).sample(x, steps=10, method="heun2", label=label)
    for fullgraph in (True, False):
        graphs = []
        backend = lambda graph, _, graphs=graphs: graphs.append(0) or graph
        solver = ODESolver(guided, compile={"backend": backend, "fullgraph": fullgraph})
        assert_close(solver.sample(x, steps=10, method="heun2", label=label), want)
        assert len(graphs) == 1


def test_what_cannot_be_compiled_is_refused():
    x, log_p0 = torch.randn(2, 3), lambda x: -x.square().sum(1)
    solver = ODESolver(MLP(3, 8), compile=True)
    with pytest.raises(ValueError, match=r"for euler, .*; got 'dopri5'\. Compile the model"):
        solver.sample(x, method="dopri5")
    with pytest.raises(ValueError, match=r"for euler, .*; got 'explicit_adams'"):
        solver.sample(x, method="explicit_adams", steps=4)
    with pytest.raises(ValueError, match="`compile` is for `sample`"):
        solver.compute_likelihood(x, log_p0, steps=4)
    for compile in (None, 0, 1, "reduce-overhead"):
        with pytest.raises(TypeError, match=r"`compile` must be True, False or a mapping.*; got"):
            ODESolver(MLP(3, 8), compile=compile)


def test_the_default_compiler():
    model, x = MLP(2, 8), torch.randn(5, 2)
    got, want = (ODESolver(model, compile=c).sample(x, steps=2) for c in (True, False))
    assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_grid_is_any_sequence(extras):
    field, x = Field(), torch.randn(6, 3, dtype=torch.float64)
    solver = ODESolver(field, compile=EAGER)
    assert_close(
        solver.sample(x, time_grid=uniform_grid(4), **extras), solver.sample(x, steps=4, **extras)
    )
