"""Fact probes: small tasks with one right answer, answered by a reader of frozen memories.

A text of C chunks is encoded chunk by chunk. The reader, a small transformer, reads the memories
and a question and predicts the answer, without a token of the text. The same reader trained on
constant memories is the control.

Tasks: `token` (which token stands at place i of the text), `where` (which chunk holds a phrase),
`order` (which of two phrases comes first), `update` (the last of several values of a key).

Shapes: N text, C chunk, L token of a chunk, Q token of a question, A possible answer, K vector of a
chunk, E its width, D width of the reader.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from memjax.config import Backbone as BackboneConfig
from memjax.evaluation.instruments.retrieval import Encode
from memjax.inference.texts import TextsError, over_batches
from memjax.layers import Backbone, Embed, Linear
from memjax.objectives.uncertainty import Estimate, mean
from memjax.progress import track

PHRASE = 3
"""Tokens of a phrase."""
KEYS = 4
"""Keys of an `update` text."""
BATCH = 256
"""Chunks, and questions, per batch."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Texts, each with a question and its answer."""

    chunks: Int[np.ndarray, "N C L"]
    question: Int[np.ndarray, "N Q"]
    answer: Int[np.ndarray, " N"]
    answers: int
    """A: answers are 0 to A - 1."""


def token_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """Return questions for the token at a position; the question is the position, as an id."""
    count, _, length = chunks.shape
    place = np.random.default_rng(seed).integers(0, chunks.shape[1] * length, count)
    answer = chunks.reshape(count, -1)[np.arange(count), place]
    return Questions(chunks, place[:, None], answer, vocabulary)


def where_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """Return questions for the chunk of a phrase; the question is the phrase.

    Texts with the phrase in several chunks are left out.
    """
    generator = np.random.default_rng(seed)
    chunk, phrase = _phrase(chunks, generator)
    kept = _holds(chunks, phrase).sum(axis=1) == 1
    return Questions(chunks[kept], phrase[kept], chunk[kept], chunks.shape[1])


def order_questions(chunks: Int[np.ndarray, "N C L"], vocabulary: int, seed: int = 0) -> Questions:
    """Return questions for the order of two phrases of different chunks: 0 or 1.

    The answer is the index of the first one. Texts with one of them in several chunks are left out.
    """
    TextsError.require(
        chunks.shape[1] >= 2, "task='order': texts of one chunk, expected two chunks or more"
    )
    generator = np.random.default_rng(seed)
    first, one = _phrase(chunks, generator)
    second, other = _phrase(chunks, generator)
    kept = (
        (first != second)
        & (_holds(chunks, one).sum(axis=1) == 1)
        & (_holds(chunks, other).sum(axis=1) == 1)
    )
    question = np.concatenate([one, other], axis=1)
    return Questions(chunks[kept], question[kept], (second < first).astype(np.int64)[kept], 2)


def update_questions(
    chunks: Int[np.ndarray, "N C L"],
    vocabulary: int,
    seed: int = 0,
    content: Int[np.ndarray, " U"] | None = None,
) -> Questions:
    """Return questions for the last value of a key; the question is the key.

    The texts are pairs of a key and a value, in the shape of `chunks`. `content` holds the tokens
    of keys and values, ascending; by default those of `chunks`.
    """
    count, number, length = chunks.shape
    generator = np.random.default_rng(seed)
    content = np.unique(chunks) if content is None else content
    TextsError.require(
        len(content) >= 2 * KEYS,
        f"task='update': texts of {len(content)} different tokens, expected at least {2 * KEYS}",
    )
    keys, values = content[:KEYS], content[KEYS:]
    pairs = number * length // 2
    text = np.stack(
        [generator.choice(keys, (count, pairs)), generator.choice(values, (count, pairs))], axis=2
    )
    key = text[np.arange(count), generator.integers(0, pairs, count), 0]
    last = pairs - 1 - np.argmax((text[:, :, 0] == key[:, None])[:, ::-1], axis=1)
    answer = text[np.arange(count), last, 1]
    # An odd text ends with a key.
    odd = ((0, 0), (0, number * length % 2))
    flat = np.pad(text.reshape(count, -1), odd, constant_values=keys[0])
    return Questions(flat.reshape(chunks.shape).astype(np.int32), key[:, None], answer, vocabulary)


TASKS: Mapping[str, Callable[[np.ndarray, int, int], Questions]] = {
    "token": token_questions,
    "where": where_questions,
    "order": order_questions,
    "update": update_questions,
}


def _phrase(chunks: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a chunk of each text, and a phrase of it."""
    count, number, length = chunks.shape
    chunk = generator.integers(0, number, count)
    start = generator.integers(0, length - PHRASE + 1, count)
    return chunk, chunks[
        np.arange(count)[:, None], chunk[:, None], start[:, None] + np.arange(PHRASE)
    ]


def _holds(chunks: np.ndarray, phrase: np.ndarray) -> np.ndarray:
    """Return whether each chunk contains the text's phrase, [N, C]."""
    windows = np.lib.stride_tricks.sliding_window_view(chunks, PHRASE, axis=2)
    return (windows == phrase[:, None, None]).all(axis=-1).any(axis=-1)


class Reader(nn.Module):
    """A causal transformer over [memories; question] with an answer at its last position.

    Attributes:
      width: D.
      answers: A.
      vocab_size: number of the questions' ids.
      shape: (C * K, Q).
    """

    width: int
    answers: int
    vocab_size: int
    shape: tuple[int, int]

    @nn.compact
    def __call__(
        self, memories: Float[Array, "B CK E"], question: Int[Array, "B Q"]
    ) -> Float[Array, "B A"]:
        """Return logits of the answers."""
        vectors, asked = self.shape
        normal = nn.initializers.normal(1.0)
        place = self.param("place", normal, (vectors + asked, self.width))
        x = jnp.concatenate(
            [
                Linear(self.width)(memories),
                Embed(self.vocab_size, self.width, jnp.float32, normal)(question),
            ],
            axis=1,
        )
        config = BackboneConfig(
            kind="transformer", width=self.width, layers=2, heads=4, mlp_ratio=2.0, output_gate=True
        )
        h = Backbone(config, vectors + asked, jnp.dtype("float32"))(x + place)
        return Linear(self.answers)(h[:, -1]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class FactProbe:
    """Result of one task."""

    task: str
    accuracy: Estimate
    """Share of held-out questions that the reader answers correctly."""
    constant: Estimate
    """Accuracy of a reader of constant memories, which questions and frequencies alone explain."""
    gain: Estimate
    """Difference of the two accuracies, paired over texts."""
    texts: int


@dataclasses.dataclass(frozen=True)
class Training:
    """Training settings of a reader."""

    steps: int = 500
    rows: int = 256
    learning_rate: float = 2e-3
    width: int = 128
    seed: int = 0


def fact_probes(
    encode: Encode,
    train: Int[np.ndarray, "N C L"],
    held_out: Int[np.ndarray, "M C L"],
    vocabulary: int,
    tasks: Sequence[str] = tuple(TASKS),
    training: Training = Training(),
) -> tuple[FactProbe, ...]:
    """Train two readers per task, on memories and on constants, and test both on held-out texts.

    Args:
      encode: the function of any encoder.
      train: texts as chunks.
      held_out: other texts as chunks.
      vocabulary: V.
      tasks: names in TASKS.
      training: training settings of the readers.

    Raises:
      TextsError: a task is unknown, or no text has a question for it.
    """
    # Keys of both parts are the same: a reader answers only for keys that it was trained on.
    update = functools.partial(update_questions, content=np.unique(train))
    makers = {**TASKS, "update": update}

    def probed(task: str) -> FactProbe:
        TextsError.require_one_of("task", task, TASKS)
        asked = [
            makers[task](chunks, vocabulary, training.seed + i)
            for i, chunks in enumerate((train, held_out))
        ]
        TextsError.require(
            all(len(one.answer) for one in asked),
            f"task={task!r}: no text has a question with one answer. Pass more or longer texts",
        )
        memories = [_memories(encode, one.chunks) for one in asked]
        answered = _answering(asked, memories[0].shape[1], vocabulary, training)
        right, zero = map(answered, (memories, [np.zeros_like(x) for x in memories]))
        return FactProbe(task, mean(right), mean(zero), mean(right - zero), len(right))

    return tuple(map(probed, track(tasks, "fact_probes")))


def _memories(encode: Encode, chunks: np.ndarray) -> Float[np.ndarray, "N CK E"]:
    flat = chunks.reshape(-1, chunks.shape[-1])
    memories = over_batches(encode, flat, BATCH, "encode", np.float32)
    return memories.reshape(len(chunks), -1, memories.shape[-1])


def _answering(
    questions: Sequence[Questions], vectors: int, vocabulary: int, how: Training
) -> Callable[[Sequence[np.ndarray]], Float[np.ndarray, " M"]]:
    """Return a function of the memories of both parts, compiled once for all that it is given.

    It trains a reader on the first questions, and returns 1 where that answers the second ones
    correctly.
    """
    train, asked = questions
    ids = max(vocabulary, train.chunks[0].size)
    reader = Reader(how.width, train.answers, ids, (vectors, train.question.shape[1]))
    fit = _training(reader, len(train.answer), how)

    @jax.jit
    def answer(params: Any, m: jax.Array, q: jax.Array) -> jax.Array:
        logits: Any = reader.apply({"params": params}, m, q)
        return jnp.argmax(logits, axis=-1)

    def answered(memories: Sequence[np.ndarray]) -> Float[np.ndarray, " M"]:
        known, given = memories
        # Unit scale for every encoder, so that one learning rate suits all.
        center, scale = known.mean(axis=(0, 1)), known.std() or 1.0
        known, given = ((x - center) / scale for x in (known, given))
        params = fit(*map(jnp.asarray, (known, train.question, train.answer)))
        numbers = np.arange(len(asked.answer))
        said = over_batches(
            lambda i: answer(params, given[i], asked.question[i]), numbers, BATCH, "answers"
        )
        return (said == asked.answer).astype(np.float64)

    return answered


def _training(reader: Reader, count: int, how: Training) -> Callable[..., Any]:
    """Return a function of `count` memories, questions and answers.

    It returns the reader's parameters after all steps, which are one jitted call.
    """
    # After the warmup at least one step of decay remains, which optax demands.
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, how.learning_rate, max(how.steps // 10, 1), max(how.steps, 2)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)
    )
    rows = min(how.rows, count)

    @jax.jit
    def train(*data: jax.Array) -> Any:
        key = jax.random.key(how.seed)
        params = reader.init(key, data[0][:1], data[1][:1])["params"]

        def step(carry: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            chosen = jax.random.randint(jax.random.fold_in(key, number), (rows,), 0, count)
            m, q, a = (x[chosen] for x in data)

            def loss(params: Any) -> jax.Array:
                logits: Any = reader.apply({"params": params}, m, q)
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, a))

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(how.steps))[0][0]

    return train
