"""Text that is generated is the argmax of the module's own logits on that text, in every family,
past every border, in any company."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.inference import GenerationError, Generator, Sampling
from memjax.inference.programs import compiled
from memjax.models import Autoencoder, CausalLM, MemoryModel, RecurrentMemory
from memjax.models.reading_model import ReadingModel
from memjax.models.slots import earlier_chunks
from memjax.objectives import SpecialIds
from memjax.objectives.requests import shift_right

IDS = SpecialIds()
LENGTH, CHUNKS, VOCABULARY, ROW = 4, 4, 40, 12
SMALL = {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 1.0}
TRANSFORMER = Backbone(output_gate=True, **SMALL)
MIXER = Backbone(kind="mixer", **SMALL)
REPEAT = Backbone(kind="combined_repeat", decay_length=2.0, **SMALL)
ENCODER = Backbone(kind="mixer", **SMALL)
NARROW = Backbone(kind="mixer", **SMALL | {"width": 8})
BASE = Model(chunk_length=LENGTH, encoder=ENCODER, decoder=TRANSFORMER)
PLAIN = {"token_positions": False, "chunk_positions": False, "task_embedding": False}


def model(**changes):
    return dataclasses.replace(BASE, **changes)


def memory_model(memory=True, **changes):
    return MemoryModel(model(**changes), CHUNKS, VOCABULARY, memory)


def causal(**changes):
    return CausalLM(model(**changes), ROW, VOCABULARY)


def recurrent(**changes):
    return RecurrentMemory(model(**changes), CHUNKS, VOCABULARY)


def reading(memory=True, features=("rotary_values", "log_scale"), **changes):
    stack = dataclasses.replace(TRANSFORMER, place_heads=1, features=features)
    config = model(layout="text", chunk_positions=False, decoder=stack, **changes)
    return ReadingModel(config, CHUNKS, VOCABULARY, memory)


MODULES = {
    "reading": reading(),
    "reading, blind, 2 narrow vectors": reading(
        features=("blind_memories", "log_scale"),
        memory_vectors=2,
        readout="memory_tokens",
        encoder=NARROW,
    ),
    "reading, none": reading(memory=False),
    "memory, fixed": memory_model(),
    "memory, variable, 2 narrow vectors": memory_model(
        layout="variable",
        memory_vectors=2,
        readout="memory_tokens",
        encoder=NARROW,
        decoder=dataclasses.replace(TRANSFORMER, kv_heads=1),
    ),
    "memory, attended slots": memory_model(compat=("slots_of_ones", "attended_padding"), **PLAIN),
    "memory, none": memory_model(memory=False),
    "memory, repeat mixer": memory_model(decoder=REPEAT),
    "causal, transformer": causal(),
    "causal, mixer": causal(decoder=MIXER),
    "causal, diagonal_repeat": causal(
        decoder=dataclasses.replace(REPEAT, kind="diagonal_repeat", decay_length=0.0)
    ),
    "causal, combined_repeat": causal(decoder=REPEAT),
    "recurrent, transformer": recurrent(memory_vectors=2),
    "recurrent, mixer": recurrent(decoder=MIXER),
}
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(6, VOCABULARY, n) for n in (3, 0, 4, 9, 21)]
"""Within a chunk, nothing, at a border, within the third chunk, and longer than a row."""
NEW = 15


def example(module):
    shape = (1, ROW) if isinstance(module, CausalLM) else (1, CHUNKS, LENGTH)
    return jnp.zeros(shape, jnp.int32)


@pytest.fixture(scope="module")
def generator(draw):
    """Generators of modules with drawn weights, each of which is compiled once."""
    made = {}

    def make(name, **kwargs):
        if name not in made:
            made[name] = draw(MODULES[name], example(MODULES[name]))["params"]
        return Generator(MODULES[name], made[name], IDS, **kwargs)

    return make


def teacher(quick, generator, texts):
    """For each text [N] the logits [N, V] of every token, from the module itself: i has read what
    the model keeps of tokens 0..i-1.

    One call of the module for all texts.
    """
    module, params = generator.module, generator.params
    forward, rows, at = {
        CausalLM: _rows,
        RecurrentMemory: _chunks,
        MemoryModel: _windows,
        ReadingModel: _texts,
    }[type(module)](generator, texts)
    flat = quick(forward)(params, rows).reshape(-1, VOCABULARY)[np.concatenate(at)]
    return np.split(flat, np.cumsum([len(text) for text in texts])[:-1])


def _rows(generator, texts):
    """A row of ROW tokens for every token; when it is full its newer half begins the next one."""
    half, rows, at, published = ROW // 2, [], [], "unscored_first_tokens" in generator.compat
    for text in texts:
        shown = [i if i < ROW else half + (i - ROW) % half for i in range(len(text))]
        at.append(ROW * (len(rows) + np.arange(len(text))) + np.array(shown) - published)
        for i, n in enumerate(shown):
            row = np.zeros(ROW + 1, np.int32)
            row[:n] = text[i - n : i]
            rows.append(row[:ROW] if published else [IDS.bos, *row[: ROW - 1]])
    return lambda p, x: generator.module.apply({"params": p}, x), np.array(rows), at


def _chunks(generator, texts):
    """All chunks of a text in turn: position t of the family's own output scores token t."""
    length = LENGTH * -(-max(map(len, texts)) // LENGTH)
    rows = np.stack([np.pad(text, (0, length - len(text))) for text in texts]).reshape(
        len(texts), -1, LENGTH
    )
    at = [length * row + np.arange(len(text)) for row, text in enumerate(texts)]
    return lambda p, x: generator.module.apply({"params": p}, x), rows, at


def _texts(generator, texts):
    """All chunks of a text, each with the memories of all before it."""
    module, (_, chunks, at) = generator.module, _chunks(generator, texts)
    count = chunks.shape[1]

    def decode(p, x):
        memories = module.apply({"params": p}, x, method="encode") if module.memory else None
        shown, rest = shift_right(x, IDS.bos, -1), (earlier_chunks(count), jnp.arange(count))
        return module.apply({"params": p}, shown, memories, *rest, method="decode")

    return decode, chunks, at


def _windows(generator, texts):
    """For every chunk the row that ends with it, or that begins the text."""
    module, rows, at = generator.module, [], []
    for text in texts:
        padded, places = (
            np.pad(text, (0, -len(text) % LENGTH + CHUNKS * LENGTH)).reshape(-1, LENGTH),
            [],
        )
        for chunk in range(-(-len(text) // LENGTH)):
            first = max(0, chunk - CHUNKS + 1)
            places.append(LENGTH * (len(rows) * CHUNKS + chunk - first) + np.arange(LENGTH))
            rows.append(padded[first : first + CHUNKS])
        at.append(np.concatenate(places)[: len(text)])

    def decode(p, x):
        memories = (
            module.apply({"params": p}, x[:, :-1], method="encode") if module.memory else None
        )
        return module.apply({"params": p}, shift_right(x, IDS.bos, -1), memories, method="decode")

    return decode, np.stack(rows), at


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory, fixed", "causal, transformer"])
def test_tokens_are_the_same_with_64_bits(generator, name):
    found, sampling = generator(name), Sampling(temperature=1.0, top_k=9)
    expected = found.generate(PROMPTS, 6, sampling)
    compiled.cache_clear()
    with jax.enable_x64(True):
        assert all(map(np.array_equal, found.generate(PROMPTS, 6, sampling), expected))
    compiled.cache_clear()


@pytest.mark.quick_cases(
    "recurrent, mixer",
    slow=(
        "reading",
        "reading, blind, 2 narrow vectors",
        "reading, none",
        "memory, fixed",
        "memory, variable, 2 narrow vectors",
        "memory, attended slots",
        "memory, repeat mixer",
        "causal, transformer",
        "causal, mixer",
        "causal, combined_repeat",
    ),
)
@pytest.mark.parametrize("name", MODULES)
def test_greedy_text_is_the_argmax_of_the_modules_own_logits(quick, generator, name):
    """Token for token, from prompts that end anywhere, past two borders of chunks or rows and past
    the last slot."""
    found = generator(name)
    state, key, made, logits = found.prefill(PROMPTS), jax.random.key(0), [], []
    for _ in range(NEW):
        logits.append(np.asarray(state.logits))
        tokens, state = found.step(state, key)
        made.append(np.asarray(tokens))
    assert logits[0].dtype == np.float32
    # Where a cache grew, once more for its new size.
    programs = compiled(found.strategy, None)
    assert programs.append._cache_size() == 1 + programs.grow._cache_size(), (
        "compiled once, wherever the rows stand"
    )
    texts = [
        np.concatenate([prompt, row]).astype(np.int32)
        for prompt, row in zip(PROMPTS, np.transpose(made), strict=True)
    ]
    for row, (prompt, text, expected) in enumerate(
        zip(PROMPTS, texts, teacher(quick, found, texts), strict=True)
    ):
        expected = expected[len(prompt) :]
        np.testing.assert_allclose([step[row] for step in logits], expected, atol=2e-5, rtol=2e-5)
        assert np.array_equal(text[len(prompt) :], np.argmax(expected, axis=-1))
    # Weights are drawn so that what was read matters: rows differ, but for two that read nothing.
    apart = np.abs(logits[0][:, None] - logits[0]).max(-1) > 1e-3
    alike = name == "reading, none"
    assert apart.sum() == len(PROMPTS) * (len(PROMPTS) - 1) - 2 * alike


@pytest.mark.quick_cases("memory, fixed", "reading")
@pytest.mark.parametrize(
    "name",
    [
        "memory, fixed",
        "reading",
        "causal, transformer",
        "causal, combined_repeat",
        "recurrent, transformer",
    ],
)
def test_a_step_writes_where_the_state_before_it_lay(generator, name):
    found = generator(name)
    state = found.prefill(PROMPTS)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(part)) for part in (state.cache, state.context)]
    if name == "memory, fixed":
        program = compiled(found.strategy, None).append.lower(
            found.params, state, np.zeros(len(PROMPTS), np.int32)
        )
        assert program.compile().memory_analysis().alias_size_in_bytes >= sum(sizes) > 0
    lay = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.cache)]
    _, after = found.step(state, jax.random.key(0))
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after.cache)] == lay and sizes[0]
    assert all(x.is_deleted() for x in jax.tree.leaves(state.cache))


def test_rows_without_a_start_token(quick, draw):
    """As published: position t says token t + 1, so that nothing stands for an empty prompt."""
    name = "causal, transformer"
    found = Generator(
        MODULES[name],
        draw(MODULES[name], example(MODULES[name]))["params"],
        IDS,
        ("unscored_first_tokens",),
    )
    prompt = PROMPTS[0]
    (made,) = found.generate([prompt], ROW - len(prompt))
    text = np.concatenate([prompt, made])
    expected = teacher(quick, found, [text])[0][len(prompt) :]
    assert np.array_equal(made, np.argmax(expected, axis=-1))
    with pytest.raises(
        GenerationError, match="prompt 0 is empty, and this model was trained without a start token"
    ):
        found.generate([[]], 1)


# Rows of a batch


def test_rows_are_the_same_together_and_alone(generator):
    found, sampling = generator("memory, fixed"), Sampling(temperature=1.0, top_p=0.95)
    together = found.generate(PROMPTS, NEW, sampling, seed=3)
    for row in (0, 3):
        (alone,) = found.generate([PROMPTS[row]], NEW, sampling, seed=3, first_row=row)
        assert np.array_equal(alone, together[row])
    assert [len(row) for row in together] == [NEW] * len(PROMPTS)
    other = found.generate(PROMPTS, NEW, sampling, seed=4)
    assert not any(map(np.array_equal, other, together))
    same = found.generate([PROMPTS[0]] * len(PROMPTS), NEW, sampling)
    assert len({tuple(row) for row in same}) == len(PROMPTS), "rows have chances of their own"


def test_a_prompt_and_its_continuation_is_a_prompt(generator):
    """What is read at once and what is read token by token leave the same state, whatever has been
    evicted."""
    for name in ("memory, fixed", "causal, transformer"):
        found = generator(name)
        whole = found.generate(PROMPTS, NEW)
        half = found.generate(PROMPTS, NEW // 2)
        rest = found.generate(
            [np.concatenate(pair) for pair in zip(PROMPTS, half, strict=True)], NEW - NEW // 2
        )
        for row, parts in enumerate(zip(half, rest, strict=True)):
            assert np.array_equal(whole[row], np.concatenate(parts)), name


def test_memories_carry_what_the_chunks_said(generator):
    """The control scores the same after any earlier chunks of the same number; a memory model does
    not."""
    prompts = [
        np.concatenate([PROMPTS[4][start : start + 8], PROMPTS[3][8:]])
        for start in range(len(PROMPTS))
    ]
    with_memory, without = (
        np.ptp(generator(name).prefill(prompts).logits, axis=0)
        for name in ("memory, fixed", "memory, none")
    )
    assert with_memory.max() > 0.01
    assert without.max() < 1e-5


# Where it ends


def test_stop_ids_end_a_row_and_tokens_come_as_they_are_made(generator):
    found = generator("memory, fixed")
    free = found.generate(PROMPTS, NEW)
    stop = int(free[0][4])
    came = [[] for _ in PROMPTS]
    ended = found.generate(PROMPTS, NEW, stop=(stop,))
    for step in found.stream(PROMPTS, NEW, stop=(stop,)):
        for row, token in step:
            came[row].append(token)
    for row, tokens in enumerate(free):
        at = np.flatnonzero(tokens == stop)
        assert np.array_equal(ended[row], tokens[: at[0] if len(at) else NEW])
        assert came[row] == ended[row].tolist()
        assert ended[row].dtype == np.int32
    assert len(ended[0]) <= 4
    assert [len(row) for row in found.generate(PROMPTS, 0)] == [0] * len(PROMPTS)


def test_beyond_what_is_kept_it_evicts_or_refuses(generator):
    for name, limit in (("memory, fixed", CHUNKS * LENGTH), ("causal, transformer", ROW)):
        evicting, strict = generator(name), generator(name, overflow="error")
        within = strict.generate(PROMPTS[:4] + PROMPTS[:1], limit - 9)[3]
        assert np.array_equal(
            within, evicting.generate(PROMPTS[:4] + PROMPTS[:1], NEW)[3][: limit - 9]
        )
        with pytest.raises(
            GenerationError,
            match=f"prompt 1: 9 tokens and max_new_tokens={limit - 8}, expected at most the",
        ):
            strict.generate([PROMPTS[0], PROMPTS[3]], limit - 8)
    assert len(generator("recurrent, transformer", overflow="error").generate(PROMPTS, 10)[4]) == 10
    with pytest.raises(GenerationError, match="overflow: 'forget', expected one of evict, error"):
        generator("memory, fixed", overflow="forget")


# Sampling


def test_one_candidate_is_the_greedy_one(generator):
    found = generator("memory, fixed")
    greedy = found.generate(PROMPTS, 6)
    for sampling in (Sampling(temperature=1.5, top_k=1), Sampling(temperature=1.5, top_p=1e-6)):
        assert all(map(np.array_equal, found.generate(PROMPTS, 6, sampling), greedy))


# What cannot be


def test_what_cannot_generate_says_so(generator):
    found = generator("memory, fixed")
    for module, compat, message in (
        (
            Autoencoder(BASE, VOCABULARY),
            (),
            "a model of family autoencoder does not generate or score text",
        ),
        (
            MODULES["memory, fixed"],
            ("unscored_first_tokens",),
            "'unscored_first_tokens', the model never learned the first token",
        ),
        (
            recurrent(compat=("overwritten_write_slot",)),
            (),
            "'overwritten_write_slot', the model never learned the first token",
        ),
        (
            causal(decoder=dataclasses.replace(TRANSFORMER, causal=False)),
            (),
            "decoder.causal=False",
        ),
    ):
        with pytest.raises(GenerationError, match=message):
            Generator(module, {}, IDS, compat)
    for prompts, message in (
        ([], "there is no prompt"),
        ([[1.5]], "prompt 0 must be one row of ids"),
        ([[7], [[7]]], "prompt 1 must be one row of ids"),
        (
            [[7, VOCABULARY]],
            f"prompt 0 has ids from 7 to {VOCABULARY}; the model's go from 0 to {VOCABULARY - 1}",
        ),
    ):
        with pytest.raises(GenerationError, match=message):
            found.generate(prompts, 1)


def test_a_score_depends_on_all_memories_or_without_them_on_its_own_chunk(generator):
    """Chunks are of 4 tokens: of 6 and 2, the last token stands in the second chunk."""
    assert generator("reading").strategy.reach(6, 2) == 6
    without = generator("reading, none").strategy
    assert [without.reach(6, n) for n in (1, 2, 3)] == [2, 2, 0]
