"""Correspondence between parameters of memjax and tensors of the published PyTorch code.

Shapes there: linear weights [out, in], mixing weights [T, T, kernel]. Here the parameters of a
stack have a leading layer axis.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from memjax.config import Config
from memjax.interop.huggingface.weights import BLOCK
from memjax.interop.reference.spec import (
    ABBREVIATED_LAYERS,
    Spec,
    abbreviated,
    family,
    stack_kind,
)

Tensors = Mapping[str, np.ndarray]


class _Layout(NamedTuple):
    """Conversions between one parameter of one layer and the tensors of its heads."""

    ours: Callable[[Sequence[np.ndarray]], np.ndarray]
    theirs: Callable[[np.ndarray, int], Sequence[np.ndarray]]


LAYOUTS: Mapping[str, _Layout] = {
    "same": _Layout(np.concatenate, np.split),
    "linear": _Layout(lambda heads: np.concatenate(heads).T, lambda x, n: np.split(x.T, n)),
    "mixing": _Layout(
        lambda heads: np.stack([t.transpose(2, 0, 1) for t in heads]),
        lambda x, n: [t.transpose(1, 2, 0) for t in x],
    ),
    "mixing_bias": _Layout(np.stack, lambda x, n: list(x)),
}


class Entry(NamedTuple):
    """The tensors of one parameter, by layer and head."""

    names: Sequence[Sequence[str]]
    layout: str
    stacked: bool = False

    def collect(self, tensors: Tensors) -> np.ndarray:
        """Return the parameter."""
        ours = LAYOUTS[self.layout].ours
        layers = [ours([tensors[name] for name in heads]) for heads in self.names]
        return np.ascontiguousarray(np.stack(layers) if self.stacked else layers[0])

    def spread(self, parameter: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tensors."""
        theirs = LAYOUTS[self.layout].theirs
        layers = list(parameter) if self.stacked else [parameter]
        return {
            name: np.ascontiguousarray(tensor)
            for heads, layer in zip(self.names, layers, strict=True)
            for name, tensor in zip(heads, theirs(layer, len(heads)), strict=True)
        }


def entries(spec: Spec, config: Config, paths: Iterable[str]) -> dict[str, Entry]:
    """Return the tensors of every parameter of the memjax model of `spec`.

    Tensors of a stack are at PREFIX.LAYER in mixers and at PREFIX.layers.LAYER in transformers.

    Args:
      spec: the description of the published model.
      config: the same as a config.
      paths: the parameters, with slashes.
    """
    modules, found = _modules(spec), {}
    stacks = {"encoder/backbone": config.model.encoder, "backbone": config.model.decoder}
    for path in paths:
        layout = "linear" if path.endswith("kernel") else "same"
        stack, within, parameter = path.partition("/blocks/")
        if not within:
            module, _, leaf = path.rpartition("/")
            suffix = "bias" if leaf == "bias" else "weight"
            found[path] = Entry([[f"{modules[module]}.{suffix}"]], layout)
            continue
        backbone, where = stacks[stack], modules[stack]
        if backbone.kind == "mixer":
            heads, layout = _mixer_block(backbone.heads)[parameter]
        else:
            heads, where = (f"{BLOCK[parameter]}.weight",), f"{where}.layers"
        layers = range(backbone.layers)
        names = [[f"{where}.{layer}.{name}" for name in heads] for layer in layers]
        found[path] = Entry(names, layout, stacked=True)
    return found


def _modules(spec: Spec) -> dict[str, str]:
    """Return the modules of the published model by their paths here."""
    kind = family(spec)
    decoder, embed, bridge = _prefix(spec, "decoder"), "decoder_wte", "decoder_proj"
    # A whole Llama stack reads the table inside it if its inputs are ids, not embeddings.
    fed_ids = stack_kind(spec, "encoder") == "transformer" and not abbreviated(spec)
    if kind == "causal_lm":
        mixer = stack_kind(spec, "decoder") == "mixer"
        decoder, embed = ("mixerblocks", "wte") if mixer else ("model", "model.embed_tokens")
    elif kind == "autoencoder":
        bridge = "bridge_proj"
    return {
        "backbone": decoder,
        "backbone/norm": f"{decoder}.norm",
        "bridge": bridge,
        "embed": embed,
        "encoder/backbone": _prefix(spec, "encoder"),
        "encoder/backbone/norm": f"{_prefix(spec, 'encoder')}.norm",
        "encoder/down": "down",
        "encoder/embed": "encoder.embed_tokens" if fed_ids and kind != "memory_model" else "wte",
        "encoder/up": "up",
        "head": "lm_head",
        "unroll_projection": "projection",
    }


def _prefix(spec: Spec, part: str) -> str:
    """Return the prefix of the stack's tensors."""
    if stack_kind(spec, part) == "mixer":
        return f"{part}blocks"
    return f"{part}.model" if abbreviated(spec) else part


def _mixer_block(heads: int) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return the tensors of each parameter of a mixer's block, by head, and their layout."""
    convolutions = tuple(f"conv.convs.{head}" for head in range(heads)) or ("conv",)
    projections = tuple(f"conv.proj_head.{head}" for head in range(heads))
    return {
        "mix_norm/scale": (("seq_layernorm.weight",), "same"),
        "mix_norm/bias": (("seq_layernorm.bias",), "same"),
        "mix/mixing": (tuple(f"{name}.weight" for name in convolutions), "mixing"),
        "mix/mixing_bias": (tuple(f"{name}.bias" for name in convolutions), "mixing_bias"),
        "mix/in/kernel": (tuple(f"{name}.weight" for name in projections), "linear"),
        "mix/in/bias": (tuple(f"{name}.bias" for name in projections), "same"),
        "mix/out/kernel": (("conv.out_proj.weight",), "linear"),
        "mix/out/bias": (("conv.out_proj.bias",), "same"),
        "mlp_norm/scale": (("patch_layernorm.weight",), "same"),
        "mlp_norm/bias": (("patch_layernorm.bias",), "same"),
        "mlp/up/kernel": (("patch_ff.0.weight",), "linear"),
        "mlp/up/bias": (("patch_ff.0.bias",), "same"),
        "mlp/down/kernel": (("patch_ff.2.weight",), "linear"),
        "mlp/down/bias": (("patch_ff.2.bias",), "same"),
    }


def unused(spec: Spec) -> str:
    """Return a regex of tensors that published models have and this one never reads.

    A state dict may hold them or not.

    These are token tables inside stacks that read embeddings, layers and the norm that an
    abbreviated stack skips, and projections for a setting that is not in use.
    """
    skipped = [
        r"(encoder|decoder)(\.model)?\.embed_tokens\.weight",
        r"(projection|decoder_proj|bridge_proj|up|wte)\b.*",
    ]
    if abbreviated(spec):
        skipped += [
            r"(encoder|decoder)\.model\.norm\.weight",
            rf"(encoder|decoder)\.model\.layers\.(?:[{ABBREVIATED_LAYERS}-9]|[1-9]\d+)\..*",
        ]
    return "|".join(skipped)
