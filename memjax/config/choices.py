"""The words that settings take, and the usual rules over parameters' paths."""

from collections.abc import Mapping
from typing import Any

REPEATS = ("row_repeat", "column_repeat", "combined_repeat", "diagonal_repeat", "mixed_repeat")
"""Mixers whose matrix over positions repeats one or two vectors, so that a step needs O(1) state.

See layers/repeat.py.
"""
NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu", "silu")
# Read-out, expansion and layout: how a memory leaves the encoder and enters a decoder (models/).
READOUTS = ("last", "second_to_last", "memory_tokens")
EXPANSIONS = ("unroll", "repeat", "unroll_each")
"""Maps from the K vectors of a memory to the L positions of a chunk:

- `unroll`: windows of half the width slide over all vectors as one, by a number per position, so
  that a short chunk reads little more than the first half of several vectors;
- `repeat`: each vector stands at its share of the positions;
- `unroll_each`: every position reads a window of every vector; of one vector this is `unroll`.
"""
LAYOUTS = ("fixed", "variable", "text")
READING_FEATURES = (
    "sigmoid_gate",
    "log_scale",
    "rotary_values",
    "blind_memories",
    "zero_outputs",
    "constant_addresses",
)
"""Features of the reading decoder."""
FEATURES = (*READING_FEATURES, "attention_bias")
"""Parts of a transformer, each off unless a stack names it:

- `sigmoid_gate`: the output gate passes through 2 * sigmoid, which begins near 1;
- `log_scale`: scores are multiplied by the logarithm of the number of keys and a learned factor per
  head, so that attention that is sharp among few keys stays sharp among many (scalable softmax,
  arXiv 2501.19399);
- `rotary_values`: values turn by their position in the text, and the mixed result turns back by the
  query's, so that the map from a memory to a token depends on where in its chunk the token stands;
- `blind_memories`: each memory attends to itself alone (Block-attention, arXiv 2409.15355);
- `zero_outputs`: the last matrices of attention and MLP begin at zero, and a block as the identity;
- `constant_addresses`: queries of tokens and keys of memories in place heads are their learned
  biases alone, so that these heads find a memory by its place, whatever it holds;
- `attention_bias`: a learned vector is added to queries, keys and values (Qwen2).
"""
MEMORY_INJECTIONS = ("token", "embedding", "add")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
MODEL_QUIRKS = (
    "slots_of_ones",
    "slots_of_zeros",
    "attended_padding",
    "overwritten_write_slot",
    "dense_mixing_gradient",
    "one_sided_noise",
    "residual_noise",
    "reference_init",
)
"""Quirks of the published models, which memjax reproduces only where a config names them:

- `slots_of_ones`, `slots_of_zeros`: a memory model has C slots, not C - 1; a slot without a memory
  holds a constant and is attended;
- `attended_padding`: padding is read like text, in encoders and decoders;
- `overwritten_write_slot`: recurrent memory writes over each chunk's last token and starts from a
  constant, ones in a transformer and zeros in a mixer;
- `dense_mixing_gradient`: the dead triangle of mixing weights has a gradient, which counts in
  clipping;
- `one_sided_noise`: bottleneck noise is drawn from [0, 2q), not [-q, q);
- `residual_noise`: noise enters before the bottleneck and the clean memory is added after it (as
  one sentence describes it);
- `reference_init`: first weights as PyTorch and Hugging Face draw them (models/initialize.py).
"""
FUNCTION_QUIRKS = frozenset(MODEL_QUIRKS) - {
    "reference_init",
    "dense_mixing_gradient",
    "one_sided_noise",
}
"""Quirks under which the same weights compute another function."""
STAGE_QUIRKS = ("unscored_first_tokens", "chunk_means", "overwritten_delimiter", "untrained_layers")
"""Quirks of the published training, which memjax reproduces only where a config names them:

- `unscored_first_tokens`: no token is inserted, and no chunk's first token is a target;
- `chunk_means`: a loss is the mean over chunks of the chunks' own means, over C even where chunks
  have no target;
- `overwritten_delimiter`: three delimiters stand in place of a copy's first three tokens, and its
  first two are no target;
- `untrained_layers`: weights of a shallower stack fill the first layers of a deeper one; the other
  layers and a final norm that the source lacks stay as initialised.
"""
PACKINGS: Mapping[str, tuple[str, str]] = {
    "packed": ("packed", "right"),
    "per_document": ("per_document", "right"),
    "per_document_left": ("per_document", "left"),
    "first_n": ("first_n", "right"),
    "first_n_left": ("first_n", "left"),
    "full_length_only": ("full_length_only", "right"),
}
"""Ways to cut documents into rows of N tokens, each with the side on which a short row is padded:

- `packed`: documents are joined, separated by the end-of-document id, and cut;
- `per_document`: each document is cut by itself, and its last row is padded;
- `first_n`: each document gives one row of its first N tokens, padded (as published);
- `full_length_only`: as `first_n`, for documents of N tokens or more.
"""
FULL_PACKINGS = ("packed", "full_length_only")
"""Packings whose rows have no padding."""
HUGGINGFACE = "hf:"
"""The prefix of a model or a data set of Hugging Face."""
LR_SCHEDULES = ("cosine", "linear", "constant")
ATTENTIONS = ("auto", "xla", "splash")
OPTIMIZERS = ("adamw", "muon")

Rules = tuple[tuple[str, Any], ...]
"""Ordered (path regex, value) pairs: the first that matches a parameter's path decides."""
FREEZING: Mapping[str, Rules] = {
    "trainable": ((".*", True),),
    "frozen_all": (("^encoder/", False), (".*", True)),
    "frozen_blocks": (("^encoder/backbone/", False), (".*", True)),
    "encoder_and_bridge": (("^(encoder|bridge)/", True), (".*", False)),
    "bridge_only": (("^bridge/", True), (".*", False)),
}
"""Rules for `trainable`, in the order of what they train.

- `trainable`: all parameters;
- `frozen_all`: all except the encoder;
- `frozen_blocks`: all except the encoder's blocks, with a new token table in front of them, as in
  the published code (`init_part="encoder/backbone"` leaves the table behind);
- `encoder_and_bridge`: the encoder and the map of memories to the decoder;
- `bridge_only`: the map of memories to the decoder.
"""

SHARDING: Rules = (
    (r"/mix/(query|key|value|gate|in)/kernel$", ("fsdp", "tensor")),
    (r"/mix/out/kernel$", ("tensor", "fsdp")),
    (r"/mix/mixing$", ("tensor", None, None, None)),
    (r"/mlp/(gate|up)/kernel$", ("fsdp", "tensor")),
    (r"/mlp/down/kernel$", ("tensor", "fsdp")),
    (r"/lora_in$", ("fsdp", "tensor")),
    (r"/lora_out$", ("tensor", "fsdp")),
    (r"embed/embedding$", ("tensor", "fsdp")),
    (r"head/kernel$", ("fsdp", "tensor")),
    (r"(bridge|down|up|unroll_projection)/kernel$", ("fsdp", None)),
    (".*", ()),
)
"""Mesh axes of the last dimensions of every parameter path.

Products of two matrices are split so that the values between them need no exchange. Biases, norms
and learned vectors are replicated.
"""
