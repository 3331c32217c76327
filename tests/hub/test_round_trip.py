"""Saved flows come back bit for bit: every class that is registered, every dtype, every wrapper around."""

import json

import flow_matching.path as upstream
import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler, Scheduler
from torch import nn

from fm_ext.coupling import (
    GatheredCoupling,
    GreedyTransport,
    IndependentCoupling,
    NoisySource,
    OptimalTransport,
    SinkhornTransport,
)
from fm_ext.hub import FlowModel, Measured, Metric, Sampler, register, registered
from fm_ext.hub.registry import build, describe
from fm_ext.models import (
    MLP,
    EmpiricalVelocityModel,
    GuidedVelocityModel,
    LatentCodec,
    MaskedVelocityModel,
    MeanFlowModel,
    PredictionVelocityModel,
    SmallUNet,
    UNet,
    UNetWrapper,
)
from fm_ext.path import (
    AffineProbPath,
    BridgeProbPath,
    CondOTProbPath,
    CoupledProbPath,
    MaskedProbPath,
)
from fm_ext.path.scheduler import (
    CosineScheduler,
    EDMScheduler,
    ScheduleTransformedModel,
    VPScheduler,
)


def tiny_unet(*channels: int, **changes) -> UNet:
    return UNet(*channels, channels=8, head_channels=8, multipliers=(1, 2), attention=(), **changes)


def shaken(model: nn.Module) -> nn.Module:
    """Random weights in every layer: a UNet's last ones start at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.125)
    return model.eval()


@register("test_time")
class DDPMTime:
    def __init__(self, steps: int):
        self.steps = steps

    def __call__(self, t):
        return self.steps * (1 - t)


def conditional() -> UNetWrapper:
    return UNetWrapper(tiny_unet(1, 1, num_classes=3), label_dropout=0.25)


def data(count=5):
    return torch.randn(count, 1, 8, 8)


MODELS = {
    "unet": lambda: UNet.preset(
        28, 1, channels=8, head_channels=4, dropout=0.125, patch_size=2, num_classes=3
    ),
    "small_unet": lambda: SmallUNet(1),
    "mlp": lambda: MLP(3, 8, activation=nn.SiLU),
    "empirical_velocity_model": lambda: EmpiricalVelocityModel(
        data(),
        VPScheduler(),
        0.25,
        weights=torch.rand(5) + 0.1,
        labels=torch.arange(5) % 3,
        block=2,
    ),
    "unet_wrapper": lambda: UNetWrapper(
        tiny_unet(2, 1, num_classes=3),
        concat=("mask",),
        time_scale=DDPMTime(999),
        output_scale=-1,
        label_dropout=0.25,
        mask_dropout=0.125,
    ),
    "masked_velocity_model": lambda: MaskedVelocityModel(
        UNetWrapper(tiny_unet(2, 1), concat=("mask",))
    ),
    "guided_velocity_model": lambda: GuidedVelocityModel(
        conditional(),
        weight=1.5,
        null={"label": torch.tensor(3)},
        interval=(0.1, 0.75),
        rescale=0.5,
        against=conditional(),
        optimized_scale=True,
        zero_init=0.25,
    ),
    "mean_flow_model": lambda: MeanFlowModel(
        UNetWrapper(tiny_unet(1, 1, second_time=True, guidance_input=True))
    ),
    "prediction_velocity_model": lambda: PredictionVelocityModel(
        conditional(), EDMScheduler(), "x_1", t_eps=(0.125, 0.0625)
    ),
    "schedule_transformed_model": lambda: ScheduleTransformedModel(
        MaskedVelocityModel(UNetWrapper(tiny_unet(1, 1)), pass_mask=False),
        CosineScheduler(),
        CondOTScheduler(),
    ),
}
PATHS = {
    "upstream_affine_path": lambda: upstream.AffineProbPath(CosineScheduler()),
    "upstream_cond_ot_path": upstream.CondOTProbPath,
    "affine_path": lambda: AffineProbPath(VPScheduler(beta_max=12.0)),
    "cond_ot_path": CondOTProbPath,
    "bridge_path": lambda: BridgeProbPath(0.25),
    "masked_path": lambda: MaskedProbPath(BridgeProbPath(0.25)),
    "coupled_path": lambda: CoupledProbPath(MaskedProbPath(CondOTProbPath()), NoisySource(0.5)),
}
COUPLINGS = {
    "independent_coupling": IndependentCoupling,
    "noisy_source": lambda: NoisySource(0.5),
    "optimal_transport": lambda: OptimalTransport(ratio=0.5),
    "greedy_transport": lambda: GreedyTransport(rounds=7, weight=2.0),
    "sinkhorn_transport": lambda: SinkhornTransport(0.125, relative=False),
    "gathered_coupling": lambda: GatheredCoupling(OptimalTransport()),
}


AUTOENCODERS = {
    "diffusers.AutoencoderKL": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
        "norm_num_groups": 2,
        "latent_channels": 4,
        "scaling_factor": 0.5,
    },
    "diffusers.AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_out_channels": (4, 4),
        "decoder_block_out_channels": (4, 4),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
    },
    "diffusers.AutoencoderTiny": {
        "encoder_block_out_channels": (4, 4),
        "decoder_block_out_channels": (4, 4),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_channels": 4,
    },
}


def test_every_registered_class_has_a_case():
    ours = [name for name in registered() if not name.startswith("test_")]
    assert ours == sorted([*MODELS, *PATHS, *COUPLINGS, "latent_codec", *AUTOENCODERS])


def velocity(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (2, 3) if isinstance(model, MLP) else (2, 1, 8, 8)
    x = torch.randn(size, generator=generator)
    extras = {}
    if any(isinstance(m, UNet) and m.num_classes for m in model.modules()) or hasattr(
        model, "data"
    ):
        extras["label"] = torch.tensor([0, 2])
    if any("mask" in getattr(m, "concat", ()) or hasattr(m, "pass_mask") for m in model.modules()):
        extras["mask"] = torch.rand(2, 1, 8, 8, generator=generator) < 0.5
    return model(x=x, t=torch.tensor(0.375), **extras)


def same(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(name, tmp_path):
    model = shaken(MODELS[name]())
    shape = (3,) if name == "mlp" else (1, 8, 8)
    FlowModel(model, CondOTProbPath(), shape=shape).save_pretrained(tmp_path)
    again = FlowModel.from_pretrained(tmp_path).velocity_model
    assert type(again) is type(model) and not again.training
    same(model, again)
    assert torch.equal(velocity(model), velocity(again))
    assert describe(model, {}) == describe(again, {})


@pytest.mark.parametrize("name", ["small_unet", "empirical_velocity_model"])
def test_what_is_loaded_is_in_memory_of_its_own(name, tmp_path):
    FlowModel(shaken(MODELS[name]()), CondOTProbPath(), shape=(1, 8, 8)).save_pretrained(tmp_path)
    model = FlowModel.from_pretrained(tmp_path).velocity_model
    before = velocity(model)
    file = tmp_path / "model.safetensors"
    with open(file, "r+b") as opened:  # in place, as a copy over the file does
        opened.write(bytes(file.stat().st_size))
    assert torch.equal(velocity(model), before)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_codec_comes_back_bit_for_bit(name, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    vae = getattr(diffusers, name.partition(".")[2])(**AUTOENCODERS[name])
    codec = LatentCodec(shaken(vae), scale=0.75, batch_size=1, dilation=1, blend=True)
    flow = FlowModel(
        shaken(UNetWrapper(tiny_unet(4, 4))), CondOTProbPath(), shape=(3, 16, 16), codec=codec
    )
    flow.save_pretrained(tmp_path)
    again = FlowModel.from_pretrained(tmp_path)
    assert again.codec is not None and type(again.codec.vae) is type(vae)
    same(codec, again.codec)
    for argument in ("factor", "draw", "tile", "batch_size", "dilation", "blend"):
        assert getattr(again.codec, argument) == getattr(codec, argument), argument
    drawn = [
        f.sample(2, steps=2, generator=torch.Generator().manual_seed(0)) for f in (flow, again)
    ]
    assert torch.equal(*drawn)
    flow.codec = None
    flow.save_pretrained(tmp_path)  # over a folder of latents
    assert FlowModel.from_pretrained(tmp_path).codec is None
    assert not (tmp_path / "codec.safetensors").exists()


def test_an_autoencoder_of_the_users_own_is_registered(tmp_path):
    class Mine(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.width = width
            self.encode, self.decode = nn.Conv2d(1, width, 2, 2), nn.ConvTranspose2d(width, 1, 2, 2)

    codec = LatentCodec(Mine(3), factor=2)
    flow = FlowModel(tiny_unet(3, 3), CondOTProbPath(), shape=(1, 16, 16), codec=codec)
    with pytest.raises(ValueError, match=r"Mine is not. Decorate it with `@register"):
        flow.save_pretrained(tmp_path)
    register("test_autoencoder")(Mine)  # the advice
    flow.save_pretrained(tmp_path)
    same(codec, FlowModel.from_pretrained(tmp_path).codec)


@pytest.mark.parametrize("name", [*PATHS, *COUPLINGS])
def test_a_path_comes_back_as_it_was(name):
    thing = (PATHS | COUPLINGS)[name]()
    text = json.dumps(describe(thing, {}))
    again = build(json.loads(text), {})
    assert type(again) is type(thing) and json.dumps(describe(again, {})) == text
    x_0, x_1 = torch.randn(2, 4, 1, 2, 2).unbind()
    if name in PATHS:
        drawn = []
        for path in (thing, again):
            torch.manual_seed(1)
            drawn.append(path.sample(x_0=x_0, x_1=x_1, t=torch.full((4,), 0.25)).x_t)
        assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_comes_back(dtype, tmp_path):
    model = shaken(UNetWrapper(tiny_unet(1, 1))).to(dtype)
    model.model.conv_out.float()  # a part in another precision keeps it
    FlowModel(model, CondOTProbPath(), shape=(1, 8, 8)).save_pretrained(tmp_path)
    same(model, FlowModel.from_pretrained(tmp_path).velocity_model)


def test_weights_stored_in_half_precision_are_computed_with_in_float32(digits, tmp_path):
    digits.stored_as = torch.float16
    digits.save_pretrained(tmp_path / "once")
    once = FlowModel.from_pretrained(tmp_path / "once")
    assert once.dtype == torch.float32 and once.stored_as == torch.float16
    same(digits.velocity_model.half().float(), once.velocity_model)
    once.save_pretrained(tmp_path / "twice")
    same(once.velocity_model, FlowModel.from_pretrained(tmp_path / "twice").velocity_model)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("once", "twice")]
    assert sizes[0] == sizes[1] < 3 * sum(p.numel() for p in once.velocity_model.parameters())


def test_a_compiled_model_is_saved_as_the_plain_one(tmp_path):
    network = shaken(tiny_unet(1, 1))
    model: nn.Module = torch.compile(UNetWrapper(torch.compile(network)))  # pyright: ignore
    FlowModel(model, CondOTProbPath(), shape=(1, 8, 8)).save_pretrained(tmp_path)
    same(UNetWrapper(network), FlowModel.from_pretrained(tmp_path).velocity_model)


class Tied(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.width = width
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight

    def forward(self, x, t):
        return self.second(self.first(x))


def test_a_network_of_the_users_own_is_registered_and_tied_weights_stay_tied(tmp_path):
    flow = FlowModel(Tied(), CondOTProbPath(), shape=(4,))
    with pytest.raises(ValueError, match=r"Tied is not. Decorate it with `@register"):
        flow.save_pretrained(tmp_path)
    register("test_tied")(Tied)  # the advice
    flow.save_pretrained(tmp_path)
    again = FlowModel.from_pretrained(tmp_path).velocity_model
    same(flow.velocity_model, again)
    assert again.first.weight is again.second.weight


def test_what_else_is_known_of_a_flow_comes_back(digits, tmp_path):
    digits.measured = Measured(
        title="Digits",
        seconds=12.5,
        metrics=(Metric(name="right class", value=0.5, low=0.25, high=0.75, on="test"),),
    )
    digits.samplers["sample"] = Sampler(method="heun2", steps=3, guidance_scale=1.5)
    digits.save_pretrained(tmp_path)
    again = FlowModel.from_pretrained(tmp_path)
    for name in (
        "tasks",
        "shape",
        "classes",
        "samplers",
        "data_range",
        "measured",
        "source",
        "masked",
    ):
        assert getattr(again, name) == getattr(digits, name), name
    assert isinstance(again.scheduler, Scheduler) and isinstance(again.path, upstream.ProbPath)
    card = (tmp_path / "README.md").read_text()
    assert "| right class | test | 0.5 | 0.25 to 0.75 |" in card and "CC BY-NC 4.0" in card
    assert card.startswith("---\nlibrary_name: fm_ext") and "heun2" in card


def test_saving_over_a_folder_that_was_loaded_replaces_weights_and_card(digits, tmp_path):
    digits.save_pretrained(tmp_path)
    again = FlowModel.from_pretrained(tmp_path)
    with torch.no_grad():
        again.velocity_model.model.conv_out.bias.add_(1)
    again.measured = Measured(title="Other digits")
    again.save_pretrained(tmp_path)
    same(again.velocity_model, FlowModel.from_pretrained(tmp_path).velocity_model)
    assert "# Other digits" in (tmp_path / "README.md").read_text()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["README.md", "config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in files}) == 1
