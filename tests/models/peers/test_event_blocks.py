"""EM-LLM: blocks of raw keys and values that begin with a surprise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.peers.event_blocks import BORDER, EventDials, EventMemory, event_starts
from memjax.models.peers.raw_blocks import Dials, InfLLM
from memjax.models.peers.raw_kv import KEY, VALUE, are_there

RNG = np.random.default_rng(8)
BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 6, 24
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)
NATS = jnp.asarray(RNG.uniform(0, 5, (3, 16)), jnp.float32)
ALL = np.ones((3, 16), bool)
SMALL = {"representatives": 1, "most": 2, "piece": 2}


def make(**dials):
    return EventMemory(
        MODEL,
        CHUNKS,
        VOCABULARY,
        dials=EventDials(**({"block": 3, "least": 2, **SMALL} | dials)),
    )


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


@pytest.fixture(scope="module")
def starts(quick):
    def run(nats=NATS, valid=ALL, **dials):
        return quick(lambda x, seen: event_starts(x, seen, EventDials(**dials)))(nats, valid)

    return run


def test_events_are_as_long_as_they_may_be_or_as_short(starts):
    """B.23 (5): without any surprise, and with nothing but surprises."""
    at = np.arange(16)
    assert np.array_equal(starts(gamma=1e9, block=5), [at % 5 == 0] * 3)
    assert np.array_equal(starts(gamma=-1e9, block=5, least=2), [at % 2 == 0] * 3)


def test_a_surprise_begins_an_event(starts):
    """Above the mean and so many deviations of the tokens before, as far back as the window."""
    nats = jnp.asarray([[9.0, 1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 1.6, 1.0, 1.0]])
    valid = np.ones((1, 10), bool)
    found = starts(nats, valid, block=10, least=1, gamma=2.0, window=4)
    # The first token is scored by nothing. Of 1, 2 and 1 the mean is 1.33 and the deviation 0.47; 2
    # comes behind one surprise alone, with no deviation, and 1.6 behind 1, 3, 1 and 1.
    assert np.flatnonzero(found[0]).tolist() == [0, 2, 4]
    nearer = starts(nats, valid, block=10, least=1, gamma=2.0, window=2)
    assert np.flatnonzero(nearer[0]).tolist() == [0, 2, 4, 7]


def test_borders_depend_on_tokens_before(starts):
    """B.23 (9) and T2."""
    late = jnp.arange(16) >= jnp.arange(16)[:, None]
    other = starts((NATS[:, None] + 3 * late).reshape(48, 16), np.tile(ALL, (16, 1)), gamma=0.5)
    same = other.reshape(3, 16, 16) == starts(gamma=0.5)[:, None]
    assert (same | late).all()
    assert not same.all()


def test_padding_is_in_no_event(starts):
    """Events of a text that begins later are the same, so much later."""
    valid = ALL & (np.arange(16) >= 3)
    found = starts(jnp.roll(NATS, 3, axis=1), valid, gamma=0.5)
    assert not found[:, :3].any()
    assert np.array_equal(found[:, 3:], starts(gamma=0.5)[:, :13])


@pytest.mark.slow
def test_without_surprise_events_are_blocks(variables, quick):
    """A.8: InfLLM with blocks of the greatest size."""
    fixed = InfLLM(MODEL, CHUNKS, VOCABULARY, dials=Dials(block=3, **SMALL))
    one, other = (
        quick(lambda v, m=module: m.apply(v, TOKENS))(variables)
        for module in (make(gamma=1e9), fixed)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.fixture(scope="module")
def written(variables, quick):
    """Entries, and the events of their tokens by the definition."""
    module = make(gamma=0.0, least=1)

    def run(model):
        x = model.embed_tokens(TOKENS[:, 0], REAL)
        states, local = model.backbone.read_far(x, REAL)
        logits = jax.nn.log_softmax(model.head(states))
        nats = -jnp.take_along_axis(logits[:, :-1], TOKENS[:, 0, 1:, None], axis=2)[..., 0]
        begins = event_starts(jnp.pad(nats, ((0, 0), (1, 0))), REAL, module.dials)
        return model.encode(TOKENS[:, 0], REAL), local, begins

    return quick(lambda v: module.apply(v, method=run))(variables)


@pytest.mark.slow
def test_rows_stay_in_their_events(written):
    """Each event of a layer holds its own tokens, by their scores, and borders are between."""
    entry, local, begins = written
    assert np.array_equal(entry[BORDER], begins[:, 1:])
    assert begins[:, 1:].any()
    for row in range(BATCH):
        number = np.cumsum(begins[row])
        for layer in range(2):
            received = local.received[layer, row]
            order = sorted(range(LENGTH), key=lambda at: (number[at], -received[at]))
            assert np.array_equal(entry[KEY][row, layer], local.key[layer, row, order])


@pytest.mark.slow
def test_a_capped_chunk_has_no_border_to_store(variables, quick):
    """A row alone needs no mark, so that it costs what its keys and values do."""
    module = make(tokens=1)
    write = quick(lambda v: module.apply(v, TOKENS, method="fold"))
    leaves = write(variables).leaves
    assert BORDER not in leaves
    assert are_there(leaves[KEY], leaves[VALUE]).all()
    assert module.ledger(8) == dict.fromkeys((KEY, VALUE), (8 * 2 * 16, 32))
    assert make().ledger(8)[BORDER] == (8 * 5, 1)
