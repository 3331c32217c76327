"""The recorded public API: a name that goes or comes must be written here and in the CHANGELOG."""

import importlib
import inspect

import pytest

API = {
    "fm_ext.coupling": [
        "Coupling",
        "GatheredCoupling",
        "GreedyTransport",
        "IndependentCoupling",
        "NoisySource",
        "OptimalTransport",
        "SinkhornTransport",
    ],
    "fm_ext.data": [
        "image_loader",
        "image_pair_loader",
        "load_images",
        "pair_loader",
        "write_pairs",
    ],
    "fm_ext.loss": [
        "LogitNormalTime",
        "PowerTime",
        "ShiftedTime",
        "TimeSampler",
        "UniformTime",
        "velocity_loss",
    ],
    "fm_ext.mask": ["CenterBox", "FreeForm", "Hybrid", "Irregular", "Mask", "RandomBox"],
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
        "MLP",
        "EmpiricalVelocityModel",
        "GuidedVelocityModel",
        "MaskedVelocityModel",
        "PredictionVelocityModel",
        "SmallUNet",
        "UNet",
        "UNetWrapper",
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


def test_every_public_name_is_in_the_docs(request):
    pages = "".join(
        p.read_text() for p in (request.config.rootpath / "docs/content").glob("**/*.md")
    )
    for room, names in API.items():
        for name in names:
            assert f"::: {room}.{name}\n" in pages, f"{room}.{name} is on no page"
