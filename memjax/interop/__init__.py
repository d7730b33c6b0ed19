"""Bridges to other systems' weights."""

from memjax.interop.checkpoint import FolderError, Imported, export_checkpoint, import_checkpoint
from memjax.interop.reference import StateDictError, export_state_dict, forward, import_state_dict
from memjax.interop.spec import SpecError, to_config

__all__ = [
    "FolderError",
    "Imported",
    "SpecError",
    "StateDictError",
    "export_checkpoint",
    "export_state_dict",
    "forward",
    "import_checkpoint",
    "import_state_dict",
    "to_config",
]
