"""Inpainting with a model that was never trained for it: one solver, ten published methods."""

from fm_ext.solver.inpainting.solver import InpaintingSolver

__all__ = ["InpaintingSolver"]
