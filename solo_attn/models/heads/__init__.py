"""Prediction heads, and what they have in common."""

from .interface import STRIDES, CellMasks, Head, HeadResult
from .solo import SOLOHead

__all__ = ["STRIDES", "CellMasks", "Head", "HeadResult", "SOLOHead"]
