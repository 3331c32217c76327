"""Probability paths that wrap or replace those of `flow_matching.path`."""

from fm_ext.path.affine import AffineProbPath, CondOTProbPath
from fm_ext.path.bridge import BridgeProbPath
from fm_ext.path.coupled import CoupledProbPath
from fm_ext.path.masked import MaskedProbPath
from fm_ext.path.wrapper import PathWrapper, ProbPath

__all__ = [
    "AffineProbPath",
    "BridgeProbPath",
    "CondOTProbPath",
    "CoupledProbPath",
    "MaskedProbPath",
    "PathWrapper",
    "ProbPath",
]
