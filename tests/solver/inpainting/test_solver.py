"""Laws that every method keeps, on images and a nonlinear model."""

import numpy as np
import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.path.scheduler import CosineScheduler as UpstreamCosineScheduler
from flow_matching.solver import ODESolver
from torch import nn

from fm_ext.models import MaskedVelocityModel, PredictionVelocityModel, UNet, UNetWrapper
from fm_ext.path.scheduler import CosineScheduler, VPScheduler
from fm_ext.solver import InpaintingSolver
from fm_ext.solver import ODESolver as OurODESolver
from fm_ext.utils import shared

OPTIONS = {
    "d_flow": {"iterations": 3},
    "ding": {},
    "flower": {},
    "moment_matching": {"products": 3},
    "ot_ode": {},
    "pnp": {"averages": 2},
    "repaint": {"jump_n_sample": 3, "jump_length": 2},
    "replace": {},
    "restora": {"corrections": 2},
    "twisted_smc": {"products": 3},
}
NOISY = ("ding", "flower", "moment_matching", "ot_ode", "pnp", "twisted_smc")
FREE = ("d_flow",)
GAUSSIAN = ("ding", "moment_matching", "ot_ode", "repaint", "twisted_smc")


class Waves(nn.Module):
    """A velocity that mixes neighbours and channels; it counts its calls and the backward passes through it."""

    def __init__(self):
        super().__init__()
        self.calls = self.gradients = 0
        self.asked: list[torch.Tensor] = []

    def forward(self, x, t, scale=1.0):
        self.calls += 1
        self.asked.append(x.detach())
        assert t.ndim == 0 and 0 <= t < 1
        v = torch.sin(2 * x.roll(1, -1)) + 0.3 * x.mean(1, keepdim=True) - (0.5 + t) * x
        v = v * torch.as_tensor(scale, dtype=x.dtype).view(-1, *(1 for _ in x.shape[1:]))
        if v.requires_grad:
            v.register_hook(self.count)
        return v.to(x.dtype)

    def count(self, gradient):
        self.gradients += 1


def build(method, scheduler=None, **arguments):
    return InpaintingSolver(
        Waves(), scheduler or CondOTScheduler(), method, **(OPTIONS[method] | arguments)
    )


def picture(dtype=torch.float32):
    image = torch.randn(2, 3, 4, 5, dtype=dtype)
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[0, :, 1:3, 2:] = mask[1, :, :, :2] = True
    return image, mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", OPTIONS)
def test_known_pixels_are_equal_bit_for_bit_and_missing_ones_are_not_looked_at(method, dtype):
    image, mask = picture(dtype)
    for scheduler in (CondOTScheduler(), VPScheduler()):
        solver = build(method, scheduler)
        results = [
            solver.sample(
                image.masked_fill(mask, value), mask=mask, steps=5, generator=generator(3)
            )
            for value in (0.0, torch.nan)
        ]
        assert results[0].dtype == dtype and results[0].isfinite().all()
        assert torch.equal(*results)
        known = ~mask.expand_as(image)
        assert torch.equal(results[0][known], image[known])
        assert not torch.equal(results[0], image)
        assert all(x.dtype == dtype for x in solver.velocity_model.asked)


def generator(number=0):
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("method", OPTIONS)
def test_an_empty_mask_returns_the_image(method):
    image, mask = picture()
    result = build(method).sample(image, mask=torch.zeros_like(mask), steps=4)
    assert torch.equal(result, image)


@pytest.mark.parametrize("method", ["d_flow", "replace"])
def test_a_full_mask_is_unconditional_sampling_by_eulers_method(method):
    image, mask = picture(torch.float64)
    result = build(method).sample(
        image, mask=torch.ones_like(mask), steps=6, generator=generator(5)
    )
    noise = torch.randn(image.shape, dtype=image.dtype, generator=generator(5))
    grid = torch.linspace(0, 1, 7, dtype=image.dtype)
    expected = ODESolver(Waves()).sample(noise, step_size=None, time_grid=grid)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("method", OPTIONS)
def test_outpainting_is_a_mask_around_the_image(method):
    """A network made for 28 pixels paints 40, and the image in the middle is itself bit for bit."""
    net = UNet(1, 1, channels=8, multipliers=(1, 2), attention=(), head_channels=8).eval()
    nn.init.normal_(net.conv_out.weight, std=0.1)  # a new network answers 0
    image, canvas = torch.rand(2, 1, 28, 28), torch.zeros(2, 1, 40, 40)
    mask = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    canvas[..., 6:34, 6:34], mask[..., 6:34, 6:34] = image, False
    solver = InpaintingSolver(UNetWrapper(net), CondOTScheduler(), method, **OPTIONS[method])
    wide = solver.sample(canvas, mask=mask, steps=3)
    assert torch.equal(wide[..., 6:34, 6:34], image)
    assert wide.isfinite().all() and wide[mask].std() > 0.01


@pytest.mark.parametrize("method", OPTIONS)
def test_evaluations_and_gradients_are_counted_exactly(method):
    image, mask = picture()
    for steps in (1, 2, 7):
        solver = build(method)
        solver.sample(image, mask=mask, steps=steps, fills=2)
        assert (solver.nfe, solver.gradients) == (
            solver.velocity_model.calls,
            solver.velocity_model.gradients,
        )
        expected = {
            "ding": (2 * steps - 1, 0),  # the last step takes the expected data
            "flower": (steps, 0),
            "moment_matching": (steps + 1, 3 * steps),  # the mean at t = 0
            "ot_ode": (steps + 1, steps),
            "pnp": (2 * steps, 0),
            "repaint": (3 * steps, 0),
            "replace": (steps, 0),
            "restora": (5 * steps - 2, 0),  # at t = 1 the state is the expected data
            "twisted_smc": {1: (2, 3), 2: (2, 3), 7: (7, 2 * 6 + 4 * 3)}[steps],
        }
        if method in expected:
            assert (solver.nfe, solver.gradients) == expected[method]
        else:
            assert solver.nfe == solver.gradients + steps >= 4 * steps


@pytest.mark.parametrize("method", OPTIONS)
def test_fills_are_a_batch_and_random_numbers_come_from_the_generator_alone(method):
    image, mask = picture()
    state = torch.get_rng_state()
    fills = build(method).sample(image, mask=mask, steps=4, fills=3, generator=generator())
    batch = build(method).sample(
        image.repeat(3, 1, 1, 1), mask=mask.repeat(3, 1, 1, 1), steps=4, generator=generator()
    )
    # the fills of one image share weights there, images do not
    assert method == "twisted_smc" or torch.equal(fills.flatten(0, 1), batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(fills[0], fills[1])
    other = build(method).sample(image, mask=mask, steps=4, fills=3, generator=generator(1))
    assert not torch.equal(fills, other)
    assert build(method).sample(image, mask=mask[:1], steps=2, fills=1).shape == (1, *image.shape)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.filterwarnings("ignore:method")
def test_samples_of_a_batch_do_not_touch_each_other(method):
    image, mask = picture(torch.float64)
    noise = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    options = {"gamma": 0.0} if method == "flower" else {}  # its other numbers are drawn elsewhere
    options |= {"iterations": 8} if method == "d_flow" else {}
    results = []
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        solver = build(method, source=lambda like, g, part=part: noise[part], **options)
        results.append(solver.sample(image[part], mask=mask[part], steps=5))
    torch.testing.assert_close(results[0], torch.cat(results[1:]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", OPTIONS)
def test_extras_reach_the_model_and_are_repeated_for_fills(method):
    image, mask = picture()
    scale = torch.tensor([0.5, 2.0])
    both = build(method).sample(
        image, mask=mask, steps=3, fills=2, scale=scale, generator=generator()
    )
    for i in range(2):
        one = build(method).sample(
            image, mask=mask, steps=3, fills=2, scale=scale[i].item(), generator=generator()
        )
        torch.testing.assert_close(both[:, i], one[:, i])


def test_extras_in_a_dict_are_repeated_for_fills():
    image, mask = picture()

    def model(x, t, extra):
        assert extra["label"].tolist() == [0, 1, 0, 1, 0, 1] and len(x) == 6
        return -x

    solver = InpaintingSolver(model, CondOTScheduler(), "flower")
    solver.sample(image, mask=mask, steps=1, fills=3, extra={"label": torch.arange(2)})


@pytest.mark.parametrize("method", ["moment_matching", "ot_ode", "d_flow"])
@pytest.mark.parametrize("shape", [(), (2,), (1, 1, 1, 1)], ids=str)
def test_extras_of_inference_mode_let_gradients_pass(method, shape):
    class Scaled(Waves):  # its derivative needs the extra
        def forward(self, x, t, scale):
            return torch.as_tensor(scale).view(-1, 1, 1, 1) * torch.sin(x)

    image, mask = picture()
    solver = InpaintingSolver(Scaled(), CondOTScheduler(), method, **OPTIONS[method])
    with torch.inference_mode():
        scale = torch.full(shape, 0.5)
        scale = shared(scale) if len(shape) == 4 else scale
        result = solver.sample(image, mask=mask, steps=2, scale=scale)
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("step", "steps"),
        ("num_fills", "fills"),
        ("sigma_y", "noise_std"),
        ("noise_sd", "noise_std"),
        ("time_grid", "steps"),
        ("method", "InpaintingSolver"),
    ],
)
def test_misspelt_keywords_are_found_though_the_model_takes_anything(typo, meant):
    image, mask = picture()
    solver = InpaintingSolver(lambda x, t, **extras: -x, CondOTScheduler(), "flower")
    with pytest.raises(TypeError, match=f"`{typo}` is no keyword .* did you mean `{meant}"):
        solver.sample(image, mask=mask, **{typo: 3})
    solver.sample(image, mask=mask, steps=1, label=3)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_vector_a_schedule_and_inference_mode(method):
    class Linear(nn.Module):
        def forward(self, x, t):
            return -x * (1 + t)

    solver = InpaintingSolver(Linear(), CosineScheduler(), method, **OPTIONS[method])
    with torch.inference_mode():
        image, mask = torch.ones(4, 6), torch.eye(6).bool()[:4]
        result = solver.sample(image, mask=mask, steps=3)
    assert result.shape == image.shape and not result.requires_grad
    assert torch.equal(result[~mask], image[~mask])


@pytest.mark.parametrize("method", NOISY)
def test_noisy_known_pixels_are_not_returned(method):
    image, mask = picture()
    noisy = build(method).sample(image, mask=mask, steps=8, noise_std=0.5, generator=generator())
    known = ~mask.expand_as(image)
    assert noisy.isfinite().all() and noisy[known].ne(image[known]).all()
    if method != "pnp":  # whose formula is the same for every level
        nearly = build(method).sample(
            image.double(), mask=mask, steps=8, noise_std=1e-7, generator=generator()
        )
        exact = build(method).sample(image.double(), mask=mask, steps=8, generator=generator())
        torch.testing.assert_close(nearly[~known], exact[~known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", OPTIONS)
def test_what_training_broke_is_named(method):
    source = lambda like, generator: torch.rand(like.shape, dtype=like.dtype, generator=generator)
    cases = [
        ({"coupled": True}, method not in FREE, "drawn independently"),
        ({"source": source}, method in GAUSSIAN, r"a source N\(0, I\)"),
    ]
    for arguments, warned, words in cases:
        if warned:
            with pytest.warns(UserWarning, match=f"method '{method}' assumes .*{words}.*d_flow"):
                build(method, **arguments)
        else:
            build(method, **arguments)


def test_the_source_is_drawn_by_the_function_given():
    image, mask = picture()
    solver = build("replace", source=lambda like, generator: torch.full_like(like, 7.0))
    solver.sample(image, mask=mask, steps=2)
    assert torch.equal(solver.velocity_model.asked[0], torch.full_like(image, 7.0))


def test_float64_stays_float64_under_noise():
    image, mask = picture(torch.float64)
    solver = InpaintingSolver(lambda x, t: -x, CondOTScheduler(), "flower")  # x_1 is 0 at t = 0
    result = solver.sample(image, mask=mask, steps=1, noise_std=0.3, generator=generator())
    numbers = generator()
    z = [torch.randn(image.shape, dtype=image.dtype, generator=numbers) for _ in range(2)][1]
    shrink = 1 / 1.09  # of the variances 1 and 0.3^2
    mean, std = torch.where(mask, 0, shrink * image), (0.09 * shrink) ** 0.5
    want = mean + torch.where(mask, z, std * z)
    torch.testing.assert_close(result, want, rtol=1e-13, atol=1e-13)


def test_progress_is_shown_on_request(capsys):
    image, mask = picture()
    build("flower").sample(image, mask=mask, steps=3)
    assert capsys.readouterr().err == ""
    build("flower").sample(image, mask=mask, steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("method", OPTIONS)
def test_progress_ends_with_the_work(method, monkeypatch):
    solver, done = build(method), []

    def bar(items, **_):
        yield from items
        done.append(solver.velocity_model.calls)

    monkeypatch.setattr("fm_ext.solver.inpainting.problem.tqdm", bar)
    image, mask = picture()
    solver.sample(image, mask=mask, steps=4)
    assert done == [solver.nfe - (4 if method == "d_flow" else 0)]  # the way from the source found


def test_bad_construction(untyped):
    net, scheduler = Waves(), CondOTScheduler()
    with pytest.raises(
        ValueError, match=r"`method` must be one of d_flow, .*got 'flour'. Did you mean 'flower'"
    ):
        InpaintingSolver(net, scheduler, "flour")
    with pytest.raises(TypeError, match=r"`scheduler` must be a .*got 'cosine'"):
        InpaintingSolver(net, "cosine")
    with pytest.raises(TypeError, match=r"method 'flower' takes `gamma`; got `jump_length`"):
        InpaintingSolver(net, scheduler, "flower", jump_length=3)
    with pytest.raises(TypeError, match=r"method 'replace' takes no options; got `gamma`"):
        InpaintingSolver(net, scheduler, "replace", gamma=1.0)


def test_a_model_of_another_schedule_is_refused(untyped):
    net, (image, mask) = PredictionVelocityModel(Waves(), CosineScheduler()), picture()
    with pytest.raises(
        ValueError, match=r"`scheduler` must be the schedule of .*Cosine.*; got .*CondOT"
    ):
        InpaintingSolver(net, CondOTScheduler(), "flower")
    InpaintingSolver(net, net.schedule, "flower").sample(image, mask=mask, steps=2)
    InpaintingSolver(net, UpstreamCosineScheduler(), "flower").sample(image, mask=mask, steps=2)


def test_a_model_that_holds_known_entries_is_the_ode_solvers():
    class Missing(Waves):
        def forward(self, x, t, mask):
            return super().forward(x, t)

    model, (image, mask) = MaskedVelocityModel(Missing()), picture()
    for wrapped in (model, PredictionVelocityModel(model, CondOTScheduler())):
        with pytest.raises(
            ValueError, match=r"trained without masks; got MaskedVel.* ODESolver\(mod"
        ):
            InpaintingSolver(wrapped, CondOTScheduler())
    noise = torch.randn_like(image)
    result = OurODESolver(model).sample(torch.where(mask, noise, image), steps=50, mask=mask)
    known = ~mask.expand_as(image)
    assert torch.equal(result[known], image[known])


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_may_be_one_number(method, dtype):
    image, mask = torch.randn(6, dtype=dtype), torch.arange(6) % 2 == 0
    solver = InpaintingSolver(lambda x, t: -x * (1 + t), CondOTScheduler(), method)
    fills = solver.sample(image, mask=mask, steps=4, fills=3)
    assert fills.shape == (3, 6) and fills.isfinite().all()
    assert torch.equal(fills[:, ~mask], image[~mask].expand(3, 3))


@pytest.mark.parametrize("seed", [27, 28])
def test_moment_matching_in_float64_bears_a_system_that_is_singular_to_rounding(seed):
    """Seed 27 was a LinAlgError of normal equations, for the whole batch."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    model = lambda x, t: net(torch.cat([x, t.expand(len(x), 1)], 1))
    image, mask = torch.randn(8, 4, dtype=torch.float64), torch.rand(8, 4) < 0.5
    result = InpaintingSolver(model, CondOTScheduler()).sample(image, mask=mask, steps=20)
    assert result.isfinite().all() and torch.equal(result[~mask], image[~mask])


def test_a_table_of_all_samples_is_not_repeated_for_fills():
    image, mask = picture()

    def model(x, t, table, label):
        assert len(table) == 2 and len(label) == len(x) == 6
        return -x

    solver = InpaintingSolver(model, CondOTScheduler(), "flower")
    table, label = shared(torch.ones(2)), torch.arange(2)
    solver.sample(image, mask=mask, steps=1, fills=3, table=table, label=label)
    with pytest.raises(ValueError, match=r"`label` must hold one entry a sample, \(2, \.\.\.\)"):
        solver.sample(image, mask=mask, steps=1, table=table, label=torch.arange(6))


@pytest.mark.parametrize(
    ("method", "option", "value", "rule"),
    [
        ("repaint", "jump_n_sample", 0, "a whole number of at least 1"),
        ("repaint", "jump_length", 0, "a whole number of at least 1"),
        ("restora", "corrections", -1, "a whole number of at least 0"),
        ("pnp", "step", 1.5, r"in \(0, 1\]"),
        ("pnp", "exponent", -1.0, "at least 0"),
        ("pnp", "averages", 0, "a whole number of at least 1"),
        ("flower", "gamma", 2.0, r"in \[0, 1\]"),
        ("ot_ode", "start", 0.0, r"in \(0, 1\)"),
        ("moment_matching", "start", 1.0, r"in \(0, 1\)"),
        ("moment_matching", "products", 0, "a whole number of at least 1"),
        ("moment_matching", "eta", 1.1, r"in \[0, 1\], or None"),
        ("moment_matching", "linear_solver", "lu", "one of cg, gmres"),
        ("d_flow", "iterations", 0, "a whole number of at least 1"),
        ("moment_matching", "products", True, "a whole number of at least 1"),
        ("moment_matching", "products", 2.5, "a whole number of at least 1"),
        ("repaint", "jump_n_sample", 2.5, "a whole number of at least 1"),
        ("repaint", "jump_length", 1.5, "a whole number of at least 1"),
        ("moment_matching", "eta", "x", r"in \[0, 1\], or None"),
        ("moment_matching", "linear_solver", ["cg"], "one of cg, gmres"),
        ("ot_ode", "start", None, r"in \(0, 1\)"),
        ("pnp", "exponent", float("nan"), "at least 0"),
    ],
)
def test_bad_options(untyped, method, option, value, rule):
    with pytest.raises(ValueError, match=rf"`{option}` of method '{method}' must be {rule}; got"):
        InpaintingSolver(Waves(), CondOTScheduler(), method, **{option: value})


def test_numbers_may_be_numpys(untyped):
    image, mask = picture()
    solver = build(
        "moment_matching", products=np.int64(2), start=np.float32(0.1), eta=np.float64(1)
    )
    fills = solver.sample(image, mask=mask, steps=np.int64(3), fills=np.int32(2))
    assert fills.shape == (2, *image.shape) and fills.dtype == image.dtype


@pytest.mark.parametrize("steps", [2, 3, 10])
@pytest.mark.parametrize("start", [1e-6, 1e-8, 1e-12])
def test_moment_matching_may_start_as_near_to_the_source_as_one_likes(start, steps):
    image, mask = picture()
    solver = build("moment_matching", start=start, eta=1.0)
    assert solver.sample(image, mask=mask, steps=steps).shape == image.shape


def test_bad_calls(untyped):
    image, mask = picture()
    solver = build("restora")
    with pytest.raises(TypeError, match=r"`image` must be floating point; got torch.uint8"):
        solver.sample(image.byte(), mask=mask)
    with pytest.raises(TypeError, match=r"`mask` must be bool"):
        solver.sample(image, mask=mask.float())
    with pytest.raises(ValueError, match=r"`mask` must have as many axes as `image`"):
        solver.sample(image, mask=mask[0])
    with pytest.raises(ValueError, match=r"`steps` must be a whole number of at least 1; got 0"):
        solver.sample(image, mask=mask, steps=0)
    with pytest.raises(ValueError, match=r"`fills` must be a whole number of at least 1; got 0"):
        solver.sample(image, mask=mask, fills=0)
    for bad in (True, 2.5, "x"):
        with pytest.raises(ValueError, match=r"`steps` must be a whole number of at least 1; got"):
            solver.sample(image, mask=mask, steps=bad)
    for bad in (-1.0, "x"):
        with pytest.raises(ValueError, match=r"`noise_std` must be finite and at least 0; got"):
            solver.sample(image, mask=mask, noise_std=bad)
    with pytest.raises(ValueError, match=r"`noise_std` must be 0 for method 'restora'.*flower"):
        solver.sample(image, mask=mask, noise_std=0.1)


@pytest.mark.parametrize("method", ["moment_matching", "ot_ode", "d_flow"])
def test_a_model_without_gradients_is_refused_where_they_are_needed(method):
    image, mask = picture()
    model = torch.no_grad()(Waves().forward)
    solver = InpaintingSolver(model, CondOTScheduler(), method)
    with pytest.raises(ValueError, match=r"`velocity_model` must be differentiable"):
        solver.sample(image, mask=mask, steps=2)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.ones(1, 3, 4, 5), r"got \(1, 3, 4, 5\), torch.float32 on cpu"),
        (torch.ones(2, 3, 4, 5).double(), r"got \(2, 3, 4, 5\), torch.float64 on cpu"),
        (torch.ones(2, 3, 4, 5, device="meta"), r"got \(2, 3, 4, 5\), torch.float32 on meta"),
    ],
)
def test_a_source_of_another_shape_dtype_or_device_is_refused(untyped, answer, got):
    image, mask = picture()
    solver = build("replace", source=lambda like, generator: answer)
    with pytest.raises(
        ValueError, match=rf"`source` must answer like its first argument, .* {got}"
    ):
        solver.sample(image, mask=mask, steps=2)


def test_a_model_of_another_shape_is_refused(untyped):
    image, mask = picture()
    solver = InpaintingSolver(lambda x, t: x[:, :1], CondOTScheduler(), "flower")
    with pytest.raises(
        ValueError, match=r"the shape of its state, \(2, 3, 4, 5\); .* with \(2, 1, 4, 5\)"
    ):
        solver.sample(image, mask=mask)
