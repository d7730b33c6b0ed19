"""Which tensors of the published PyTorch code a parameter of memjax is made of, in both directions.

Shapes there: linear weights [out, in], mixing weights [T, T, kernel]. Here a stack's parameters have a leading layer axis.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from memjax.config import Backbone, Config, Stage
from memjax.interop.spec import ABBREVIATED_LAYERS, Spec, abbreviated, bottleneck, family, stack_kind

Tensors = Mapping[str, np.ndarray]


class _Layout(NamedTuple):
    """One parameter of one layer as the tensors of its heads, and back."""

    ours: Callable[[Sequence[np.ndarray]], np.ndarray]
    theirs: Callable[[np.ndarray, int], list[np.ndarray]]


LAYOUTS: Mapping[str, _Layout] = {
    "same": _Layout(lambda heads: heads[0], lambda x, n: [x]),
    "linear": _Layout(lambda heads: heads[0].T, lambda x, n: [x.T]),
    "mixing": _Layout(
        lambda heads: np.stack([t.transpose(2, 0, 1) for t in heads]), lambda x, n: [t.transpose(1, 2, 0) for t in x]
    ),
    "mixing_bias": _Layout(lambda heads: np.stack(heads), lambda x, n: list(x)),
    "heads": _Layout(lambda heads: np.concatenate(heads).T, lambda x, n: np.split(x.T, n)),
    "heads_bias": _Layout(lambda heads: np.concatenate(heads), lambda x, n: np.split(x, n)),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: its path here, and its tensors there, by layer and head."""

    path: str
    names: tuple[tuple[str, ...], ...]
    layout: str
    stacked: bool = False

    def collect(self, tensors: Tensors) -> np.ndarray:
        """The parameter."""
        layers = [LAYOUTS[self.layout].ours([tensors[name] for name in heads]) for heads in self.names]
        return np.ascontiguousarray(np.stack(layers) if self.stacked else layers[0])

    def spread(self, parameter: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors."""
        layers = list(parameter) if self.stacked else [parameter]
        return {
            name: np.ascontiguousarray(tensor)
            for heads, layer in zip(self.names, layers, strict=True)
            for name, tensor in zip(heads, LAYOUTS[self.layout].theirs(layer, len(heads)), strict=True)
        }


def entries(spec: Spec, config: Config) -> list[Entry]:
    """Every parameter of the memjax model of `spec`."""
    kind, model, stage = family(spec), config.model, next(iter(config.stages.values()))
    found: list[Entry] = []
    if kind == "causal_lm":
        mixer = stack_kind(spec, "decoder") == "mixer"
        found += _stack("backbone", "mixerblocks" if mixer else "model", model.decoder)
        found += [_one("embed/embedding", "wte.weight" if mixer else "model.embed_tokens.weight", "same")]
    elif kind == "autoencoder":
        found += _encoder(spec, model.encoder)
        found += _stack("backbone", _prefix(spec, "decoder"), model.reconstructor)
        if model.expansion == "unroll":
            found += _linear("unroll_projection", "projection")
        if model.encoder.width != model.reconstructor.width:
            found += _linear("bridge", "bridge_proj")
    else:
        found += _decoding(spec, config, stage)
    return [*found, _one("head/kernel", "lm_head.weight", "linear")]


def _decoding(spec: Spec, config: Config, stage: Stage) -> list[Entry]:
    """What reads memories: memory model, recurrent memory and oracle."""
    kind, model = family(spec), config.model
    found = _stack("backbone", _prefix(spec, "decoder"), model.decoder)
    found += [_one("embed/embedding", "decoder_wte.weight", "same")]
    if kind == "recurrent_memory" or not stage.memory:
        return found
    found += _encoder(spec, model.encoder)
    bridged = model.combine == "add" if kind == "oracle" else False
    if bridged or (model.encoder.width != model.decoder.width and not _beside(spec)):
        found += _linear("bridge", "decoder_proj")
    return found


def _beside(spec: Spec) -> bool:
    return family(spec) == "oracle" and spec.get("combine") == "embedding"


def _encoder(spec: Spec, backbone: Backbone) -> list[Entry]:
    # A whole Llama stack that is fed ids reads the table inside it; one that is fed embeddings does not.
    fed_ids = stack_kind(spec, "encoder") == "transformer" and family(spec) != "memory_model" and not abbreviated(spec)
    found = [_one("encoder/embed/embedding", "encoder.embed_tokens.weight" if fed_ids else "wte.weight", "same")]
    found += _stack("encoder/backbone", _prefix(spec, "encoder"), backbone)
    if bottleneck(spec):
        found += _linear("encoder/down", "down")
        if not _beside(spec):
            found += _linear("encoder/up", "up")
    return found


def _prefix(spec: Spec, part: str) -> str:
    """Where the stack's tensors are."""
    if stack_kind(spec, part) == "mixer":
        return f"{part}blocks"
    return f"{part}.model" if abbreviated(spec) else part


def _one(path: str, name: str, layout: str) -> Entry:
    return Entry(path, ((name,),), layout)


def _linear(path: str, name: str) -> list[Entry]:
    return [_one(f"{path}/kernel", f"{name}.weight", "linear"), _one(f"{path}/bias", f"{name}.bias", "same")]


def _stack(path: str, prefix: str, backbone: Backbone) -> list[Entry]:
    """A stack's parameters; a mixer's tensors are at PREFIX.LAYER, a transformer's at PREFIX.layers.LAYER."""
    mixer = backbone.kind == "mixer"
    table = _mixer_block(backbone.heads) if mixer else _TRANSFORMER_BLOCK
    where = prefix if mixer else f"{prefix}.layers"
    found = [
        Entry(
            f"{path}/blocks/{ours}",
            tuple(tuple(f"{where}.{layer}.{name}" for name in names) for layer in range(backbone.layers)),
            layout,
            stacked=True,
        )
        for ours, names, layout in table
    ]
    return [*found, _one(f"{path}/norm/scale", f"{prefix}.norm.weight", "same")] if backbone.final_norm else found


_TRANSFORMER_BLOCK = [
    ("mix_norm/scale", ("input_layernorm.weight",), "same"),
    ("mix/query/kernel", ("self_attn.q_proj.weight",), "linear"),
    ("mix/key/kernel", ("self_attn.k_proj.weight",), "linear"),
    ("mix/value/kernel", ("self_attn.v_proj.weight",), "linear"),
    ("mix/out/kernel", ("self_attn.o_proj.weight",), "linear"),
    ("mlp_norm/scale", ("post_attention_layernorm.weight",), "same"),
    ("mlp/gate/kernel", ("mlp.gate_proj.weight",), "linear"),
    ("mlp/up/kernel", ("mlp.up_proj.weight",), "linear"),
    ("mlp/down/kernel", ("mlp.down_proj.weight",), "linear"),
]


def _mixer_block(heads: int) -> list[tuple[str, tuple[str, ...], str]]:
    convolutions = tuple(f"conv.convs.{head}" for head in range(heads)) or ("conv",)
    projections = tuple(f"conv.proj_head.{head}" for head in range(heads))
    table = [
        ("mix_norm/scale", ("seq_layernorm.weight",), "same"),
        ("mix_norm/bias", ("seq_layernorm.bias",), "same"),
        ("mix/mixing", tuple(f"{name}.weight" for name in convolutions), "mixing"),
        ("mix/mixing_bias", tuple(f"{name}.bias" for name in convolutions), "mixing_bias"),
        ("mlp_norm/scale", ("patch_layernorm.weight",), "same"),
        ("mlp_norm/bias", ("patch_layernorm.bias",), "same"),
        ("mlp/up/kernel", ("patch_ff.0.weight",), "linear"),
        ("mlp/up/bias", ("patch_ff.0.bias",), "same"),
        ("mlp/down/kernel", ("patch_ff.2.weight",), "linear"),
        ("mlp/down/bias", ("patch_ff.2.bias",), "same"),
    ]
    if heads:
        table += [
            ("mix/in/kernel", tuple(f"{name}.weight" for name in projections), "heads"),
            ("mix/in/bias", tuple(f"{name}.bias" for name in projections), "heads_bias"),
            ("mix/out/kernel", ("conv.out_proj.weight",), "linear"),
            ("mix/out/bias", ("conv.out_proj.bias",), "same"),
        ]
    return table


def unused(spec: Spec) -> str:
    """Regex of tensors that published models have and this one never reads; a state dict may hold them or not.

    Token tables inside stacks that are fed embeddings; layers and the norm that an abbreviated stack skips; projections made for a
    setting that is not in use.
    """
    skipped = [r"(encoder|decoder)(\.model)?\.embed_tokens\.weight", r"(projection|decoder_proj|bridge_proj|up|wte)\b.*"]
    if abbreviated(spec):
        skipped += [r"(encoder|decoder)\.model\.norm\.weight", rf"(encoder|decoder)\.model\.layers\.{_LATER_LAYERS}\..*"]
    return "|".join(skipped)


_LATER_LAYERS = rf"(?:[{ABBREVIATED_LAYERS}-9]|[1-9]\d+)"
