"""Bridges to other systems' weights."""

from memjax.interop.checkpoint import FolderError, Imported, export_checkpoint, import_checkpoint
from memjax.interop.huggingface import LoadedDecoder, Pretrained, load_pretrained, open_pretrained, save_pretrained
from memjax.interop.huggingface_settings import DecoderSettings, HuggingFaceError, decoder_settings
from memjax.interop.reference import StateDictError, export_state_dict, forward, import_state_dict
from memjax.interop.spec import SpecError, to_config

__all__ = [
    "DecoderSettings",
    "FolderError",
    "HuggingFaceError",
    "Imported",
    "LoadedDecoder",
    "Pretrained",
    "SpecError",
    "StateDictError",
    "decoder_settings",
    "export_checkpoint",
    "export_state_dict",
    "forward",
    "import_checkpoint",
    "import_state_dict",
    "load_pretrained",
    "open_pretrained",
    "save_pretrained",
    "to_config",
]
