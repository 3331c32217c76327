"""A loaded flow samples, fills and translates as its parts would by hand."""

import re

import pytest
import torch
from flow_matching.path import CondOTProbPath, GeodesicProbPath
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver as UpstreamODESolver
from flow_matching.utils.manifolds import Euclidean
from torch import nn

from fm_ext.coupling import IndependentCoupling, NoisySource, OptimalTransport
from fm_ext.hub import FlowModel, Measured, Metric, Sampler
from fm_ext.models import (
    GuidedVelocityModel,
    MaskedVelocityModel,
    MeanFlowModel,
    PredictionVelocityModel,
    UNet,
    UNetWrapper,
)
from fm_ext.path import BridgeProbPath, CoupledProbPath, MaskedProbPath
from fm_ext.solver import ExponentialSolver, InpaintingSolver, MeanFlowSolver
from fm_ext.solver.inpainting.solver import METHODS
from fm_ext.solver.methods import FIXED


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def picture(flow: FlowModel, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(batch, *flow.shape) * 3 - 1.5  # some outside of the range
    return image, torch.rand(batch, 1, *flow.shape[1:]) < 0.4


@pytest.mark.parametrize(
    "name, method",
    [
        ("digits", None),
        ("digits", "ancestral"),
        ("portraits", None),
        ("digits", "flower"),
        ("whole", None),
    ],
)
def test_known_pixels_come_back_bit_for_bit(name, method, request):
    flow = request.getfixturevalue(name)
    image, mask = picture(flow)
    known = (~mask).expand_as(image)
    fills = flow.fill(image, mask, fills=3, method=method, steps=2, generator=seeded())
    assert fills.shape == (3, *image.shape) and fills.isfinite().all()
    assert all(torch.equal(fill[known], image[known]) for fill in fills)
    assert not torch.equal(fills[0], fills[1])
    again = flow.fill(image, mask, fills=3, method=method, steps=2, generator=seeded())
    assert torch.equal(fills, again)


def test_a_fill_is_what_upstreams_solver_gives(digits):
    image, mask = picture(digits)
    noise = torch.randn(image.shape, generator=seeded())
    start = torch.where(mask, noise, image)
    solver = UpstreamODESolver(MaskedVelocityModel(digits.velocity_model))
    by_hand = solver.sample(start, step_size=0.5, method="midpoint", mask=mask).clamp(-1, 1)
    filled = digits.fill(image, mask, generator=seeded())
    torch.testing.assert_close(filled, torch.where(mask, by_hand, image))


def test_an_ancestral_fill_is_the_exponential_step_with_fresh_noise(digits):
    image, mask = picture(digits)
    generator = seeded()
    noise = torch.randn(image.shape, generator=generator)
    ends = PredictionVelocityModel(digits.velocity_model, digits.scheduler, prediction="velocity")
    by_hand = ExponentialSolver(ends).sample(
        torch.where(mask, noise, image), 1 / 3, eta=1.0, generator=generator, mask=mask
    )
    filled = digits.fill(image, mask, method="ancestral", steps=3, generator=seeded())
    torch.testing.assert_close(filled, torch.where(mask, by_hand.clamp(-1, 1), image))
    euler = digits.fill(image, mask, method="euler", steps=3, generator=seeded())
    assert not torch.equal(filled, euler)
    generator = seeded()
    start = torch.where(mask, torch.randn(image.shape, generator=generator), image)
    guided = GuidedVelocityModel(digits.velocity_model, 2.0)
    ends = PredictionVelocityModel(guided, digits.scheduler, prediction="velocity")
    given = {"mask": mask, "label": torch.tensor([1, 2])}
    by_hand = ExponentialSolver(ends).sample(start, 0.5, eta=1.0, generator=generator, **given)
    how = {"label": [1, 2], "guidance_scale": 2.0, "steps": 2, "method": "ancestral"}
    filled = digits.fill(image, mask, generator=seeded(), **how)
    torch.testing.assert_close(filled, torch.where(mask, by_hand.clamp(-1, 1), image))


def test_an_ancestral_fill_in_latents_is_that_of_the_solver_decoded(latents):
    latents.data_range = None
    image, mask = picture(latents)
    generator = seeded()
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    known = 2 * nn.functional.pixel_unshuffle(image.masked_fill(mask, 0), 2)
    cells = nn.functional.max_pool2d(mask.float(), 2) > 0
    model = PredictionVelocityModel(latents.velocity_model, latents.scheduler, "velocity")
    end = ExponentialSolver(model).sample(
        torch.where(cells, noise, known), 0.5, eta=1.0, generator=generator, mask=cells
    )
    expected = torch.where(mask, latents.codec.vae.decode(end), image)
    filled = latents.fill(image, mask, method="ancestral", steps=2, generator=seeded())
    torch.testing.assert_close(filled, expected)


def test_noise_is_renewed_where_it_belongs_to_no_image(digits, translator, whole):
    masked = FlowModel(digits.velocity_model, digits.path, shape=digits.shape)
    assert masked.sampler("fill") == Sampler(method="ancestral", steps=16)
    assert masked.sampler("fill", "midpoint").steps == 8
    assert whole.from_noise and not translator.from_noise
    image, _ = picture(translator)
    with pytest.raises(
        ValueError, match="`method` must not be 'ancestral' for a flow whose source"
    ):
        translator.translate(image, method="ancestral")
    assert not FlowModel(
        whole.velocity_model, whole.path, shape=(1, 8, 8), tasks=("translate",)
    ).from_noise


class Far(CondOTProbPath):
    """A path whose source is made elsewhere."""

    def source(self, x_0, **conditions):
        return 3 + x_0


@pytest.mark.parametrize(
    "path",
    [
        CoupledProbPath(CondOTProbPath(), NoisySource(0.5)),
        CoupledProbPath(CondOTProbPath(), OptimalTransport()),
        GeodesicProbPath(CondOTScheduler(), Euclidean()),
        Far(),
    ],
    ids=["noise on noise", "transport", "geodesics", "its own source"],
)
def test_noise_is_not_renewed_where_it_is_not_its_own(digits, path):
    flow = FlowModel(digits.velocity_model, MaskedProbPath(path), shape=digits.shape)
    assert not flow.from_noise and flow.sampler("fill") == Sampler()
    kept = CoupledProbPath(CondOTProbPath(), IndependentCoupling())
    assert FlowModel(digits.velocity_model, MaskedProbPath(kept), shape=digits.shape).from_noise


def test_a_network_of_two_times_jumps_with_its_guidance_as_an_input(jumper, digits):
    flow, model = jumper, jumper.velocity_model
    assert flow.sampler("sample") == flow.sampler("fill") == Sampler(method="jumps", steps=1)
    noise = torch.randn(2, *flow.shape, generator=seeded())
    asked = {"mask": torch.ones(2, 1, 28, 28, dtype=torch.bool), "label": torch.tensor([3, 3])}
    for steps in (1, 2):
        by_hand = MeanFlowSolver(model).sample(noise, steps, guidance_scale=2.0, **asked)
        how = {"steps": steps, "guidance_scale": 2.0, "generator": seeded()}
        heard: list[float] = []
        drawn = flow.sample(2, label=3, callback=lambda t, _, to=heard: to.append(t), **how)
        torch.testing.assert_close(drawn, by_hand.clamp(-1, 1))
        assert heard == [k / steps for k in range(1, steps + 1)]
    image, mask = picture(flow)
    start = torch.where(mask, torch.randn(image.shape, generator=seeded()), image)
    by_hand = MeanFlowSolver(model).sample(start, mask=mask).clamp(-1, 1)
    filled = flow.fill(image, mask, generator=seeded())
    torch.testing.assert_close(filled, torch.where(mask, by_hand, image))
    with pytest.raises(
        ValueError, match="`method` must not be 'jumps' for a model that is no Mean"
    ):
        digits.sample(1, method="jumps")
    with pytest.raises(ValueError, match="`guidance_scale` must be at least 1 for 'jumps'; got 0"):
        flow.sample(1, label=3, guidance_scale=0.0)


def test_jumps_are_guided_on_what_their_network_was_told():
    net = UNet(2, 1, channels=8, head_channels=8, multipliers=(1, 2), second_time=True)
    model = MeanFlowModel(UNetWrapper(net, concat=("mask",), mask_dropout=0.1))
    flow = FlowModel(model, MaskedProbPath(CondOTProbPath()), shape=(1, 8, 8))
    image, mask = picture(flow)
    with pytest.raises(ValueError, match="must be 1, for its network takes no scale, for 'jumps'"):
        flow.fill(image, mask, guidance_scale=2.0)
    net = UNet(2, 1, channels=8, multipliers=(1,), second_time=True, guidance_input=True)
    flow.velocity_model = MeanFlowModel(UNetWrapper(net, concat=("mask",), mask_dropout=0.1))
    with pytest.raises(ValueError, match="must be 1 for 'jumps' without `label`"):
        flow.fill(image, mask, guidance_scale=2.0)
    whole = UNetWrapper(UNet(1, 1, channels=8, multipliers=(1,), second_time=True))
    flow = FlowModel(MeanFlowModel(whole), CondOTProbPath(), shape=(1, 8, 8))
    assert flow.sampler("sample").method == "jumps"
    assert flow.sampler("fill").method == "moment_matching"
    assert flow.fill(image, mask, steps=2).shape == image.shape


@pytest.mark.parametrize(
    "name", ["digits", "jumper", "portraits", "whole", "translator", "latents"]
)
def test_the_methods_of_a_task_are_those_that_run(name, request):
    flow = request.getfixturevalue(name)
    image, mask = picture(flow)
    run = {
        "sample": lambda method: flow.sample(2, method=method, steps=2),
        "fill": lambda method: flow.fill(image, mask, method=method, steps=2),
        "translate": lambda method: flow.translate(image, method=method, steps=2),
    }
    for task in flow.tasks:
        suit = flow.methods(task)
        assert suit[0] == flow.samplers[task].method and len(set(suit)) == len(suit)
        for method in (*FIXED, "ancestral", "jumps", *METHODS):
            if method in suit:
                assert run[task](method).isfinite().all()
            else:
                with pytest.raises(ValueError, match="`method` must"):
                    run[task](method)


def test_a_model_of_whole_images_fills_by_the_training_free_solver(whole):
    image, mask = picture(whole)
    solver = InpaintingSolver(whole.velocity_model, whole.scheduler)
    by_hand = solver.sample(image, mask=mask, steps=3, fills=2, generator=seeded()).clamp(-1, 1)
    filled = whole.fill(image, mask, fills=2, generator=seeded())
    assert torch.equal(filled, torch.where(mask, by_hand, image))


def test_a_masked_model_samples_where_all_is_missing(digits):
    noise = torch.randn(3, *digits.shape, generator=seeded())
    everything = torch.ones(3, 1, *digits.shape[1:], dtype=torch.bool)
    model = GuidedVelocityModel(digits.velocity_model, 2.0)
    label = torch.tensor([3, 3, 3])
    by_hand = UpstreamODESolver(model).sample(
        noise, step_size=0.5, method="midpoint", label=label, mask=everything
    )
    drawn = digits.sample(3, label=3, guidance_scale=2.0, generator=seeded())
    torch.testing.assert_close(drawn, by_hand.clamp(-1, 1))


def test_a_fill_is_guided_on_its_class_or_on_what_is_known(digits):
    image, mask = picture(digits)
    start = torch.where(mask, torch.randn(image.shape, generator=seeded()), image)
    for label, hide_known in ((torch.tensor([1, 2]), False), (None, True)):
        guided = GuidedVelocityModel(digits.velocity_model, 2.0, hide_known=hide_known)
        extras = {"mask": mask} | ({} if label is None else {"label": label})
        by_hand = UpstreamODESolver(MaskedVelocityModel(guided)).sample(
            start, step_size=0.5, method="midpoint", **extras
        )
        filled = digits.fill(image, mask, label=label, guidance_scale=2.0, generator=seeded())
        torch.testing.assert_close(filled, torch.where(mask, by_hand.clamp(-1, 1), image))


def test_a_method_of_another_kind_takes_the_steps_of_its_kind(digits):
    image, mask = picture(digits)
    calls = []
    for method in ("euler", "midpoint", "bosh3", "ot_ode"):
        heard: list[float] = []
        digits.fill(image, mask, method=method, callback=lambda f, _, to=heard: to.append(f))
        calls.append(len(heard))
    assert calls[:2] == [2, 4] and calls[2] > 4 and 40 <= calls[3] <= 51  # ot_ode starts at 0.2


def test_a_class_is_a_number_a_name_or_one_for_each(digits):
    drawn = [
        digits.sample(2, label=label, generator=seeded())
        for label in (7, "7", [7, "7"], torch.tensor([7, 7]), torch.tensor(7))
    ]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert not torch.equal(drawn[0], digits.sample(2, label=1, generator=seeded()))


def test_a_translation_starts_where_the_path_says(translator):
    image, _ = picture(translator)
    start = translator.path.source(image, generator=seeded())
    by_hand = UpstreamODESolver(translator.velocity_model).sample(
        start, step_size=1 / 2, method="midpoint"
    )
    drawn = translator.translate(image, generator=seeded())
    torch.testing.assert_close(drawn, by_hand.clamp(-1, 1))


def test_noise_that_the_path_adds_is_added_to_a_hole(digits):
    """The law of the source in training: noise with the coupling's own noise on top."""
    path = MaskedProbPath(CoupledProbPath(CondOTProbPath(), NoisySource(2.0)))
    flow = FlowModel(digits.velocity_model, path, shape=digits.shape)
    flow.velocity_model.model.conv_out.weight.data.zero_()
    flow.velocity_model.model.conv_out.bias.data.zero_()  # the source stays
    flow.data_range = None
    image, mask = picture(flow, 8)
    hole = mask.expand_as(image)
    assert flow.fill(image, mask, generator=seeded())[hole].std() == pytest.approx(5**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["digits", "whole", "translator"])
def test_a_callback_hears_of_the_way_and_can_end_it(name, request):
    flow = request.getfixturevalue(name)
    image, mask = picture(flow)
    calls = {
        "sample": lambda **how: flow.sample(2, **how),
        "fill": lambda **how: flow.fill(image, mask, **how),
        "translate": lambda **how: flow.translate(image, **how),
    }
    for task in flow.tasks:
        heard: list[tuple[float, torch.Tensor]] = []

        def hear(*args, heard=heard):
            heard.append(args)

        plain = calls[task](generator=seeded())
        told = calls[task](generator=seeded(), callback=hear)
        assert torch.equal(plain, told)
        fractions = [fraction for fraction, _ in heard]
        assert fractions == sorted(set(fractions)) and fractions[0] > 0 and fractions[-1] == 1
        assert len(fractions) > 2 and all(state.shape == told.shape for _, state in heard)

        def stop(fraction, state):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calls[task](callback=stop)


def test_a_flow_is_not_changed_by_sampling(digits):
    before = {k: v.clone() for k, v in digits.velocity_model.state_dict().items()}
    digits.sample(2, label=1, guidance_scale=2.0, method="euler", steps=1)
    assert digits.samplers["sample"] == Sampler(steps=2)
    assert all(torch.equal(v, before[k]) for k, v in digits.velocity_model.state_dict().items())


def zeros(side: int = 28) -> torch.Tensor:
    return torch.zeros(1, 1, side, side)


HOLE = zeros() == 0
CALLS = {
    "`count` must be a whole number of at least 1; got 0": lambda f: f.sample(0),
    "`label` must be a number from 0 to 9 or one of 0, 1": lambda f: f.sample(2, label=10),
    "`label` must be .*; got 'ten'": lambda f: f.sample(2, label="ten"),
    "one for each of 2; got 1": lambda f: f.sample(2, label=[1]),
    "`steps` must be a whole number of at least 1": lambda f: f.sample(2, steps=0),
    "`method` must be one of": lambda f: f.sample(2, method="midpiont"),
    "`guidance_scale` must be a finite": lambda f: f.sample(2, guidance_scale=float("nan")),
    "not trained to translate; it can sample and fill": lambda f: f.translate(zeros()),
    "`image` must be .batch, 1, 28, 28.; got .*fill_picture": lambda f: f.fill(
        zeros(9), zeros(9) == 0
    ),
    "`image` must be a float tensor": lambda f: f.fill(zeros().byte(), HOLE),
    "`mask` must be bool": lambda f: f.fill(zeros(), zeros()),
    "`mask` must have as many axes": lambda f: f.fill(zeros(), HOLE[0, 0]),
    "`fills` must be a whole number": lambda f: f.fill(zeros(), HOLE, fills=0),
}


@pytest.mark.parametrize("message", CALLS)
def test_wrong_calls_are_told(message, digits, untyped):
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        CALLS[message](digits)


def test_wrong_calls_of_other_models_are_told(portraits, whole):
    image, mask = picture(portraits)
    with pytest.raises(ValueError, match="`method` must be one of ODESolver's for this model"):
        portraits.fill(image, mask, method="flower")
    with pytest.raises(ValueError, match="`guidance_scale` must be 1 for a fill without `label`"):
        portraits.fill(image, mask, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`label` must be None, for this model knows no classes"):
        portraits.fill(image, mask, label=1)
    image, mask = picture(whole)
    with pytest.raises(
        ValueError, match=r"`method` must be one of d_flow, .* trained on whole images"
    ):
        whole.fill(image, mask, method="euler")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"velocity_model": torch.sin}, TypeError, "`velocity_model` must be a torch.nn.Module"),
        ({"path": "straight"}, TypeError, "`path` must be a flow_matching.path.ProbPath"),
        ({"source": "sketch"}, ValueError, '`source` must be "noise" or "image"'),
        ({"shape": ()}, ValueError, "`shape` must hold lengths of at least 1"),
        ({"shape": (0, 8, 8)}, ValueError, "`shape` must hold lengths of at least 1"),
        ({"tasks": ("paint",)}, ValueError, "`tasks` must be among sample, fill, translate"),
        ({"tasks": ()}, ValueError, "`tasks` must be among"),
        ({"samplers": {"translate": Sampler()}}, ValueError, "`samplers` must be for its tasks"),
        ({"data_range": (1.0, -1.0)}, ValueError, "`data_range` must be .lowest, highest."),
    ],
)
def test_wrong_flows_are_told(changes, error, message, whole, untyped):
    given = {"velocity_model": whole.velocity_model, "path": whole.path, "shape": (1, 8, 8)}
    with pytest.raises(error, match=message):
        FlowModel(**(given | changes))


def test_a_metric_has_an_interval_or_none():
    with pytest.raises(ValueError, match="`low` and `high` must both be given"):
        Metric(name="a", value=1.0, low=0.0)
    assert Measured().metrics == ()


def test_points_are_samples_too():
    from fm_ext.models import MLP

    flow = FlowModel(MLP(2), BridgeProbPath(0.1), shape=(2,), data_range=None, tasks=("sample",))
    drawn = flow.sample(5, generator=seeded())
    assert drawn.shape == (5, 2)
    with pytest.raises(AttributeError, match="scheduler"):
        _ = flow.scheduler


def test_a_trainers_checkpoint_becomes_a_flow_by_one_call(tmp_path):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from fm_ext.loss import velocity_loss
    from fm_ext.training import Trainer, TrainerConfig

    def network():
        return UNetWrapper(UNet(1, 1, channels=8, head_channels=8, multipliers=(1,)))

    path, model = CondOTProbPath(), network()

    def loss(model, batch):
        t = torch.rand(len(batch))
        sample = path.sample(x_0=torch.randn_like(batch), x_1=batch, t=t)
        return velocity_loss(model(x=sample.x_t, t=sample.t), sample)

    loader = DataLoader(torch.randn(8, 1, 8, 8), batch_size=4)  # pyright: ignore[reportArgumentType]
    config = TrainerConfig(steps=2, ema_decay=0.5, output_dir=tmp_path)
    trainer = Trainer(model, loss, loader, config, Accelerator(cpu=True))
    trainer.fit()
    for ema, trained in ((True, trainer.ema_model), (False, trainer.model)):
        flow = FlowModel.from_checkpoint(tmp_path, network(), path, shape=(1, 8, 8), ema=ema)
        flow.save_pretrained(tmp_path / "flow")
        again = FlowModel.from_pretrained(tmp_path / "flow")
        for name, value in trained.state_dict().items():
            assert torch.equal(value, again.velocity_model.state_dict()[name])


@pytest.mark.parametrize("method", ["euler", "ding"])
@pytest.mark.parametrize("fills", [None, 3])
def test_a_flow_of_latents_fills_images_and_keeps_known_pixels_bit_for_bit(method, fills, latents):
    image, mask = picture(latents)
    filled = latents.fill(image, mask, fills=fills, method=method, steps=2, generator=seeded())
    assert filled.shape == (*([] if fills is None else [fills]), *image.shape)
    known = ~mask.expand_as(filled)
    assert torch.equal(filled[known], image.expand_as(filled)[known])
    assert filled[~known].abs().max() <= 1


def test_a_fill_in_latents_is_that_of_upstreams_solver_decoded(latents):
    latents.data_range = None
    image, mask = picture(latents)
    noise = torch.randn(2, 4, 8, 8, generator=seeded())
    known = 2 * nn.functional.pixel_unshuffle(image.masked_fill(mask, 0), 2)
    cells = nn.functional.max_pool2d(mask.float(), 2) > 0
    start = torch.where(cells, noise, known)
    solver = UpstreamODESolver(MaskedVelocityModel(latents.velocity_model))
    end = solver.sample(start, step_size=0.5, method="midpoint", mask=cells)
    expected = torch.where(mask, latents.codec.vae.decode(end), image)
    filled = latents.fill(image, mask, method="midpoint", steps=2, generator=seeded())
    torch.testing.assert_close(filled, expected)


def test_a_flow_of_latents_samples_and_translates_images_and_reports_them(
    latents, latent_translator
):
    latents.data_range, states = None, []
    images = latents.sample(2, steps=2, callback=lambda done, x: states.append(x.shape))
    assert images.shape == (2, 1, 16, 16) and set(states) == {images.shape}
    image = torch.randn(2, 1, 8, 8)
    solver, tiles = UpstreamODESolver(latent_translator.velocity_model), latent_translator.codec.vae
    end = solver.sample(tiles.encode(image), step_size=0.5, method="midpoint")
    torch.testing.assert_close(latent_translator.translate(image, steps=2), tiles.decode(end))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"codec": nn.Identity()}, TypeError, "`codec` must be a LatentCodec.*got Identity"),
        ({"shape": (1, 15, 16)}, ValueError, "multiples of the codec's factor, 2; got"),
        ({"shape": (16,)}, ValueError, r"`shape` must be that of images.*got \(16,\)"),
    ],
)
def test_a_codec_that_does_not_fit_is_told(changes, error, message, latents, untyped):
    given = {"shape": latents.shape, "codec": latents.codec} | changes
    with pytest.raises(error, match=message):
        FlowModel(latents.velocity_model, latents.path, **given)
