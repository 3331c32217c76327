"""The recorded public API: a name that goes or comes must be written here and in the CHANGELOG."""

import importlib
import inspect
import re

import pytest

API = {
    "fm_ext.app": ["run"],
    "fm_ext.coupling": [
        "Coupling",
        "GatheredCoupling",
        "GreedyTransport",
        "IndependentCoupling",
        "NoisySource",
        "OptimalTransport",
        "SemidiscreteTransport",
        "SinkhornTransport",
    ],
    "fm_ext.data": [
        "assigned_loader",
        "image_loader",
        "image_pair_loader",
        "latent_loader",
        "load_images",
        "pair_loader",
        "turn_colours",
        "write_latents",
        "write_pairs",
    ],
    "fm_ext.hub": [
        "FlowModel",
        "Measured",
        "Metric",
        "Sampler",
        "fill_picture",
        "fitting_model",
        "open_mask",
        "open_picture",
        "register",
        "registered",
        "shipped_names",
        "to_grid",
        "to_pictures",
        "translate_picture",
    ],
    "fm_ext.loss": [
        "LogitNormalTime",
        "PowerTime",
        "ShiftedTime",
        "TimePairs",
        "TimeSampler",
        "UniformTime",
        "mean_flow_loss",
        "velocity_loss",
    ],
    "fm_ext.mask": [
        "CenterBox",
        "FreeForm",
        "Hybrid",
        "Irregular",
        "Mask",
        "RandomBox",
        "RandomEntries",
        "RandomSpans",
    ],
    "fm_ext.metrics": [
        "Classifier",
        "Estimate",
        "FeatureMetrics",
        "class_balance",
        "class_entropy",
        "classifier",
        "colour_error",
        "coverage",
        "density",
        "energy_distance",
        "fill_diversity",
        "frechet_distance",
        "hole_psnr",
        "hole_ssim",
        "jackknife",
        "kernel_distance",
        "maximum_mean_discrepancy",
        "memorisation",
        "nearest_distance",
        "precision",
        "recall",
        "seam_gradient",
        "sliced_wasserstein",
        "straightness",
        "wasserstein_distance",
    ],
    "fm_ext.models": [
        "CONVENTIONS",
        "MLP",
        "Convention",
        "DiffusersVelocityModel",
        "EmpiricalVelocityModel",
        "GuidedVelocityModel",
        "LatentCodec",
        "MaskedVelocityModel",
        "MeanFlowModel",
        "PredictionVelocityModel",
        "SmallUNet",
        "UNet",
        "UNetWrapper",
        "from_diffusers",
        "to_diffusers",
    ],
    "fm_ext.path": [
        "AffineProbPath",
        "BridgeProbPath",
        "CondOTProbPath",
        "CoupledProbPath",
        "MaskedProbPath",
        "PathWrapper",
        "ProbPath",
    ],
    "fm_ext.path.scheduler": [
        "BetaTableScheduler",
        "CosineScheduler",
        "EDMScheduler",
        "IDDPMCosineScheduler",
        "LinearVPScheduler",
        "ScheduleTransformedModel",
        "ShiftedConvexScheduler",
        "ShiftedScheduler",
        "SigmoidScheduler",
        "VEScheduler",
        "VPScheduler",
        "VarianceExplodingScheduler",
        "VariancePreservingScheduler",
        "get_scheduler",
        "register_scheduler",
        "scheduler_config",
        "scheduler_names",
    ],
    "fm_ext.sampling": [
        "EvaluationCounter",
        "Samples",
        "draw_samples",
        "indexed_noise",
        "to_uint8",
    ],
    "fm_ext.solver": [
        "ExponentialSolver",
        "InpaintingSolver",
        "MeanFlowSolver",
        "ODESolver",
        "bits_per_dimension",
        "cosine_grid",
        "karras_grid",
        "shifted_grid",
        "simulate_pairs",
        "uniform_grid",
    ],
    "fm_ext.training": [
        "CheckpointError",
        "ExponentialMovingAverage",
        "NonFiniteLossError",
        "Trainer",
        "TrainerConfig",
        "auto_accelerator",
        "latest_checkpoint",
        "leave_to_main",
        "load_weights",
    ],
    "fm_ext.utils": ["ModelWrapper", "shared"],
}


@pytest.mark.parametrize("room", API)
def test_names_are_the_recorded_ones(room):
    assert importlib.import_module(room).__all__ == API[room]


@pytest.mark.parametrize("room", API)
def test_every_public_name_is_documented(room):
    module = importlib.import_module(room)
    assert inspect.getdoc(module)
    for name in API[room]:
        thing = getattr(module, name)
        assert inspect.getdoc(thing), name
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("fm_ext"):
                assert inspect.getdoc(function), f"{name}.{method}"


def test_every_public_name_is_once_in_the_reference_and_linked_from_its_index(request):
    content = request.config.rootpath / "docs/content"
    index = (content / "reference/index.md").read_text()
    shown = re.findall(
        r"^::: (\S+)$", "\n".join(p.read_text() for p in content.glob("**/*.md")), re.MULTILINE
    )
    recorded = [f"{room}.{name}" for room, names in API.items() for name in names]
    assert sorted(shown) == sorted(recorded)
    for name in recorded:
        assert f"][{name}]" in index, f"{name} is not in the reference's index"
