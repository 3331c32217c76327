"""Couplings, which decide the source of each target."""

from fm_ext.coupling.coupling import Coupling, IndependentCoupling
from fm_ext.coupling.gathered import GatheredCoupling
from fm_ext.coupling.greedy import GreedyTransport
from fm_ext.coupling.noisy import NoisySource
from fm_ext.coupling.optimal_transport import OptimalTransport
from fm_ext.coupling.semidiscrete import SemidiscreteTransport
from fm_ext.coupling.sinkhorn import SinkhornTransport

__all__ = [
    "Coupling",
    "GatheredCoupling",
    "GreedyTransport",
    "IndependentCoupling",
    "NoisySource",
    "OptimalTransport",
    "SemidiscreteTransport",
    "SinkhornTransport",
]
