"""Recall of any of many memories, and next tokens by the number of memories in view.

A decoder whose positions are those of the text reads more memories than its training sequences
have. Here it reads those of windows of gapless held-out text, up to 4,096 at once, and recalls
chunks of a window by their places.

Shapes: N chunk of the held-out text, R window, P entry of a window, X decoded chunk, L token, K
vector, E its width.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from memjax.config import Evaluator
from memjax.data import evenly_spaced
from memjax.models import build, can
from memjax.models.request import PREDICT, Request, alone
from memjax.objectives import SpecialIds
from memjax.objectives.recall import RECALLS, recall_request
from memjax.objectives.requests import shift_right, token_weight
from memjax.objectives.uncertainty import ratio
from memjax.sharding import batch_shards, local_rows, on_mesh, put_batch
from memjax.training.init_state import Run
from memjax.training.loop import Evaluate
from memjax.training.optimizer import Tree

SIZES = (16, 64, 256, 1024, 4096)
"""Numbers of memories."""
GROUP = 64
"""Consecutive chunks whose next tokens are predicted with one prefix."""
TOKENS = 2**13
"""Positions of one call, about."""
FAR_PASSAGES = 3
"""Chunks from far back that the report shows."""
TENTHS = 10


class Text(NamedTuple):
    """Held-out text without gaps, and the memory of each of its chunks."""

    chunks: Int[np.ndarray, "N L"]
    memories: Float[np.ndarray, "N K E"]


class Windows(NamedTuple):
    """Windows of the text, and the chunks decoded in each."""

    entries: Int[np.ndarray, "R P"]
    """The chunks whose memories are read."""
    asked: Int[np.ndarray, "R X"]
    """The decoded chunks."""

    @property
    def places(self) -> Int[np.ndarray, "R X"]:
        """The place of each decoded chunk, counted from the window's first entry."""
        return self.asked - self.entries[:, :1]


def open_reading(run: Run, name: str, settings: Evaluator) -> Evaluate | None:
    """Return a function that evaluates how a decoder reads 16 to 4,096 memories.

    Held-out sequences are joined in their order, without chunks that have padding; all chunks are
    encoded once. Of every number of memories that this text has, windows are evenly spaced over it,
    and the decoded chunks are uniform over the places of a window, drawn from a fixed seed.

    Values are mappings from the number of memories, as text, to:

    - `recall_accuracy`, `recall_blank_accuracy`: share of tokens that are the most likely, with the
      chunk's own tokens so far shown, and without.
    - `recall_exact`, `recall_blank_exact`: share of chunks of which all tokens are. That is the
      share of greedy free-running decoding: up to the first error both read the same tokens.
    - `recall_exact_by_place`, `recall_exact_worst_tenth`: `recall_exact` of each tenth of the
      places of a window, of each place among 16 memories, and the least of these.
    - `recall_accuracy_without_address`: `recall_accuracy` with the biases of the address heads at
      zero, on the chunks of one call.
    - `next_token_nats_by_memories`: nats of next tokens. Chunks are decoded in groups of 64
      consecutive ones, the same for all numbers n; the i-th reads its n + i preceding chunks.
    - `recall_chunks`, `next_token_chunks`: decoded chunks; half as many of next tokens.

    `far_passages` is a list of a few chunks from far back, where the stage trains blank recall: see
    `_far_passages`.

    A stage that does not train recall has the numbers of next tokens alone.

    Keys with `_interval` have 95 % bootstrap intervals over chunks.

    Args:
      run: the run.
      name: the stage.
      settings: the evaluator's entry; `examples` is the number of decoded chunks, per number of
        memories.
    """
    stage = run.config.stages[name]
    module: Any = build(run.config, stage)
    recalls = not set(RECALLS).isdisjoint(stage.objectives)
    if run.config.model.layout != "text" or not can(module, "reads_memories") or not module.memory:
        return None

    def evaluate(params: Tree, found: Mapping[str, Any]) -> dict[str, Any]:
        chunks = _held_out_chunks(run, module.config.chunk_length)
        if len(chunks) < SIZES[0]:
            return {}
        text = Text(chunks, _encode(run, module, params, chunks))
        values: dict[str, dict[str, Any]] = {}
        sizes = [size for size in SIZES if size <= len(text.chunks)]
        for size in sizes if recalls else ():
            for key, value in _recall(run, module, params, text, size, settings.examples).items():
                values.setdefault(key, {})[str(size)] = value
        for size, nats, chunks in _next_tokens(run, module, params, text, sizes, settings.examples):
            values.setdefault("next_token_nats_by_memories", {})[size] = nats.value
            values.setdefault("next_token_nats_by_memories_interval", {})[size] = [
                nats.low,
                nats.high,
            ]
            values.setdefault("next_token_chunks", {})[size] = chunks
        if not stage.objectives.get("blank_recall"):
            return dict(values)
        return values | {"far_passages": _far_passages(run, module, params, text, sizes[-1])}

    return evaluate


def _held_out_chunks(run: Run, length: int) -> Int[np.ndarray, "N L"]:
    """Return held-out text, at most twice the largest number of memories."""
    rows, most = run.data.validation, 2 * SIZES[-1]
    found = [np.zeros((0, length), np.int32)]
    for row in range(len(rows)):
        chunks = rows[row].reshape(-1, length)
        found.append(chunks[(chunks != run.ids.pad).all(axis=1)])
        if sum(map(len, found)) >= most:
            break
    return np.concatenate(found)[:most]


def _encode(
    run: Run, module: Any, params: Tree, chunks: Int[np.ndarray, "N L"]
) -> Float[np.ndarray, "N K E"]:
    encode = _encoder(module, run.mesh)
    memories = [
        encode(params, _put(run, chunks[at], len(at)))[:size]
        for at, size in _calls(run, len(chunks), max(1, TOKENS // chunks.shape[1]))
    ]
    return np.concatenate(jax.device_get(memories))


def _recall(
    run: Run, module: Any, params: Tree, text: Text, size: int, examples: int
) -> dict[str, Any]:
    """Return the numbers of recall among `size` memories."""
    windows = _draw(len(text.chunks), size, examples, module.config.chunk_length)

    read = functools.partial(_scores, run, module, text=text, windows=windows, ask=_recall_requests)
    parts = list(read(params))
    bins = size // max(1, size // TENTHS)
    values: dict[str, Any] = {"recall_chunks": windows.asked.size}
    for form, name in enumerate(("recall", "recall_blank")):
        right = np.concatenate([part[form][1] for part in parts])
        tokens, exact = right.mean(axis=-1).ravel(), right.all(axis=-1).ravel()
        for key, shares in ((f"{name}_accuracy", tokens), (f"{name}_exact", exact)):
            share = ratio(shares, np.ones_like(shares))
            values |= {key: share.value, f"{key}_interval": [share.low, share.high]}
        if name == "recall":
            where = windows.places.ravel() * bins // size
            by_place = [exact[where == part].mean() for part in range(bins) if part in where]
            values["recall_exact_by_place"] = [float(share) for share in by_place]
            values["recall_exact_worst_tenth"] = float(min(by_place))
    if module.config.decoder.place_heads:
        blind = jax.tree_util.tree_map_with_path(_without_address, params)
        values["recall_accuracy_without_address"] = float(next(read(blind))[0][1].mean())
    return values


def _draw(chunks: int, size: int, examples: int, length: int) -> Windows:
    """Return windows of `size` entries, and chunks of them that are uniform over places."""
    starts = chunks - size + 1
    asked = min(size, examples, max(1, TOKENS // (len(RECALLS) * length)))
    rows = -(-min(examples, starts * size) // asked)
    generator = np.random.default_rng(size)
    orders = [generator.permutation(size) for _ in range(-(-rows * asked // size))]
    places = np.concatenate(orders)[: rows * asked].reshape(rows, asked)
    first = np.linspace(0, starts - 1, rows).round().astype(int)[:, None]
    return Windows(first + np.arange(size), first + places)


def _without_address(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    return jnp.zeros_like(leaf) if path[-1].key.endswith("_address") else leaf


def _far_passages(
    run: Run, module: Any, params: Tree, text: Text, size: int
) -> list[dict[str, Any]]:
    """Return chunks from far back, each beside its tokens as recalled from memories alone.

    They are evenly spaced over the first tenth of the places of the text's first `size` memories,
    not chosen by their errors. No token of a chunk is shown, so that the most likely tokens are
    those of free-running decoding.

    Returns:
      For each its pieces `source` and `regenerated`, which tokens are `correct`, the number of
      `memories`, and its `place` among them.
    """
    entries = np.arange(size)
    tenth = max(1, size // TENTHS)
    places = np.unique(np.linspace(0, tenth - 1, FAR_PASSAGES).astype(int))
    # A mesh may split a batch into more than the one window.
    ((at, _),) = _calls(run, 1, 1)
    rows = tuple(x[None][at] for x in (text.memories[entries], text.chunks[places], places))
    recall: Any = _recaller
    found = recall(module, run.ids, run.mesh)(params, *_put(run, rows, len(at)))
    pieces = run.data.tokenizer.pieces
    return [
        {
            "source": pieces(source),
            "regenerated": pieces(made),
            "correct": (source == made).tolist(),
            "memories": size,
            "place": int(place),
        }
        for source, made, place in zip(
            text.chunks[places], jax.device_get(found)[0], places, strict=True
        )
    ]


def _next_tokens(
    run: Run, module: Any, params: Tree, text: Text, sizes: list[int], examples: int
) -> Iterator[tuple[str, Any, int]]:
    """Yield numbers of memories, nats of next tokens as an estimate, and decoded chunks."""
    sizes = [size for size in sizes if size + GROUP <= len(text.chunks)]
    if not sizes:
        return
    groups = (len(text.chunks) - sizes[-1]) // GROUP
    chosen = np.array(evenly_spaced(groups, -(-examples // (2 * GROUP))))
    first = sizes[-1] + GROUP * chosen[:, None]
    for size in sizes:
        windows = Windows(first - size + np.arange(size + GROUP - 1), first + np.arange(GROUP))
        parts = _scores(run, module, params, text, windows, _next_token_request)
        nats = np.concatenate([part[0][0] for part in parts]).mean(axis=-1).ravel()
        yield str(size), ratio(nats, np.ones_like(nats)), nats.size


def _recall_requests(
    labels: Int[jax.Array, "B X L"], places: Int[jax.Array, "B X"], entries: int, ids: SpecialIds
) -> tuple[Request, ...]:
    return tuple(recall_request(form, labels, places, entries, ids) for form in RECALLS)


def _next_token_request(
    labels: Int[jax.Array, "B X L"], places: Int[jax.Array, "B X"], entries: int, ids: SpecialIds
) -> tuple[Request, ...]:
    order = np.arange(entries)
    return (
        Request(
            shift_right(labels, ids.bos, ids.pad),
            labels,
            token_weight(labels, ids),
            written=order,
            visible=places,
            written_at=order,
            place=places,
            task=np.full(labels.shape[1], PREDICT),
        ),
    )


def _scores(
    run: Run,
    module: Any,
    params: Tree,
    text: Text,
    windows: Windows,
    ask: Callable[..., tuple[Request, ...]],
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Yield (nats, is the most likely), [B, X, L] each, of every request, call by call."""
    scorer: Any = _scorer
    score = scorer(module, run.ids, ask, run.mesh)
    positions = windows.entries.shape[1] + 2 * windows.asked.shape[1] * text.chunks.shape[1]
    for at, size in _calls(run, len(windows.asked), max(1, TOKENS // positions)):
        part = Windows(*(x[at] for x in windows))
        rows = text.memories[part.entries], text.chunks[part.asked], part.places
        found = jax.device_get(score(params, *_put(run, rows, len(at))))
        yield [tuple(x[:size] for x in one) for one in found]


def _calls(run: Run, rows: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the numbers of the rows of each call, the first ones again behind the last.

    `batch` is rounded up to what the mesh splits; with each call goes how many of its rows count.
    """
    shards = batch_shards(run.mesh)
    batch = -(-min(batch, rows) // shards) * shards
    for start in range(0, rows, batch):
        yield np.arange(start, start + batch) % rows, min(batch, rows - start)


def _put(run: Run, rows: Any, batch: int) -> Any:
    """Put arrays [B, ...] on all devices; every process has all of them."""
    part = local_rows(run.mesh, batch)
    return put_batch(jax.tree.map(lambda x: x[part], rows), run.mesh, batch)


@functools.lru_cache(maxsize=8)
def _encoder(module: Any, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    def encode(params: Tree, chunks: Int[jax.Array, "B L"]) -> Float[jax.Array, "B K E"]:
        return module.apply({"params": params}, chunks[:, None], method="encode")[:, 0]

    return on_mesh(encode, mesh)


@functools.lru_cache(maxsize=8)
def _scorer(
    module: Any, ids: SpecialIds, ask: Callable[..., Any], mesh: jax.sharding.Mesh
) -> Callable[..., Any]:
    """Return the same function for the same arguments, so that it is compiled once per size."""

    def score(
        params: Tree,
        memories: Float[jax.Array, "B P K E"],
        labels: Int[jax.Array, "B X L"],
        places: Int[jax.Array, "B X"],
    ) -> list[tuple[jax.Array, jax.Array]]:
        joined = alone(*ask(labels, places, memories.shape[1], ids))
        states = module.apply({"params": params}, joined, memories, method="joined_states")
        scored = module.apply({"params": params}, states, joined.labels, method="token_losses")
        return list(zip(*map(joined.split, scored), strict=True))

    return on_mesh(score, mesh)


@functools.lru_cache(maxsize=8)
def _recaller(module: Any, ids: SpecialIds, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """Return a function as `_scorer` does, to the most likely tokens by blank recall."""

    def recall(
        params: Tree,
        memories: Float[jax.Array, "B P K E"],
        labels: Int[jax.Array, "B X L"],
        places: Int[jax.Array, "B X"],
    ) -> Int[jax.Array, "B X L"]:
        joined = alone(recall_request("blank_recall", labels, places, memories.shape[1], ids))
        states = module.apply({"params": params}, joined, memories, method="joined_states")
        logits = module.apply({"params": params}, states, method=lambda m, x: m.head(x))
        return jnp.argmax(logits, axis=-1)

    return on_mesh(recall, mesh)
