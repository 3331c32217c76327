"""Solvers: upstream's `ODESolver` without its traps, inpainting, the exponential step, MeanFlow's jumps, time grids."""

from fm_ext.solver.exponential import ExponentialSolver
from fm_ext.solver.grids import cosine_grid, karras_grid, shifted_grid, uniform_grid
from fm_ext.solver.inpainting import InpaintingSolver
from fm_ext.solver.likelihood import bits_per_dimension
from fm_ext.solver.mean_flow import MeanFlowSolver
from fm_ext.solver.ode import ODESolver
from fm_ext.solver.reflow import simulate_pairs

__all__ = [
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
]
