"""A model as one file for other runtimes: ONNX, and programs of torch.export."""

from .files import export_model, traced
from .program import FixedProgram, Found
from .runtime import ExportedModel, load_exported

__all__ = [
    "ExportedModel",
    "FixedProgram",
    "Found",
    "export_model",
    "load_exported",
    "traced",
]
