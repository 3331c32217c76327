"""Probability paths that wrap or replace upstream's `flow_matching.path`."""

from fm_ext.path.affine import AffineProbPath, CondOTProbPath
from fm_ext.path.masked import MaskedDiscretePathSample, MaskedPathSample, MaskedProbPath

__all__ = [
    "AffineProbPath",
    "CondOTProbPath",
    "MaskedDiscretePathSample",
    "MaskedPathSample",
    "MaskedProbPath",
]
