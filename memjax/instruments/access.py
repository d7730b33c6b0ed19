"""Whether single facts can be read from memories: small tasks with one right answer, asked of a reader trained on frozen memories.

A text of C chunks is encoded chunk by chunk. The reader, a small transformer, is given the memories and a question and names the answer; it
never sees a token of the text. The same reader trained on constant memories is the zero.

Tasks: `token` (which token stands at place i of the text), `where` (which chunk holds a phrase), `order` (which of two phrases comes first),
`update` (the last value that a key was given among several).

Shapes: N text, C chunk, L token of a chunk, Q token of a question, A possible answer, K vector of a chunk, E its width, D width of the reader.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from memjax.config import Backbone as BackboneConfig
from memjax.instruments.texts import TextsError, batches, trimmed
from memjax.instruments.uncertainty import Estimate, mean
from memjax.layers import Backbone, Embed, Linear

PHRASE = 3
"""Tokens of a phrase."""
KEYS = 4
"""Keys of an `update` text."""
Encode = Callable[[np.ndarray], np.ndarray | jax.Array]
"""Tokens [B, L] to memories [B, K, E]."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Texts with a question each."""

    chunks: Int[np.ndarray, "N C L"]
    question: Int[np.ndarray, "N Q"]
    answer: Int[np.ndarray, " N"]
    answers: int
    """A: answers are 0 to A - 1."""


def token_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """Which token stands at a place: the question is the place, written as an id."""
    count, _, length = chunks.shape
    place = np.random.default_rng(seed).integers(0, chunks.shape[1] * length, count)
    answer = chunks.reshape(count, -1)[np.arange(count), place]
    return Questions(chunks, place[:, None], answer, vocabulary)


def where_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """Which chunk holds a phrase: the question is the phrase. Texts where it stands in several chunks are left out."""
    generator = np.random.default_rng(seed)
    chunk, phrase = _phrase(chunks, generator)
    elsewhere = _holds(chunks, phrase).sum(axis=1) > 1
    kept = ~elsewhere
    return Questions(chunks[kept], phrase[kept], chunk[kept], chunks.shape[1])


def order_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """Which of two phrases of different chunks comes first (0 or 1). Texts where one stands in several chunks are left out."""
    if chunks.shape[1] < 2:
        raise TextsError("task='order' needs texts of two chunks or more")
    generator = np.random.default_rng(seed)
    first, one = _phrase(chunks, generator)
    second, other = _phrase(chunks, generator)
    kept = (first != second) & (_holds(chunks, one).sum(axis=1) == 1) & (_holds(chunks, other).sum(axis=1) == 1)
    question = np.concatenate([one, other], axis=1)
    return Questions(chunks[kept], question[kept], (second < first).astype(np.int64)[kept], 2)


def update_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """The last value of a key: texts of pairs of a key and a value, drawn from the tokens that `chunks` hold; the question is the key.

    Of `chunks` only the shape and the tokens are used.
    """
    count, number, length = chunks.shape
    generator = np.random.default_rng(seed)
    content = np.unique(chunks)
    if len(content) < 2 * KEYS:
        raise TextsError(f"task='update' needs texts of {2 * KEYS} different tokens, and these have {len(content)}")
    keys, values = content[:KEYS], content[KEYS:]
    pairs = number * length // 2
    text = np.stack([generator.choice(keys, (count, pairs)), generator.choice(values, (count, pairs))], axis=2)
    key = text[np.arange(count), generator.integers(0, pairs, count), 0]
    last = pairs - 1 - np.argmax((text[:, :, 0] == key[:, None])[:, ::-1], axis=1)
    answer = text[np.arange(count), last, 1]
    flat = text.reshape(count, -1)
    flat = np.concatenate([flat, np.repeat(keys[:1], count)[:, None]], axis=1) if number * length % 2 else flat
    return Questions(flat.reshape(chunks.shape).astype(np.int32), key[:, None], answer, vocabulary)


TASKS: Mapping[str, Callable[[np.ndarray, int, int], Questions]] = {
    "token": token_questions,
    "where": where_questions,
    "order": order_questions,
    "update": update_questions,
}


def _phrase(chunks: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A chunk of each text, and a phrase of it."""
    count, number, length = chunks.shape
    chunk = generator.integers(0, number, count)
    start = generator.integers(0, length - PHRASE + 1, count)
    return chunk, chunks[np.arange(count)[:, None], chunk[:, None], start[:, None] + np.arange(PHRASE)]


def _holds(chunks: np.ndarray, phrase: np.ndarray) -> np.ndarray:
    """[N, C], whether a chunk holds the text's phrase."""
    windows = np.lib.stride_tricks.sliding_window_view(chunks, PHRASE, axis=2)
    return (windows == phrase[:, None, None]).all(axis=-1).any(axis=-1)


class Reader(nn.Module):
    """A causal transformer over [memories; question], whose last state is read.

    Attributes:
      width: D.
      answers: A.
      vocabulary: of the questions' ids.
      shape: (C * K, Q).
    """

    width: int
    answers: int
    vocabulary: int
    shape: tuple[int, int]

    @nn.compact
    def __call__(self, memories: Float[Array, "B CK E"], question: Int[Array, "B Q"]) -> Float[Array, "B A"]:
        """Logits of the answers."""
        vectors, asked = self.shape
        normal = nn.initializers.normal(1.0)
        place = self.param("place", normal, (vectors + asked, self.width))
        x = jnp.concatenate(
            [Linear(self.width)(memories), Embed(self.vocabulary, self.width, jnp.float32, normal)(question)], axis=1
        )
        config = BackboneConfig(kind="transformer", width=self.width, layers=2, heads=4, mlp_ratio=2.0, output_gate=True)
        positions = jnp.broadcast_to(jnp.arange(vectors + asked), x.shape[:2])
        h = Backbone(config, vectors + asked, jnp.dtype("float32"))(x + place, positions, jnp.ones(x.shape[:2], bool))
        return Linear(self.answers)(h[:, -1]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Access:
    """One task."""

    task: str
    accuracy: Estimate
    """Share of held-out questions answered rightly."""
    constant: Estimate
    """The same of a reader trained and asked with constant memories: what questions and frequencies alone give."""
    gain: Estimate
    """Their difference, paired over texts."""
    texts: int


@dataclasses.dataclass(frozen=True)
class Training:
    """How a reader is trained."""

    steps: int = 500
    rows: int = 256
    learning_rate: float = 2e-3
    width: int = 128
    seed: int = 0


def access(
    encode: Encode,
    train: Int[np.ndarray, "N C L"],
    held_out: Int[np.ndarray, "M C L"],
    vocabulary: int,
    tasks: Sequence[str] = tuple(TASKS),
    training: Training = Training(),
    batch: int = 256,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Access, ...]:
    """Trains two readers a task, of the memories and of constants, and asks both about held-out texts.

    Args:
      encode: of any encoder.
      train: texts as chunks.
      held_out: the same, not trained on.
      vocabulary: V.
      tasks: of TASKS.
      training: how readers are trained.
      batch: chunks encoded, and questions asked, at a time.
      advance: called when a task is done.

    Raises:
      TextsError: a task is unknown, or no text has a question of it.
    """
    found = []
    for task in tasks:
        if task not in TASKS:
            raise TextsError(f"task={task!r}: there are {', '.join(TASKS)}")
        asked = [TASKS[task](chunks, vocabulary, training.seed + i) for i, chunks in enumerate((train, held_out))]
        if not all(len(one.answer) for one in asked):
            raise TextsError(f"task={task!r}: no text has a question with one answer; give more or longer texts")
        memories = [_memories(encode, one.chunks, batch) for one in asked]
        right = _answered(asked[0], memories[0], asked[1], memories[1], vocabulary, training, batch)
        zero = _answered(
            asked[0], np.zeros_like(memories[0]), asked[1], np.zeros_like(memories[1]), vocabulary, training, batch
        )
        found.append(Access(task, mean(right), mean(zero), mean(right - zero), len(right)))
        advance()
    return tuple(found)


def _memories(encode: Encode, chunks: np.ndarray, batch: int) -> Float[np.ndarray, "N CK E"]:
    flat = chunks.reshape(-1, chunks.shape[-1])
    memories = trimmed((np.asarray(encode(one), np.float32) for one in batches(flat, batch)), len(flat))
    return memories.reshape(len(chunks), -1, memories.shape[-1])


def _answered(
    train: Questions,
    memories: np.ndarray,
    asked: Questions,
    their_memories: np.ndarray,
    vocabulary: int,
    how: Training,
    batch: int,
) -> Float[np.ndarray, " M"]:
    """1 where a reader trained on the one answers the other rightly."""
    ids = max(vocabulary, train.chunks[0].size)
    reader = Reader(how.width, train.answers, ids, (memories.shape[1], train.question.shape[1]))
    # Of unit size whatever the encoder's, so that one rate suits all.
    center, scale = memories.mean(axis=(0, 1)), memories.std() or 1.0
    memories, their_memories = ((x - center) / scale for x in (memories, their_memories))
    params = _train(reader, memories, train.question, train.answer, how)
    answer = jax.jit(lambda params, m, q: jnp.argmax(reader.apply({"params": params}, m, q), axis=-1))  # type: ignore[arg-type]
    rows = np.arange(len(asked.answer))
    said = trimmed((answer(params, their_memories[i], asked.question[i]) for i in batches(rows, batch)), len(rows))
    return (said == asked.answer).astype(np.float64)


def _train(reader: Reader, memories: np.ndarray, question: np.ndarray, answer: np.ndarray, how: Training) -> Any:
    """The reader's parameters after all steps, which are one call."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, how.learning_rate, max(how.steps // 10, 1), how.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    rows = min(how.rows, len(answer))

    @jax.jit
    def train(data: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        key = jax.random.key(how.seed)
        params = reader.init(key, data[0][:1], data[1][:1])["params"]

        def step(carry: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            chosen = jax.random.randint(jax.random.fold_in(key, number), (rows,), 0, len(answer))
            m, q, a = (x[chosen] for x in data)

            def loss(params: Any) -> jax.Array:
                logits: Any = reader.apply({"params": params}, m, q)
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, a))

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(how.steps))[0][0]

    return train((jnp.asarray(memories), jnp.asarray(question), jnp.asarray(answer)))
