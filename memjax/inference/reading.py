"""The strategy of a memory model whose decoder has the positions of the text.

It keeps all memories of a text: a full chunk becomes one more entry of the decoder's cache, which
is written in place, and nothing that was computed before is computed again. The cache grows by
doubling. For scores a text is one sequence, whose chunks share the prefix of its memories.

Shapes: B sequence, W token of the window (a chunk), M chunk before it, P entry.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.inference.memory import WholeTextStrategy
from memjax.inference.strategy import Params, PrefixMemories
from memjax.models.memory import VECTORS, Memories
from memjax.models.request import next_chunks

BLOCK = 512
"""Chunks that are encoded at once."""


@dataclasses.dataclass(frozen=True)
class ReadingStrategy(WholeTextStrategy):
    """The strategy of `memjax.models.reading_model`."""

    start: int
    """The first id of a chunk."""
    chunk_length: int | None = None
    """Tokens of a chunk; None for `config.model.chunk_length`, L, up to which others are padded."""

    @property
    def window(self) -> int:
        """Return the tokens of a chunk."""
        return self.chunk_length or self.module.config.chunk_length

    @property
    def grows(self) -> bool:
        """Return True: memories are added to the cache."""
        return True

    @property
    def limit(self) -> int:
        """Return the tokens of all memories that are kept and of a chunk."""
        return (self.module.budget + 1) * self.window if self.module.memory else self.window

    def kept(self, chunks: int) -> int:
        """Return the number of prefix memories that fit before chunks of a prompt."""
        return max(0, self.module.budget - chunks)

    def encode_context(
        self,
        params: Params,
        chunks: jax.Array,
        count: jax.Array,
        prefix: PrefixMemories | None = None,
    ) -> Memories:
        """Write all chunks, some at a time, after the prefix memories."""
        batch, most, length = chunks.shape
        if not self.module.memory or most <= BLOCK:
            return super().encode_context(params, chunks, count, prefix)
        blocks = -(-most // BLOCK)
        padded = jnp.pad(chunks, ((0, 0), (0, blocks * BLOCK - most), (0, 0)))
        parts = jnp.moveaxis(padded.reshape(batch, blocks, BLOCK, length), 1, 0)
        encode = jax.lax.map(lambda part: self.apply(params, part, method="encode"), parts)
        vectors = jnp.moveaxis(encode, 0, 1).reshape(batch, blocks * BLOCK, *encode.shape[3:])
        new, before = self.module.given(vectors[:, :most], count), None
        if prefix is not None:
            before = self.module.given(jnp.asarray(prefix.vectors), jnp.asarray(prefix.count))
        return self.module.extend(before, new)

    def write_chunk(
        self,
        params: Params,
        context: Memories,
        cache: Any,
        tokens: Int[Array, "B W"],
        full: Bool[Array, " B"],
    ) -> tuple[Memories, Any, Float[Array, "B D"]]:
        """Write the chunks that are full into the memory, and read the start of the next ones.

        Returns:
          The context and the cache after it, and the state that scores the first token of the next
          chunk; of other sequences it is arbitrary.
        """

        def write(module: Any) -> tuple[Memories, Any, jax.Array]:
            after, written = module.append(context, cache, tokens, full)
            start = jnp.full(len(tokens), self.start, tokens.dtype)
            # A sequence that is within its chunk is not touched.
            hidden, read = module.decode_step(after, written, start, 0 * after.count, full)
            return after, read, hidden

        return self.apply(params, method=write)

    def grow(self, context: Memories, cache: Any) -> tuple[Memories, Any]:
        """Return the same with room for twice as many entries."""
        return self.module.grow(context, cache, max(16, self.room(context)))

    def room(self, context: Memories) -> int:
        """Return the entries that there is room for."""
        return next(iter(context.leaves.values())).shape[1] if context.leaves else 2**31

    def held(self, context: Memories) -> Memories:
        """Return what is kept of a context: the cache has the keys and values of its memories."""
        leaves = {name: leaf for name, leaf in context.leaves.items() if name != VECTORS}
        return dataclasses.replace(context, leaves=leaves)

    # Scores

    def reach(self, context: int, continuation: int) -> int:
        """Return all of them: every memory is read."""
        if self.module.memory:
            return context
        last = max(context + continuation - 1, 0) // self.window
        return max(0, context - last * self.window)

    def hidden(self, params: Params, batch: dict[str, Any]) -> jax.Array:
        """Compute states by one call of the encoder, and one of the decoder."""
        tokens = batch["inputs"]
        chunks = tokens.reshape(len(tokens), -1, self.window)
        start = jnp.full_like(chunks[..., :1], self.start)
        request = next_chunks(jnp.concatenate([start, chunks[..., :-1]], axis=-1), chunks)

        def states(module: Any) -> jax.Array:
            return module.hidden(module.fold(chunks[:, :-1]), request)

        found = self.apply(params, method=states)
        return found.reshape(len(tokens), -1, found.shape[-1])
