"""Settings of models: the stacks, the encoder, the decoder and the reconstructor."""

import dataclasses

from memjax.config.choices import READING_FEATURES


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A stack of identical blocks, [B, T, D] to [B, T, D]."""

    kind: str = "transformer"
    """A kind of mixing over positions (memjax/layers/backbone.py)."""
    width: int = 128
    """D: channels of a position, between blocks."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads or mixer heads; 0 in a mixer is flat mixing without projections (Badger 2026,
    mixers)."""
    kv_heads: int = 0
    """Key and value heads of grouped-query attention; 0 is as many as `heads`."""
    channel_kernel: int = 1
    """Width of the mixer's convolution over channels."""
    mlp: str = "swiglu"
    """Channel MLP: `swiglu` (gated), or two matrices around `gelu` or `silu`."""
    mlp_ratio: float = 4.0
    """Hidden width of the channel MLP as a multiple of the width."""
    norm: str = "rms"
    """Norm before token mixing and before the channel MLP: `rms` or `layer`."""
    final_norm: bool = True
    """Normalise the output of the last block too."""
    output_gate: bool = False
    """Multiply token mixing's output by a linear function of its input, before the projection."""
    causal: bool = True
    """True restricts a position to itself and earlier ones."""
    decay_length: float = 0.0
    """Positions over which a repeat mixer decays by its learned factor in [0.9, 1]; 0 is none."""
    head_dim: int = 0
    """Channels per attention head, an even number; 0 is width // heads."""
    qk_norm: bool = False
    """Normalise the queries and keys of every head before their rotation."""
    norm_eps: float = 0.0
    """Term added to the variance in every norm; 0 is the default: 1e-6 (rms) or 1e-5 (layer)."""
    features: tuple[str, ...] = ()
    """Parts that a transformer has (FEATURES)."""
    place_heads: int = 0
    """Heads that rotate by the place of their chunk in the text, not by tokens (layout `text`).

    A memory is at distance 0 of all tokens of its chunk (position coupling, arXiv 2405.20671). A
    learned bias of queries and of the keys of memories makes these heads read it from the start.
    """
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: tuple[float, ...] = ()
    """Frequency scaling of Llama 3.1: (factor, low, high, positions), or empty for none.

    The factor slows rotations with a period above positions / low. Rotations with a period below
    positions / high stay unchanged. Between the bounds, the factor is interpolated.
    """
    tie_embeddings: bool = False
    """Use the decoder's token table as its output head too."""

    @property
    def sigmoid_gate(self) -> bool:
        """True with `sigmoid_gate` among the features."""
        return "sigmoid_gate" in self.features

    @property
    def log_scale(self) -> bool:
        """True with `log_scale` among the features."""
        return "log_scale" in self.features

    @property
    def rotary_values(self) -> bool:
        """True with `rotary_values` among the features."""
        return "rotary_values" in self.features

    @property
    def blind_memories(self) -> bool:
        """True with `blind_memories` among the features."""
        return "blind_memories" in self.features

    @property
    def zero_outputs(self) -> bool:
        """True with `zero_outputs` among the features."""
        return "zero_outputs" in self.features

    @property
    def constant_addresses(self) -> bool:
        """True with `constant_addresses` among the features."""
        return "constant_addresses" in self.features

    @property
    def attention_bias(self) -> bool:
        """True with `attention_bias` among the features."""
        return "attention_bias" in self.features

    @property
    def attention_head_dim(self) -> int:
        """E: channels per attention head."""
        return self.head_dim or self.width // max(self.heads, 1)

    @property
    def attention_dim(self) -> int:
        """Channels of all attention heads together."""
        return self.heads * self.attention_head_dim

    @property
    def epsilon(self) -> float:
        """Term added to the variance in every norm, defaults resolved."""
        return self.norm_eps or {"rms": 1e-6, "layer": 1e-5}[self.norm]

    @property
    def hidden_width(self) -> int:
        """F: channels between the matrices of the channel MLP."""
        return int(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class Model:
    """Settings of the encoder, the decoder that reads its memories, and the reconstructor.

    The reconstructor is the decoder that trains the encoder as an autoencoder.
    """

    chunk_length: int = 32
    """L: tokens per chunk."""
    memory_vectors: int = 1
    """K: vectors per chunk."""
    readout: str = "last"
    """Position of the memory in the encoder's output.

    `memory_tokens` appends K learned tokens, whose outputs are the memory.
    """
    bottleneck: int = 0
    """Width of the memory between two linear maps, down and up; 0 is none."""
    expansion: str = "unroll"
    """Map from one vector to L positions in the autoencoder."""
    layout: str = "fixed"
    """Positions in the decoder: a chunk's tokens stand after all slots (fixed) or the filled ones
    (variable), or memories and tokens stand where they do in the text (text).

    `text` has no last position: a decoder reads as many memories as `max_memories`.
    """
    max_memories: int = 65_536
    """Memories that a decoder of layout `text` keeps of a text, at most."""
    token_positions: bool = True
    """Learned position of the token in its chunk, in the decoder."""
    chunk_positions: bool = True
    """Learned position of the chunk in its row, in the decoder, on tokens and on slots."""
    task_embedding: bool = True
    """Learned vector that marks the decoder's task: to predict, to retain or to recall."""
    memory_injection: str = "token"
    """Place of an oracle's memory: a first token, beside every embedding, or added to each."""
    noise: float = 0.0
    """q: uniform noise in [-q, q) on the bottleneck in training.

    Memories of such an encoder tolerate quantisation.
    """
    bptt_chunks: int = 0
    """Chunks after which recurrent memory detaches its state; 0 is never.

    The gradient of a loss reaches at most as many chunks, its own included: 1 trains no memory.
    """
    compat: tuple[str, ...] = ()
    """Quirks of the published code to reproduce (MODEL_QUIRKS)."""
    dtype: str = "float32"
    """Type of matrix products.

    Trained parameters, the residual stream, norms, softmax and losses are always float32.
    """
    attention: str = "auto"
    """Implementation: `xla`, `splash` (a TPU kernel that never stores the scores), or `auto`.

    `auto` uses splash on a TPU for 256 positions or more and heads up to 256 wide.
    """
    remat: str = "none"
    """Values that a block keeps for the backward pass: all (`none`), or those of a policy.

    A policy is a name in jax.checkpoint_policies.
    """
    encoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))
    """Stack over the tokens of one chunk; by default a mixer."""
    decoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(output_gate=True))
    """Stack over memories and tokens; by default a transformer with an output gate."""
    reconstructor: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))
    """Stack from one chunk's memory to its tokens; by default a mixer."""


def reading(model: Model) -> Model:
    """Return a model whose decoder reads any number of memories by their places in the text."""
    decoder = dataclasses.replace(
        model.decoder,
        output_gate=True,
        qk_norm=True,
        place_heads=model.decoder.heads // 2,
        features=READING_FEATURES,
    )
    return dataclasses.replace(model, layout="text", chunk_positions=False, decoder=decoder)
