"""The adapter of memory models: it builds, checks and counts them, and answers requests.

Shapes: B row, C chunk of the row, K vector, E encoder width.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.config import Config, ConfigError, Stage
from memjax.models.adapter import ENCODER_READS, PREDICTOR_QUIRKS, Adapter, Answers
from memjax.models.elastic import DIAL, ElasticDials, check_lengths, check_vectors, draw_kept
from memjax.models.memory_model import MemoryModel
from memjax.models.reading_model import ReadingModel
from memjax.models.request import (
    EMPTY,
    SHORTEST_CHUNK,
    Asking,
    Requests,
    Variables,
    join,
    shared_entries,
)
from memjax.models.slots import FILLS
from memjax.models.uses import Use, decoder_uses, encoder_uses


def _answer(asking: Asking, variables: Variables, requests: Requests) -> Answers:
    """One call of the encoder and one of the decoder for all requests.

    Where memories are stored, the encoder is not called.
    """
    asked, encoded = join(list(requests.values()), asking.chunks)
    stored, memories, memory_valid = asking.batch.memories, None, None
    if asking.module.memory and encoded.tokens.shape[1]:
        valid = encoded.tokens != asking.ids.pad
        encode = functools.partial(asking.apply, variables, "encode", encoded.tokens, valid)
        if stored is None:
            memories = encode()
        else:
            memories = _stored(stored, encoded.has_extra, jax.eval_shape(encode))
        memory_valid = valid.any(axis=-1)
    shown = asked.inputs != asking.ids.pad
    kept = None if memories is None else draw_kept(asking, len(shown))
    states = asking.apply(variables, "joined_states", asked, memories, memory_valid, shown, kept)
    scored = asking.apply(variables, "token_losses", states, asked.labels)
    return dict(zip(requests, zip(*map(asked.split, scored), strict=True), strict=True))


def _stored(memories_BCKE: jax.Array, has_extra: bool, wanted: Any) -> jax.Array:
    """The stored memories in place of the encoder's, whose shape and dtype are `wanted`.

    Raises:
      ConfigError: they have another shape, or chunks that are not the sequence's own are to be
        encoded.
    """
    ConfigError.require(
        not has_extra,
        "copies in their published form are encoded as they stand in the row: stored memories are"
        " not of them",
    )
    memories = memories_BCKE[:, : wanted.shape[1]]
    ConfigError.require(
        memories.shape == wanted.shape,
        f"stored memories are of shape {memories_BCKE.shape}; the encoder gives {wanted.shape}",
    )
    return jnp.asarray(memories, wanted.dtype)


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    model, rows, asked = config.model, stage.batch_size, list(requests.values())
    module = _build(config, stage)
    groups, length, vectors = shared_entries(asked), model.chunk_length, model.memory_vectors
    if stage.memory:
        entries = np.concatenate([entries for entries, _ in groups])
        own = 1 + int(np.where(entries < config.chunks, entries, EMPTY).max(initial=EMPTY))
        encoded = rows * (own + sum(r.extra.shape[1] for r in asked if r.extra is not None))
        yield from encoder_uses(config, encoded)
        yield Use("bridge", "bridge", encoded * vectors)
    drawn = [
        min(stage.scored_chunks.get(name, 0) or count, count)
        for name, count in ((name, request.inputs.shape[1]) for name, request in requests.items())
    ]
    chunks, whole = sum(drawn), module.slots * vectors + length
    if not module.shares_prefixes:
        yield from decoder_uses(model.decoder, rows * chunks, whole, length)
        return
    # A position of a prefix reads those before it, one of a chunk what its chunk sees.
    positions, pairs = chunks * length, chunks * length**2 / 2
    for entries, numbers in groups if stage.memory else ():
        prefix = len(entries) * vectors
        seen = sum(drawn[number] * float(np.mean(asked[number].visible)) for number in numbers)
        positions += prefix
        among = 0 if model.decoder.blind_memories else prefix**2 / 2
        pairs += among + seen * vectors * length
    yield from decoder_uses(
        model.decoder,
        rows * chunks,
        whole,
        length,
        positions=rows * positions,
        pairs=rows * pairs,
        queries=rows * chunks * length if model.decoder.blind_memories else 0.0,
    )


def _build(config: Config, stage: Stage) -> MemoryModel:
    kind = ReadingModel if config.model.layout == "text" else MemoryModel
    return kind(config.model, config.chunks, config.data.vocab_size, stage.memory)


def _check(config: Config, stage: Stage, key: str) -> None:
    model = config.model
    _check_text(config, stage, key)
    ConfigError.require(
        model.layout == "fixed" or model.decoder.kind == "transformer",
        f"config.model.layout={model.layout!r} needs a transformer decoder: a mixer's weights"
        " belong to positions; use 'fixed'",
    )
    slots = next((quirk for quirk in FILLS if quirk in model.compat), "")
    ConfigError.require(
        not slots or model.layout == "fixed",
        f"config.model.layout={model.layout!r} has no effect with {slots} of config.model.compat,"
        " which fills every slot; use 'fixed'",
    )


def _check_text(config: Config, stage: Stage, key: str) -> None:
    """Check the settings that go with positions of the text, or with a shared prefix."""
    model, decoder = config.model, config.model.decoder
    in_text, spread = model.layout == "text", ADAPTER.dials_of(stage, key).place_range
    ConfigError.require(
        not in_text or not model.chunk_positions,
        "config.model.chunk_positions=True, expected False with config.model.layout='text': a table"
        " of positions ends with the row",
    )
    ConfigError.require(
        not in_text or decoder.causal,
        "config.model.decoder.causal=False, expected True with config.model.layout='text'",
    )
    ConfigError.require(
        not in_text or (not set(stage.compat) and not set(model.compat) - {"reference_init"}),
        f"{key}.compat or config.model.compat names quirks of published models, which have no"
        " config.model.layout='text'; leave them out, or use another layout",
    )
    share = decoder.heads // (decoder.kv_heads or decoder.heads or 1)
    ConfigError.require(
        not decoder.place_heads
        or (decoder.place_heads <= decoder.heads and decoder.place_heads % share == 0),
        f"config.model.decoder.place_heads={decoder.place_heads}, expected at most"
        f" config.model.decoder.heads={decoder.heads}, and all or none of the {share} heads that"
        " share a key",
    )
    ConfigError.require(
        not spread or (in_text and config.chunks <= spread <= LARGEST_RANGE),
        f"{key}.dials.place_range={spread}, expected 0, or with config.model.layout='text' a number"
        f" from the {config.chunks} chunks of a row to {LARGEST_RANGE}",
    )
    fewest = ADAPTER.dials_of(stage, key).fewest_vectors
    check_vectors(config, fewest, key)
    ConfigError.require(
        in_text or not fewest,
        f"{key}.dials.{DIAL}: {fewest}, expected 0 with config.model.layout={model.layout!r}. Use"
        " layout 'text', in which a decoder reads memories of fewer vectors",
    )
    check_lengths(config, stage, key)
    shortest = f"{key}.dials.{SHORTEST_CHUNK}: {stage.dials.get(SHORTEST_CHUNK)}, expected 0"
    ConfigError.require(
        in_text or not stage.dials.get(SHORTEST_CHUNK),
        f"{shortest} with config.model.layout={model.layout!r}. Use layout 'text', in which a"
        " decoder reads memories of shorter chunks",
    )
    ConfigError.require(
        not (config.data.memories and stage.memory and stage.dials.get(SHORTEST_CHUNK)),
        f"{shortest} with config.data.memories={config.data.memories!r}, which are of chunks of"
        f" {model.chunk_length} tokens. Leave config.data.memories empty: the stage then runs its"
        " encoder",
    )
    unknown = sorted(set(stage.scored_chunks) - set(stage.objectives))
    ConfigError.require(
        not unknown,
        f"{key}.scored_chunks names {', '.join(unknown)}, expected some of {key}.objectives:"
        f" {', '.join(stage.objectives)}",
    )
    ConfigError.require(
        in_text or not stage.scored_chunks,
        f"{key}.scored_chunks={dict(stage.scored_chunks)}, expected {{}} unless"
        " config.model.layout='text'",
    )


LARGEST_RANGE = 2**22


@dataclasses.dataclass(frozen=True)
class Dials(ElasticDials):
    """Settings of memory models alone."""

    place_range: int = 0
    """Places over which a row's chunks are spread at random (layout `text`); 0 is none.

    Half of the rows have gaps between their chunks, and a quarter starts at a random place, so that
    a decoder reads memories at distances that no row has (randomised positions, arXiv 2305.16843).
    """


ADAPTER = Adapter(
    name="memory_model",
    module=MemoryModel,
    summary="An encoder turns each earlier chunk of a text into a memory; a causal decoder reads"
    " those in place of its tokens.",
    capabilities=frozenset(
        ("encodes", "predicts", "copies", "reads_memories", "reads_chunks", "keeps_memories")
    ),
    build=_build,
    example=lambda config: jnp.zeros((1, config.chunks, config.model.chunk_length), jnp.int32),
    uses=_uses,
    answer=_answer,
    reads=ENCODER_READS | PREDICTOR_QUIRKS | {"layout", "overwritten_delimiter", "max_memories"},
    untied=("encoder",),
    dials=Dials,
    check=_check,
)
