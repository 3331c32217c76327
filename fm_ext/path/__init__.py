"""Probability paths that wrap or replace upstream's `flow_matching.path`."""

from fm_ext.path.masked import MaskedDiscretePathSample, MaskedPathSample, MaskedProbPath

__all__ = ["MaskedDiscretePathSample", "MaskedPathSample", "MaskedProbPath"]
