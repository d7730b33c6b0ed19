"""Weights of the published PyTorch code, in and out."""

from memjax.interop.reference.weights import export_state_dict, forward, import_state_dict

__all__ = ["export_state_dict", "forward", "import_state_dict"]
