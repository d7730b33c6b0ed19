"""Trained stages as portable folders of safetensors, a config and a model card: read by `memjax.load`, written by `writing.export`."""

from memjax.exporting.manifest import ExportError, Manifest
from memjax.exporting.reading import Exported, is_export, read_export, read_params

__all__ = ["ExportError", "Exported", "Manifest", "is_export", "read_export", "read_params"]
