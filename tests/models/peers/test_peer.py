"""The common tests of the field's memories.

They are numbered: T1 memory is the only path between chunks, T2 no input reads a later one, nor
does a retrieval (T2r), T3 padding writes nothing, T4 padding before a text changes nothing, T5 a
fold is successive writes, T7 the ledger counts the state, T9 sequences are independent, T10 without
the weights that read it a memory is of no use, T13 what has left a bank is gone (that of the others
is in test_peer_limits.py). A property is shown by what stays equal, bit by bit, when a part of the
input changes: a choice that looks ahead has no gradient. One compiled program per peer shows all.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import path_aware_map

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.memory import VALID
from memjax.models.peers import PEERS
from memjax.models.request import PREDICT, Request

BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 4, 24
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones(TOKENS.shape, bool)
NUMBER = np.arange(CHUNKS)
ATTENTION = "backbone/blocks/mix/out/"
"""Where a memory is rows before the inputs or in every layer, the decoder's attention reads it."""
READERS = {
    **dict.fromkeys(("mac", "cmt", "mbc"), r"aggregator_\d+/out/"),
    # No weight stands between a cell's state and its inputs: its output is all that can be off.
    **dict.fromkeys(("rmc", "lem", "lstm", "gru"), "out/"),
    # The layers of a peer that makes its own.
    **dict.fromkeys(("lamemo", "transformerxl"), r"blocks_\d+/out/"),
    "memorizing": r"blocks_\d+/mix/out/",
    "calm": "sample/",
    "dmn": "episode/",
    "hcam": r"readers_\d+/out/",
    "larimar": "(past|added)/",
    "lcm": "concept/",
    "longmem": r"side_\d+/mix/out/",
    "memformer": r"readers_\d+/out/",
    # Where attention goes decides when to halt, besides what is read.
    "memo_inference": "(out|policy)/",
    # The first table is of keys alone.
    "memn2n": "(tables_[1-9]|ages)",
    "memorynetworks": r"answers_\d+/",
    "memoria": r"blocks_\d+/reader/out/",
    "pmi": "recall(_pages)?/value/",
}
"""The parameters by which other peers read their memory (T10)."""


def module_of(name, model=MODEL, chunks=CHUNKS, **dials):
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=chunks * LENGTH), model=model)
    dials = {**PEERS[name].tiny, **dials}
    return build(config, Stage(family=name, dials=dials, objectives={"next_token": 1.0}))


def everything(module):
    """States after every chunk by a fold and by successive writes, and all decoded chunks."""

    def run(model, tokens, valid, inputs, shown):
        prefixes = model.written(tokens, valid, NUMBER)
        request = Request(
            inputs,
            inputs,
            jnp.ones(inputs.shape),
            written=NUMBER,
            visible=NUMBER,
            written_at=NUMBER,
            place=NUMBER,
            task=np.full(CHUNKS, PREDICT),
        )
        hidden = model.hidden(prefixes, request, shown)
        counts = [jnp.full(BATCH, count) for count in range(CHUNKS + 1)]
        folded = [model.at(prefixes, count).leaves for count in counts]
        return hidden, folded

    def program(variables, tokens, valid, inputs, shown):
        def write(state, chunk):
            state = module.apply(variables, state, *chunk, method="write")
            return state, state.leaves

        hidden, folded = module.apply(variables, tokens, valid, inputs, shown, method=run)
        empty = module.apply(variables, BATCH, method="empty")
        # A scan, so that a write is compiled once.
        chunks = (jnp.moveaxis(x[:, :-1], 1, 0) for x in (tokens, valid))
        _, after = jax.lax.scan(write, empty, tuple(chunks))
        written = [jax.tree.map(lambda x, at=at: x[at], after) for at in range(CHUNKS - 1)]
        return hidden, folded, [empty.leaves, *written]

    return program


@pytest.fixture(params=PEERS, scope="module")
def peer(request, draw, quick):
    module = module_of(request.param)
    variables, program = draw(module, TOKENS), quick(everything(module))

    reader = re.compile("params/" + READERS.get(request.param, ATTENTION))
    blind = path_aware_map(
        lambda path, leaf: np.zeros_like(leaf) if reader.match("/".join(path)) else leaf, variables
    )

    def show(tokens=TOKENS, valid=REAL, inputs=TOKENS, shown=REAL, reads=True):
        return program(variables if reads else blind, tokens, valid, inputs, shown)

    return module, show, show()


def changed(array, *at):
    other = array.copy()
    other[at] = np.where(other[at] == 7, 8, 7)
    return other


def entries(module, leaves, count):
    """The part of a state that is read: of a bank, its first entries."""
    if module.KIND != "bank":
        return leaves
    return {name: leaf[:, :count] for name, leaf in leaves.items()}


def test_memory_is_the_only_path_and_comes_from_before(peer):
    """T1: chunk 1 reaches what is decoded behind it, and nothing else."""
    module, show, (hidden, folded, _) = peer
    other, states, _ = show(tokens=changed(TOKENS, slice(None), 1))
    assert np.array_equal(hidden[:, :2], other[:, :2])
    assert not np.array_equal(hidden[:, 2], other[:, 2])
    for count in range(2):
        one, two = (entries(module, x[count], count) for x in (folded, states))
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_no_input_reads_a_later_one(peer):
    """T2 and T2r: neither itself nor by what is retrieved for it."""
    _, show, (hidden, _, _) = peer
    other, _, _ = show(inputs=changed(TOKENS, slice(None), slice(None), 2))
    assert np.array_equal(hidden[:, :, :2], other[:, :, :2])
    assert not np.array_equal(hidden[:, :, 2], other[:, :, 2])


def test_padding_writes_nothing(peer):
    """T3: of a chunk of padding alone no token is read, and no state changes."""
    module, show, _ = peer
    valid = REAL.copy()
    valid[:, 1] = False
    hidden, folded, written = show(valid=valid)
    other, _, _ = show(tokens=changed(TOKENS, slice(None), 1), valid=valid)
    assert np.array_equal(hidden, other)
    for states in (folded, written):
        if module.KIND == "bank":
            assert states[2][VALID][:, :2].tolist() == [[True, False]] * BATCH
        else:
            jax.tree.map(np.testing.assert_array_equal, states[1], states[2])


def test_padding_before_a_text_changes_nothing(peer):
    """T4."""
    _, show, _ = peer
    shown = REAL.copy()
    shown[..., -1] = False
    right, _, _ = show(shown=shown)
    left, _, _ = show(inputs=np.roll(TOKENS, 1, axis=2), shown=shown[..., ::-1])
    np.testing.assert_allclose(left[..., 1:, :], right[..., :-1, :], atol=1e-5)


def test_a_fold_is_successive_writes(peer):
    """T5."""
    module, _, (_, folded, written) = peer
    for count, (one, other) in enumerate(zip(folded[:-1], written, strict=True)):
        one, other = entries(module, one, count), entries(module, other, count)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, other)


def test_the_ledger_counts_the_state(peer):
    """T7."""
    module, _, (_, _, written) = peer
    leaves = {name: leaf for name, leaf in written[-1].items() if name != VALID}
    found = {name: leaf[0].size for name, leaf in leaves.items()}
    assert {name: numbers for name, (numbers, _) in module.ledger(CHUNKS - 1).items()} == found
    for name, (_, bits) in module.ledger(CHUNKS - 1).items():
        assert 0 < bits <= 8 * leaves[name].dtype.itemsize


def test_sequences_are_independent(peer):
    """T9."""
    _, show, (hidden, folded, _) = peer
    other, states, _ = show(tokens=changed(TOKENS, 1), inputs=changed(TOKENS, 1))
    assert np.array_equal(hidden[0], other[0])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), folded, states)


def test_without_weights_that_read_it_a_memory_is_of_no_use(peer):
    """T10: what is decoded is then that of the control, which reads the state before any text."""
    _, show, _ = peer
    hidden, folded, _ = show(reads=False)
    control, empty, _ = show(valid=~REAL, reads=False)
    np.testing.assert_allclose(hidden, control, atol=1e-6)
    # Not for want of a memory.
    assert not all(np.array_equal(leaf, empty[2][name]) for name, leaf in folded[2].items())


def test_what_has_left_a_bank_is_gone(peer):
    """T13: a state has room for two chunks; of three, nothing of the first one is in it."""
    module, show, (_, folded, _) = peer
    if module.KIND == "bank":
        _, states, _ = show(tokens=changed(TOKENS, slice(None), 0))
        for name, leaf in folded[3].items():
            assert leaf.shape[1] == 2
            assert np.array_equal(leaf, states[3][name])
            assert np.array_equal(leaf[:, 0], folded[2][name][:, 1])
        # Before the third one came, it was.
        assert any(not np.array_equal(x[:, 0], states[2][n][:, 0]) for n, x in folded[2].items())
