"""Figures of quality for samples, fills and flows, with intervals."""

from fm_ext.metrics.classifier import Classifier, classifier
from fm_ext.metrics.energy import energy_distance
from fm_ext.metrics.estimate import Estimate, jackknife
from fm_ext.metrics.feature import FeatureMetrics
from fm_ext.metrics.fill import fill_diversity, seam_gradient
from fm_ext.metrics.frechet import frechet_distance
from fm_ext.metrics.hole import colour_error, hole_psnr, hole_ssim
from fm_ext.metrics.kernel import kernel_distance, maximum_mean_discrepancy
from fm_ext.metrics.labels import class_balance, class_entropy
from fm_ext.metrics.manifold import coverage, density, precision, recall
from fm_ext.metrics.memorisation import memorisation, nearest_distance
from fm_ext.metrics.straightness import straightness
from fm_ext.metrics.transport import sliced_wasserstein, wasserstein_distance

__all__ = [
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
]
