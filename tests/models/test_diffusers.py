"""A network of diffusers under our solver gives what its own pipeline gives, family by family."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fm_ext.models import (
    CONVENTIONS,
    Convention,
    GuidedVelocityModel,
    UNetWrapper,
    from_diffusers,
    to_diffusers,
)
from fm_ext.models.conventions import as_markdown
from fm_ext.path.scheduler import ShiftedScheduler
from fm_ext.solver import InpaintingSolver, ODESolver

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")  # the pipelines' modules import it
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

STEPS = 5  # divides 1000: else DDIM steps to a level beside the one at which it asks next
TEXT = 4  # tokens


def randomised(network):
    """The network with no weight at 0, as some are at the start, and away from the others of the test."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if parameter.ndim < 2 else 0.7 / parameter[0].numel() ** 0.5
            parameter.copy_(scale * noise + (parameter.ndim < 2) * parameter)
    return network.eval()


def embeddings(*shape):
    return 2 * torch.randn(*shape), 2 * torch.randn(*shape)


def pipeline(kind, network, scheduler, *encoders):
    """A pipeline of a transformer without what makes prompts into embeddings and latents into images."""
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", *encoders))
    return kind(transformer=randomised(network), scheduler=scheduler, **absent)


def sd3(scheduler, guidance):
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    pipe = pipeline(
        diffusers.StableDiffusion3Pipeline, net, scheduler, "text_encoder_2", "tokenizer_2", "text_encoder_3",
        "tokenizer_3",
    )  # fmt: skip
    (text, empty), (pooled, none) = embeddings(2, TEXT, 16), embeddings(2, 12)
    call = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "guidance_scale": guidance or 1.0,
            "negative_prompt_embeds": empty, "negative_pooled_prompt_embeds": none,
            "height": 64, "width": 64}  # fmt: skip
    conditions = {"encoder_hidden_states": text, "pooled_projections": pooled}
    null = {"encoder_hidden_states": empty, "pooled_projections": none}
    return pipe, call, conditions, null, torch.randn(2, 4, 8, 8)


def flux(scheduler, guidance, embeds=False):
    net = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=12, guidance_embeds=embeds, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    pipe = pipeline(diffusers.FluxPipeline, net, scheduler, "text_encoder_2", "tokenizer_2")
    (text, empty), (pooled, none) = embeddings(2, TEXT, 16), embeddings(2, 12)
    call = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": 64, "width": 96}
    conditions = {"encoder_hidden_states": text, "pooled_projections": pooled}
    null = {"encoder_hidden_states": empty, "pooled_projections": none}
    if embeds:
        call |= {"guidance_scale": guidance}
        null = None
    elif guidance:
        call |= {"true_cfg_scale": guidance, "negative_prompt_embeds": empty,
                 "negative_pooled_prompt_embeds": none}  # fmt: skip
    return pipe, call, conditions, null, torch.randn(2, 4, 8, 12)


def flux_embedding(scheduler, guidance):
    return flux(scheduler, guidance, embeds=True)


def sana(scheduler, guidance):
    net = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    pipe = pipeline(diffusers.SanaPipeline, net, scheduler)
    text, empty = embeddings(2, TEXT, 16)
    mask = torch.ones(2, TEXT, dtype=torch.long)
    other = mask.clone()
    other[:, 2:] = 0
    call = {"prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt_embeds": empty,
            "negative_prompt_attention_mask": other, "negative_prompt": None,
            "guidance_scale": guidance or 1.0, "height": 256, "width": 256,
            "use_resolution_binning": False}  # fmt: skip
    conditions = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    null = {"encoder_hidden_states": empty, "encoder_attention_mask": other}
    return pipe, call, conditions, null, torch.randn(2, 4, 8, 8)


def aura(scheduler, guidance):
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, out_channels=4,
        pos_embed_max_size=64,
    )  # fmt: skip
    pipe = pipeline(diffusers.AuraFlowPipeline, net, scheduler)
    text, empty = embeddings(2, TEXT, 16)
    mask = torch.ones(2, TEXT)
    call = {"prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt_embeds": empty,
            "negative_prompt_attention_mask": mask, "guidance_scale": guidance or 1.0,
            "height": 64, "width": 64}  # fmt: skip
    null = {"encoder_hidden_states": empty}
    return pipe, call, {"encoder_hidden_states": text}, null, torch.randn(2, 4, 8, 8)


def lumina2(scheduler, guidance):
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=16, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(2, 2, 4), axes_lens=(32, 16, 16), cap_feat_dim=16,
    )  # fmt: skip
    pipe = pipeline(diffusers.Lumina2Pipeline, net, scheduler)
    text, empty = embeddings(2, TEXT, 16)
    mask = torch.ones(2, TEXT, dtype=torch.bool)
    call = {"prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt_embeds": empty,
            "negative_prompt_attention_mask": mask, "guidance_scale": guidance or 1.0, "height": 64,
            "width": 64, "cfg_normalization": False}  # fmt: skip
    conditions = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    null = {"encoder_hidden_states": empty}
    return pipe, call, conditions, null, torch.randn(2, 4, 8, 8)


def qwen(scheduler, guidance):
    net = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = pipeline(diffusers.QwenImagePipeline, net, scheduler)
    text, _ = embeddings(2, TEXT, 16)
    mask = torch.ones(2, TEXT, dtype=torch.long)
    call = {"prompt_embeds": text, "prompt_embeds_mask": mask, "height": 64, "width": 96}
    conditions = {"encoder_hidden_states": text, "encoder_hidden_states_mask": mask}
    return pipe, call, conditions, None, torch.randn(2, 4, 8, 12)


def z_image(scheduler, guidance):
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[2, 2, 4], axes_lens=[64, 16, 16],
    )  # fmt: skip
    pipe = pipeline(diffusers.ZImagePipeline, net, scheduler)
    text, empty = embeddings(2, TEXT, 16)
    call = {"prompt_embeds": list(text), "negative_prompt_embeds": list(empty), "height": 64, "width": 96,
            "guidance_scale": guidance - 1 if guidance else 0.0}  # fmt: skip
    return pipe, call, {"cap_feats": text}, {"cap_feats": empty}, torch.randn(2, 4, 8, 12)


def unet(scheduler, guidance):
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    kind = diffusers.DDIMPipeline if "DDIM" in type(scheduler).__name__ else diffusers.DDPMPipeline
    pipe = kind(unet=randomised(net), scheduler=scheduler)
    pipe.scheduler = scheduler  # DDIMPipeline makes another
    return pipe, {"batch_size": 2}, {}, None, torch.randn(2, 3, 8, 8)


def conditional_unet(scheduler, guidance):
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    text, empty = embeddings(2, TEXT, 16)
    pipe = SimpleNamespace(unet=randomised(net), scheduler=scheduler, loop=True)
    if hasattr(scheduler, "scale_model_input"):
        pipe = diffusers.StableDiffusionPipeline(
            unet=net, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    call = {
        "prompt_embeds": text,
        "negative_prompt_embeds": empty,
        "guidance_scale": guidance or 1.0,
    }
    null = {"encoder_hidden_states": empty}
    return pipe, call, {"encoder_hidden_states": text}, null, torch.randn(2, 4, 8, 8)


def dit(scheduler, guidance):
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000, norm_num_groups=1,
    )  # fmt: skip
    labels = torch.tensor([3, 7])
    pipe = SimpleNamespace(transformer=randomised(net), scheduler=scheduler, loop=True)
    if hasattr(scheduler, "scale_model_input"):
        vae = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(4,), decoder_block_out_channels=(4,), num_encoder_blocks=(1,),
            num_decoder_blocks=(1,),
        )  # fmt: skip
        pipe = diffusers.DiTPipeline(transformer=net, vae=vae, scheduler=scheduler)
    call = {"class_labels": labels.tolist(), "guidance_scale": guidance or 1.0}
    return pipe, call, {"class_labels": labels}, None, torch.randn(2, 4, 8, 8)


def plain(shift=1.0, **options):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **options)


def ddim(**options):
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.DDIMScheduler(clip_sample=False, **(table | options))


def euler():
    return diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading",
        steps_offset=1,
    )  # fmt: skip


DYNAMIC = {"use_dynamic_shifting": True}
CASES = {
    "SD3, shift 3": (sd3, lambda: plain(3.0), None),
    "SD3, shift 3, guidance 5": (sd3, lambda: plain(3.0), 5.0),
    "SD3.5, dynamic shift, guidance 5": (sd3, lambda: plain(**DYNAMIC), 5.0),
    "Flux, dynamic shift": (flux, lambda: plain(**DYNAMIC), None),
    "Flux, shift 1, true guidance 3": (flux, plain, 3.0),
    "Flux, dynamic shift, embedded guidance 3.5": (flux_embedding, lambda: plain(**DYNAMIC), 3.5),
    "Sana, shift 3": (sana, lambda: plain(3.0), None),
    "Sana, shift 3, guidance 4.5": (sana, lambda: plain(3.0), 4.5),
    "AuraFlow, shift 1.7, guidance 3.5": (aura, lambda: plain(1.73), 3.5),
    "Lumina 2, shift 6, guidance 4": (lumina2, lambda: plain(6.0), 4.0),
    "Qwen-Image, dynamic shift": (qwen, lambda: plain(**DYNAMIC), None),
    "Z-Image, shift 3": (z_image, lambda: plain(3.0), None),
    "Z-Image, shift 3, guidance 6": (z_image, lambda: plain(3.0), 6.0),
    "UNet2DModel, flow, shift 3": (unet, lambda: plain(3.0), None),
    "UNet2DModel, DDIM, epsilon": (unet, ddim, None),
    "UNet2DModel, DDIM, sample": (unet, lambda: ddim(prediction_type="sample"), None),
    "UNet2DModel, DDIM, v, zero SNR": (
        unet,
        lambda: ddim(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
        None,
    ),
    "UNet2DConditionModel, flow, guidance 5": (conditional_unet, plain, 5.0),
    "UNet2DConditionModel, DDIM, guidance 5": (
        conditional_unet,
        lambda: ddim(set_alpha_to_one=False, steps_offset=1),
        5.0,
    ),
    "UNet2DConditionModel, Euler, guidance 5": (conditional_unet, euler, 5.0),
    "DiT, flow, guidance 4": (dit, plain, 4.0),
    "DiT, DDIM": (dit, ddim, None),
    "DiT, DDIM, guidance 4": (dit, ddim, 4.0),
}


def pipelines_own(pipe, call, noise):
    """The last state of the pipeline's own loop, started from `noise`."""
    last = []
    step = pipe.scheduler.step

    def recorded(*args, **kwargs):
        answer = step(*args, **kwargs)
        last[:] = [answer[0] if isinstance(answer, tuple) else answer.prev_sample]
        return answer

    pipe.scheduler.step = recorded
    if hasattr(pipe, "loop"):  # no pipeline of diffusers has this network and this scheduler
        pipes_loop(pipe, call, noise, step)
        return last[0]
    pipe.set_progress_bar_config(disable=True)
    module = __import__(type(pipe).__module__, fromlist=["randn_tensor"])
    options = dict(call, num_inference_steps=STEPS)
    if "prompt_embeds" in call:
        latents = noise
        if "Flux" in type(pipe).__name__ or "Qwen" in type(pipe).__name__:
            latents = type(pipe)._pack_latents(noise, *noise.shape)
        options |= {"latents": latents, "output_type": "latent"}
        pipe(**options)
    else:
        original = module.randn_tensor
        module.randn_tensor = lambda *args, **kwargs: noise
        try:
            pipe(**options, output_type="pt" if "class_labels" in call else "np")
        finally:
            module.randn_tensor = original
    state = last[0]
    if state.ndim == 3:
        rows, columns = noise.shape[-2] // 2, noise.shape[-1] // 2
        state = state.unflatten(1, (rows, columns)).unflatten(-1, (-1, 2, 2))
        state = state.permute(0, 3, 1, 4, 2, 5).reshape(noise.shape)
    return state[: len(noise)]


def pipes_loop(pipe, call, x, step):
    pipe.scheduler.set_timesteps(STEPS)
    scale = call["guidance_scale"]
    for k in pipe.scheduler.timesteps:
        if "class_labels" in call:
            labels = torch.tensor(call["class_labels"])
            ask = lambda c, x=x, k=k: pipe.transformer(x, k[None], class_labels=c).sample[:, :4]
            yes, no = ask(labels), ask(torch.full_like(labels, 1000))
        else:
            ask = lambda c, x=x, k=k: pipe.unet(x, k, encoder_hidden_states=c).sample
            yes, no = ask(call["prompt_embeds"]), ask(call["negative_prompt_embeds"])
        x = pipe.scheduler.step(no + scale * (yes - no), k, x).prev_sample


def relative_error(case):
    build, scheduler, guidance = CASES[case]
    torch.manual_seed(0)
    pipe, call, conditions, null, noise = build(scheduler(), guidance)
    options = {"guidance_scale": guidance}
    if guidance is not None and null is not None:
        options["null"] = null
    v = from_diffusers(pipe, **options)
    with torch.no_grad():
        grid = v.time_grid(STEPS, noise.shape)
        ours = ODESolver(v).sample(
            v.start(noise, STEPS), step_size=None, method="euler", time_grid=grid, **conditions
        )
        expected = pipelines_own(pipe, call, noise)
    if grid[-1] < 1:  # the loop of a table that ends before the data
        alpha = pipe.scheduler.alphas_cumprod[0] ** 0.5
        ours = ours * (alpha + (1 - alpha**2) ** 0.5)
    assert expected.std() > 0.1 and not torch.allclose(expected, noise, atol=0.1)
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_euler_on_our_side_is_the_pipelines_own_loop(case):
    assert relative_error(case) < 1e-5


def test_the_page_of_the_conventions_is_the_table(request):
    page = (request.config.rootpath / "docs/content/reference/conventions.md").read_text()
    assert as_markdown() in page, "write what `python -m fm_ext.models.conventions` prints"


@pytest.mark.parametrize("shape, shift", [(None, 3.0), ((1, 4, 64, 64), None)])
def test_equal_steps_on_the_sampling_schedule_are_the_pipelines(shape, shift):
    scheduler = plain(3.0) if shift else plain(**DYNAMIC)
    network = flux(scheduler, None)[0].transformer
    v = from_diffusers(network, scheduler=scheduler)
    schedule = v.sampling_schedule(shape)
    assert isinstance(schedule, ShiftedScheduler) and (shift is None or schedule.shift == shift)
    uniform = torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(schedule(uniform).alpha_t, v.time_grid(8, shape), rtol=0, atol=1e-6)


def small_dit():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10, norm_num_groups=1,
    )  # fmt: skip


WAYS = {
    "ours": lambda net: UNetWrapper(net, time_scale=1000),
    "ours, 0 to 999": lambda net: UNetWrapper(net, time_scale=999),
    "DDPM's time": lambda net: UNetWrapper(net, time_scale=lambda t: 999 * (1 - t)),
    "theirs": lambda net: UNetWrapper(net, time_scale=lambda t: 1000 * (1 - t), output_scale=-1),
    "an offset": lambda net: UNetWrapper(net, time_scale=lambda t: 5 + 1000 * t),
    "from_diffusers": lambda net: from_diffusers(net, scheduler=plain(3.0)),
}


@pytest.mark.parametrize("network", ["unet", "dit"])
@pytest.mark.parametrize("way", WAYS)
def test_diffusers_own_loop_on_the_written_folder_gives_our_samples(tmp_path, network, way):
    torch.manual_seed(0)
    net = unet(plain(), None)[0].unet if network == "unet" else randomised(small_dit())
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    labels = {} if network == "unet" else {"class_labels": torch.tensor([3, 7])}
    model = WAYS[way](net)
    to_diffusers(model, tmp_path, shift=3.0)
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())
    noise = torch.randn(2, net.config.in_channels, 8, 8)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    scheduler.set_timesteps(STEPS)
    if network == "unet":
        pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
        assert pipe.scheduler.shift == 3
        expected = pipelines_own(pipe, {"batch_size": 2}, noise)
    else:
        expected, stored = (
            noise,
            diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "transformer"),
        )
        with torch.no_grad():
            for k in scheduler.timesteps:
                answer = stored.eval()(expected, k[None].expand(2), **labels).sample
                expected = scheduler.step(answer, k, expected).prev_sample
    again = from_diffusers(tmp_path)
    grid = again.time_grid(STEPS)
    torch.testing.assert_close(grid, 1 - scheduler.sigmas.double())
    for v in (model, again):
        options = {"step_size": None, "method": "euler", "time_grid": grid}
        ours = ODESolver(v).sample(noise, **options, **labels)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("method", ["flower", "ot_ode"])
def test_text_and_guidance_pass_through_training_free_inpainting(method):
    pipe, _, conditions, null, noise = sd3(plain(3.0), 5.0)
    v = from_diffusers(pipe, guidance_scale=5.0, null=null)
    solver = InpaintingSolver(v, v.schedule, method)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:6, 2:6] = True
    fills = []
    for text in (conditions["encoder_hidden_states"], -conditions["encoder_hidden_states"]):
        generator = torch.Generator().manual_seed(0)
        told = conditions | {"encoder_hidden_states": text}
        fills.append(solver.sample(noise, mask=mask, steps=3, generator=generator, **told))
        assert torch.equal(fills[-1].masked_fill(mask, 0), noise.masked_fill(mask, 0))
    assert not torch.allclose(*fills)


class Stranger(nn.Module):
    """A network of no known class: noise minus data, for data that are all 0."""

    def forward(self, hidden_states, timestep, return_dict=True):
        sigma = timestep.view(-1, 1, 1, 1) / 1000
        return (hidden_states / sigma.clamp(min=1e-6),)


def test_an_unknown_class_is_refused_and_the_advice_works():
    with pytest.raises(TypeError, match=r"`source` must be one of AuraFlow.*got Stranger"):
        from_diffusers(Stranger())
    v = from_diffusers(Stranger(), convention=Convention())
    noise = torch.randn(2, 1, 4, 4)
    sample = ODESolver(v).sample(noise, steps=4)
    torch.testing.assert_close(sample, torch.zeros_like(noise), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`scheduler` must be given to know"):
        v.time_grid(4)


def network_of(build, *args):
    pipe = build(plain(), *args)[0]
    return getattr(pipe, "transformer", None) or pipe.unet


ERRORS = {
    "no scheduler": (lambda: from_diffusers(network_of(unet, None)), ValueError, "`scheduler` must be given"),
    "a table for a flow": (lambda: from_diffusers(network_of(sd3, None), scheduler=ddim()), ValueError,
                           "`scheduler` must be one of flows"),
    "the other way": (lambda: from_diffusers(network_of(sd3, None), scheduler=plain(invert_sigmas=True)),
                      ValueError, "`invert_sigmas`"),
    "embedded guidance that is not known": (
        lambda: from_diffusers(diffusers.SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=4, num_layers=1,
            num_cross_attention_heads=1, cross_attention_head_dim=4, cross_attention_dim=4, caption_channels=4,
            sample_size=4, guidance_embeds=True)), ValueError, "`source` embeds guidance"),
    "embedded guidance and null": (
        lambda: from_diffusers(network_of(flux_embedding, 3.0), guidance_scale=3.0, null={"guidance": 0}),
        TypeError, "`null` must be None"),
    "nothing to be guided on": (lambda: from_diffusers(network_of(sd3, None), guidance_scale=3.0), ValueError,
                                "`null` must say"),
    "no source": (lambda: from_diffusers(3), TypeError, "`source` must be a network, a pipeline"),
    "options without a folder": (lambda: from_diffusers(Stranger(), variant="fp16"), TypeError, "`variant`"),
    "no shape": (lambda: from_diffusers(network_of(flux, None), scheduler=plain(**DYNAMIC)).time_grid(3),
                 ValueError, "`shape` must be given"),
    "no shift": (lambda: from_diffusers(network_of(unet, None), scheduler=ddim()).shift(), ValueError,
                 "one of flows to have a shift"),
    "a missing condition": (lambda: from_diffusers(network_of(sd3, None))(x=torch.zeros(1, 4, 8, 8), t=torch.ones(1)),
                            TypeError, "`pooled_projections` is needed"),
    "missing guidance": (
        lambda: from_diffusers(network_of(flux_embedding, 3.0))(
            x=torch.zeros(1, 4, 8, 8), t=torch.ones(1), encoder_hidden_states=torch.zeros(1, TEXT, 16),
            pooled_projections=torch.zeros(1, 12)),
        TypeError, "`guidance` is needed.*guidance_scale="),
    "an unknown condition": (
        lambda: from_diffusers(network_of(unet, None), scheduler=plain())(
            x=torch.zeros(1, 3, 8, 8), t=torch.ones(1), caption=torch.ones(1)), TypeError, "`caption` is not taken"),
    "odd sides": (
        lambda: from_diffusers(network_of(flux, None))(
            x=torch.zeros(1, 4, 7, 8), t=torch.ones(1), encoder_hidden_states=torch.zeros(1, TEXT, 16),
            pooled_projections=torch.zeros(1, 12)), ValueError, "`x` must have even sides"),
    "to: guided": (lambda: to_diffusers(
                       GuidedVelocityModel(UNetWrapper(network_of(unet, None)), 2.0, null={"y": 0}), "x"),
                   TypeError, "`model` must be what from_diffusers made"),
    "to: a DDPM": (lambda: to_diffusers(from_diffusers(network_of(unet, None), scheduler=ddim()), "x"), ValueError,
                   "`model` must be a flow"),
    "to: a mask": (lambda: to_diffusers(UNetWrapper(network_of(unet, None), ("mask",), time_scale=1000), "x"),
                   ValueError, "no further channels"),
    "to: time in 0..1": (lambda: to_diffusers(UNetWrapper(network_of(unet, None)), "x"), ValueError,
                         "`time_scale` must be linear"),
    "to: a bent time": (
        lambda: to_diffusers(UNetWrapper(network_of(unet, None), time_scale=lambda t: 1000 * t**2), "x"), ValueError,
        "`time_scale` must be linear"),
    "to: half the answer": (
        lambda: to_diffusers(UNetWrapper(network_of(unet, None), time_scale=1000, output_scale=0.5), "x"), ValueError,
        "`output_scale` must be 1 or -1"),
    "to: another library's": (
        lambda: to_diffusers(UNetWrapper(Stranger(), time_scale=lambda t: 1000 * (1 - t), output_scale=-1), "x"),
        TypeError, "network of diffusers; got Stranger"),
    "to: a strange time embedding": (lambda: to_diffusers(UNetWrapper(Stranger(), time_scale=1000), "x"), ValueError,
                                     "`time_scale` must be lambda"),
    "to: a strange last layer": (
        lambda: to_diffusers(UNetWrapper(Stranger(), time_scale=lambda t: 1000 * (1 - t)), "x"), ValueError,
        "`output_scale` must be -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_write(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_folder_without_a_network_and_an_absent_library(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`source` must be a folder with transformer"):
        from_diffusers(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'fm_ext\[diffusers\]'"):
        from_diffusers(tmp_path)


def test_every_known_class_has_a_row_that_is_proved():
    built = {type(network_of(build, None)).__name__ for build, _, _ in CASES.values()}
    assert built == set(CONVENTIONS)


if __name__ == "__main__":
    print("| family, scheduler, guidance | relative error |\n|---|---|")
    for name in CASES:
        print(f"| {name} | {relative_error(name):.0e} |")
