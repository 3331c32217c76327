"""Solvers beside upstream's `ODESolver`."""

from fm_ext.solver.exponential import ExponentialSolver

__all__ = ["ExponentialSolver"]
