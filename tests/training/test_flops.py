"""The formula of model FLOPs against the products of the real training step, and the counter of
those against XLA's."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from memjax.config import FREEZING, Backbone, Model, Optimizer, Stage
from memjax.models import build
from memjax.models.adapter import Adapter, one_by_one
from memjax.models.registry import FAMILIES
from memjax.models.request import shared_entries
from memjax.models.uses import Use
from memjax.objectives import Batch, SpecialIds, build_requests
from memjax.testing import tiny_config, tiny_model
from memjax.training.flops import Part, counted_flops, model_flops, token_flops
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, train_step

BOTH = {"next_token": 1.0, "copy": 1.0}
SMALL = {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0}


def transformer(**changes):
    return Backbone(**(SMALL | changes))


def mixer(**changes):
    return Backbone(kind="mixer", **(SMALL | changes))


def setting(model=None, optimizer=None, data=None, **stage):
    """A config of a small model, and one stage of it."""
    config = tiny_config(
        "unused", optimizer=optimizer or Optimizer(), model=tiny_model(**(model or {}))
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **(data or {})))
    asked = stage.get("family") in ("retriever", "ranker")
    dials = {"dials": {"query_tokens": 3}} if asked else {}
    return config, Stage(**({"batch_size": 8, "objectives": BOTH} | dials | stage))


def traced(config, stage, stored=False):
    """The training step, of shapes alone."""
    module = build(config, stage)
    params = abstract_params(module, config)
    trainable, frozen = split(params, stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        trainable,
        frozen,
        jax.eval_shape(optimizer.init, trainable),
    )
    rows = (stage.batch_size, config.data.sequence_length)
    memories = (
        stage.batch_size,
        config.chunks,
        config.model.memory_vectors,
        config.model.encoder.width,
    )
    batch = Batch(
        jax.ShapeDtypeStruct(rows, jnp.int32),
        jax.ShapeDtypeStruct(rows, jnp.float32),
        jax.ShapeDtypeStruct(memories, jnp.float32) if stored else None,
    )
    step = functools.partial(
        train_step, module=module, stage=stage, optimizer=optimizer, ids=SpecialIds()
    )
    return jax.jit(step).trace(state, batch)


def counted(config, stage, **options):
    return counted_flops(traced(config, stage, **options).jaxpr)


def in_full(config, stage):
    """Pairs of positions that a program multiplies, over those of the formula: of a prefix all, and
    of a chunk its own and those with all entries."""
    module, rows = build(config, stage), jnp.zeros((1, config.data.sequence_length), jnp.int32)
    requests = list(
        build_requests(module, rows, tuple(stage.objectives), SpecialIds(), stage).values()
    )
    length, vectors = config.model.chunk_length, config.model.memory_vectors
    whole = read = 0.0
    for entries, numbers in shared_entries(requests):
        prefix = len(entries) * vectors * stage.memory
        seen = np.concatenate([requests[number].visible for number in numbers]) * stage.memory
        among = 0 if config.model.decoder.blind_memories else prefix**2
        whole += among + len(seen) * length * (prefix + length)
        read += (among + len(seen) * length**2) / 2 + length * vectors * seen.sum()
    return whole / read


def expected(config, stage, **options):
    """What a step has by the formula: matrices in full, and every logit once more in the backward
    pass."""
    parts = model_flops(config, stage, **options).parts
    model = config.model
    decoder = model.reconstructor if stage.family == "autoencoder" else model.decoder
    causal = {
        "encoder_mixing": model.encoder.causal,
        "decoder_mixing": decoder.causal and stage.family != "ranker",
    }
    again = (
        0 if stage.family in ("retriever", "ranker", "entropy_regressor") else parts["head"].forward
    )
    times = {name: 2 if found else 1 for name, found in causal.items()}
    if getattr(build(config, stage), "shares_prefixes", False):
        times["decoder_mixing"] = in_full(config, stage)
    return again + sum(part.total * times.get(name, 1) for name, part in parts.items())


def trained(pattern):
    return {"trainable": ((pattern, True), (".*", False))}


CASES = {
    "both objectives": setting(),
    "frozen encoder": setting(
        {"encoder": mixer(width=24, channel_kernel=3)}, trainable=FREEZING["frozen_all"]
    ),
    "frozen blocks behind a new table": setting(trainable=FREEZING["frozen_blocks"]),
    "published requests": setting(
        {"compat": ("slots_of_ones",)},
        compat=("unscored_first_tokens",),
        objectives=BOTH | {"blank_copy": 1.0},
    ),
    "memory tokens and bottleneck": setting(
        {
            "memory_vectors": 2,
            "readout": "memory_tokens",
            "bottleneck": 4,
            "encoder": transformer(width=24, kv_heads=1, causal=False),
        }
    ),
    "mixers": setting(
        {
            "encoder": mixer(heads=0, mlp="gelu"),
            "decoder": mixer(channel_kernel=2, output_gate=True),
        },
        grad_accum_steps=4,
    ),
    "repeat mixers": setting(
        {
            "encoder": Backbone(kind="row_repeat", **SMALL),
            "decoder": Backbone(kind="mixed_repeat", **SMALL),
        }
    ),
    "no memory": setting(memory=False, objectives={"next_token": 1.0}),
    "no memory, of an encoder that attends": setting(
        {"encoder": transformer()}, memory=False, objectives={"next_token": 1.0}
    ),
    "blind memories": setting(
        {
            "layout": "text",
            "chunk_positions": False,
            "decoder": transformer(place_heads=1, features=("blind_memories",)),
        },
        objectives={"next_token": 1.0, "recall": 1.0},
    ),
    "head alone": setting(**trained("^head/")),
    "bridge alone": setting({"encoder": mixer(width=24)}, **trained("^bridge/")),
    "encoder alone": setting(**trained("^encoder/")),
    "one matrix of a block": setting(**trained("^backbone/.*/up/")),
    "autoencoder": setting(
        {"memory_vectors": 2, "readout": "memory_tokens", "encoder": mixer(width=24)},
        family="autoencoder",
        objectives={"reconstruction": 1.0},
    ),
    "causal": setting(
        family="causal_lm",
        objectives={
            "next_token": 1.0,
            "plain_copy": 1.0,
            "corrupted_copy": 1.0,
            "complement_weighted": 1.0,
        },
    ),
    "oracle token": setting(
        {"encoder": mixer(width=24)}, family="oracle", objectives={"next_token": 1.0}
    ),
    "oracle add": setting(
        {"memory_injection": "add"},
        family="oracle",
        objectives={"next_token": 1.0},
        trainable=FREEZING["frozen_all"],
    ),
    "oracle embedding": setting(
        {"memory_injection": "embedding", "bottleneck": 4},
        family="oracle",
        objectives={"next_token": 1.0},
    ),
    "recurrent memory": setting(
        {"memory_vectors": 2, "readout": "memory_tokens", "bptt_chunks": 2},
        family="recurrent_memory",
        objectives={"next_token": 1.0},
    ),
    "retriever": setting(
        family="retriever",
        objectives={"ngram_retrieval": 1.0, "pair_retrieval": 1.0},
        grad_accum_steps=2,
    ),
    "ranker": setting(
        {"encoder": mixer(width=24)},
        family="ranker",
        objectives={"ngram_ranking": 1.0, "nbag_ranking": 1.0},
    ),
    "regressor": setting(family="entropy_regressor", objectives={"entropy_regression": 1.0}),
}


@pytest.mark.quick_cases("frozen encoder", "recurrent memory")
@pytest.mark.parametrize("case", CASES)
def test_the_training_step_has_the_products_of_the_formula_and_no_others(case):
    assert counted(*CASES[case]) == expected(*CASES[case])


class TwoLayers(nn.Module):
    """A model whose parameters have names of its own."""

    config: Model

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(64, 8, name="table")(tokens)
        return nn.Dense(64, use_bias=False, name="second")(
            nn.Dense(8, use_bias=False, name="first")(x)
        )


def _answer(asking, variables, request):
    logits = asking.apply(variables, "__call__", request.inputs[:, 0])
    nats = -jax.nn.log_softmax(logits) * jax.nn.one_hot(request.labels[:, 0], 64)
    return nats.sum(-1)[:, None], jnp.ones(request.labels.shape, bool)


def _uses(config, stage, requests):
    positions = stage.batch_size * config.data.sequence_length
    yield Use("first", "decoder", positions)
    yield Use("second", "head", positions)


@pytest.mark.parametrize("pattern", [".*", "table", "first", "second"])
def test_parameters_of_another_family_come_in_the_order_of_its_uses(pattern, monkeypatch):
    two = Adapter(
        name="two",
        module=TwoLayers,
        summary="Two layers.",
        capabilities=frozenset(("predicts", "reads_rows")),
        build=lambda config, stage: TwoLayers(config.model),
        example=lambda config: jnp.zeros((1, config.data.sequence_length), jnp.int32),
        uses=_uses,
        answer=one_by_one(_answer),
    )
    monkeypatch.setitem(FAMILIES, "two", two)
    only = trained(pattern)
    config, stage = setting(family="two", objectives={"next_token": 1.0}, **only)
    assert counted(config, stage) == model_flops(config, stage).total > 0


def test_stored_memories_leave_the_encoder_out():
    config, stage = setting({"encoder": mixer(width=24)}, trainable=FREEZING["frozen_all"])
    assert counted(config, stage, stored=True) == expected(config, stage, stored=True)
    run, read = model_flops(config, stage), model_flops(config, stage, stored=True)
    assert (
        run.total - read.total
        == run.parts["encoder"].forward + run.parts["encoder_mixing"].forward
        > 0
    )
    assert read.parts["bridge"] == run.parts["bridge"]


def test_a_language_model_takes_six_flops_a_parameter_and_token_beside_attention():
    stack = Backbone(width=32, layers=3, heads=2, mlp="gelu", mlp_ratio=4.0)
    config, stage = setting({"decoder": stack}, family="causal_lm", objectives={"next_token": 1.0})
    parameters, tokens = 3 * (4 * 32 * 32 + 2 * 32 * 128) + 32 * 320, 8 * 32
    found = model_flops(config, stage)
    assert found.parts["decoder"].total + found.parts["head"].total == 6 * parameters * tokens
    # Half of two products of [T, T] by [T, D] in each layer, three times.
    assert found.parts["decoder_mixing"].total == 3 * 3 * 8 * 2 * 32 * 32 * 32
    assert found.forward * 3 == found.total == found.forward + found.backward


def test_a_memory_model_encodes_and_decodes_what_is_asked_and_no_more():
    # Of 4 chunks of 8 tokens 3 are encoded; 4 are read on and 2 copied, from 3 entries each; one
    # block, width 16, hidden 32.
    config, stage = setting()
    parts = model_flops(config, stage).parts
    assert parts["encoder"].forward == 2 * (2 * 16 * 16 + 2 * 16 * 32) * 8 * 3 * 8
    assert parts["encoder_mixing"].forward == 2 * 8 * 8 * 16 * 8 * 3 / 2
    assert parts["decoder"].forward == 2 * (5 * 16 * 16 + 3 * 16 * 32) * 8 * (6 * 8 + 3 + 3)
    pairs = (2 * 3**2 + 6 * 8**2) / 2 + 8 * (0 + 1 + 2 + 3) + 8 * (2 + 3)
    assert parts["decoder_mixing"].forward == 4 * pairs * 16 * 8
    assert parts["head"].forward == 2 * 16 * 320 * 8 * 6 * 8
    assert "bridge" not in parts


@pytest.mark.slow
def test_remat_runs_blocks_twice_but_for_what_nothing_in_them_reads():
    encoder, decoder = mixer(), transformer()
    config, stage = setting({"encoder": encoder, "decoder": decoder})
    parts = model_flops(config, stage).parts
    # The last product of a block is added to the stream: no gradient asks for its value. Scores
    # have batch dimensions.
    last = sum(
        parts[name].forward * 16 * 32 / size
        for name, size in (("encoder", 2 * 256 + 3 * 512), ("decoder", 4 * 256 + 3 * 512))
    )
    mixing = 2 * parts["encoder_mixing"].forward
    mixing += in_full(config, stage) * parts["decoder_mixing"].forward
    more = {
        "nothing_saveable": parts["encoder"].forward + parts["decoder"].forward - last + mixing,
        "dots_saveable": 0,
        "dots_with_no_batch_dims_saveable": mixing,
    }
    plain = counted(config, stage)
    assert plain == expected(config, stage)
    for remat, flops in more.items():
        model = dataclasses.replace(config.model, remat=remat)
        assert counted(dataclasses.replace(config, model=model), stage) - plain == flops, remat


def test_muon_has_products_that_are_not_the_models():
    rules = ((r"head/kernel$", "muon"), (".*", "adamw"))
    (config, stage), (with_muon, _) = setting(), setting(optimizer=Optimizer(rules=rules))
    # Five Newton-Schulz steps of X X^T, its square and a product with X, for X of 16 by 320.
    assert counted(with_muon, stage) - counted(config, stage) == 5 * (4 * 16 * 16 * 320 + 2 * 16**3)
    assert model_flops(with_muon, stage) == model_flops(config, stage)


def test_a_kernel_counts_every_cell_of_its_grid():
    model = {
        "chunk_length": 128,
        "decoder": Backbone(width=256, layers=1, heads=2),
        "encoder": mixer(layers=1),
    }
    steps = [
        setting(
            model | {"attention": name},
            data={"sequence_length": 256},
            objectives={"next_token": 1.0},
        )
        for name in ("xla", "splash")
    ]
    plain, kernel = (counted(*step) for step in steps)
    # Two chunks of a row read 128 positions and an entry, padded to 256; the entry itself is padded
    # to 128. Forward it has two products as XLA has, backward 3 for queries and 4 for keys in place
    # of 4, and the output times its gradient.
    of_chunk, of_entry = 9 * 128 * 256 + 128 - 6 * 128 * 129, 9 * 128**2 + 128 - 6
    assert kernel - plain == 2 * 8 * 256 * (2 * of_chunk + of_entry)


@pytest.mark.quick_cases("drawn-memory")
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "no memory"])
@pytest.mark.parametrize("scored", [{}, {"next_token": 2, "recall": 1}], ids=["all", "drawn"])
def test_chunks_of_a_reading_model_share_a_prefix(memory, scored):
    """Of 4 chunks of 8 tokens, all or 2 are predicted and 3 or one recalled, from 3 entries."""
    objectives = {"next_token": 1.0} | ({"recall": 1.0} if memory else {})
    config, stage = setting(
        {"layout": "text", "chunk_positions": False, "decoder": transformer(place_heads=1)},
        memory=memory,
        objectives=objectives,
        scored_chunks={name: count for name, count in scored.items() if name in objectives},
    )
    # Means over the chunks, of which some are drawn.
    seen = {"next_token": 1.5 * memory, "recall": 3}
    chunks = {name: scored.get(name, {"next_token": 4, "recall": 3}[name]) for name in objectives}
    entries, asked = 3 * memory, sum(chunks.values())
    found = model_flops(config, stage).parts
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 32) * 2
    assert found["decoder"].forward == matrices * 8 * (entries + 8 * asked)
    read = entries**2 / 2 + asked * 8 * 8 / 2
    read += 8 * sum(count * seen[name] for name, count in chunks.items())
    assert found["decoder_mixing"].forward == 4 * 8 * read * 16 * 2
    # A program computes every entry with every position of a chunk, and squares in full.
    computed = entries**2 + asked * 8 * (entries + 8)
    whole = sum(part.total for name, part in found.items() if name != "decoder_mixing")
    whole += found["decoder_mixing"].total * computed / read + found["head"].forward
    assert counted(config, stage) == whole + found.get("encoder_mixing", Part()).total


def test_generating_a_row_token_by_token_takes_what_reading_it_does():
    config, stage = setting(
        {"decoder": transformer()}, family="causal_lm", objectives={"next_token": 1.0}, batch_size=1
    )
    first, last = (token_flops(config, stage, context) for context in (1, 32))
    whole = model_flops(config, stage)
    # Causal attention counts as half a square; its diagonal is the other half of a line.
    assert 32 * (first + last) / 2 == whole.forward + 4 * 16 * 2 * 32 / 2
    config, stage = setting({"decoder": mixer(channel_kernel=3)})
    assert token_flops(config, stage, 5) - token_flops(config, stage, 4) == 2 * 3 * 2 * 16


@pytest.mark.quick_cases(slow=("memory_model-nothing_saveable", "causal_lm-none"))
@pytest.mark.parametrize("remat", ["none", "nothing_saveable"])
@pytest.mark.parametrize("family", ["causal_lm", "memory_model"])
def test_xla_counts_the_same_where_nothing_loops(family, remat):
    wide = {"width": 1024, "layers": 1, "heads": 8}
    model = {
        "chunk_length": 64,
        "encoder": Backbone(kind="mixer", **wide),
        "decoder": Backbone(**wide),
        "remat": remat,
    }
    step = traced(
        *setting(
            model,
            data={"sequence_length": 256, "vocab_size": 2048},
            family=family,
            objectives={"next_token": 1.0},
            batch_size=4,
        )
    )
    # XLA counts additions and exponentials too: under 1 % at this width.
    ours = counted_flops(step.jaxpr)
    assert 1.0 < step.lower().cost_analysis()["flops"] / ours < 1.01


# The counter itself


X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
ONE = 2 * 8 * 16 * 16
"""FLOPs of `square`."""


def square(x):
    return x @ jnp.ones((16, 16))


def count(function, *args):
    return counted_flops(jax.jit(function).trace(*args).jaxpr)


def test_the_counter_sees_loops_branches_and_calls():
    assert count(square, X) == ONE
    assert (
        count(
            lambda x: jax.lax.scan(lambda c, _: (square(jax.jit(square)(c)), None), x, length=5)[0],
            X,
        )
        == 10 * ONE
    )
    assert (
        count(lambda x: jax.lax.cond(x[0, 0] > 0, square, lambda y: square(square(y)), x), X)
        == 2 * ONE
    )
    assert count(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y + 1, square(x)), X) == ONE
    assert count(jax.vmap(square), jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)) == 3 * ONE
    assert (
        count(
            jax.grad(lambda w: jnp.sum(jnp.ones((8, 16)) @ w)),
            jax.ShapeDtypeStruct((16, 16), jnp.float32),
        )
        == ONE
    )


def test_the_counter_leaves_out_what_nothing_reads():
    def unread(carry, _):
        return (carry[0] + 1, square(carry[1])), None

    assert count(lambda x: jax.lax.scan(unread, (0, x), length=5)[0][0], X) == 0


def test_the_counter_counts_all_devices_of_a_shard_map():
    mesh = AbstractMesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split_rows = jax.shard_map(
        square,
        mesh=mesh,
        in_specs=PartitionSpec("a"),
        out_specs=PartitionSpec("a"),
        check_vma=False,
    )
    # Over b everyone computes the same.
    assert count(split_rows, X) == 4 * ONE


def test_the_counter_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="rounds are not known"):
        count(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, square, x), X)
    with pytest.raises(ValueError, match="convolutions"):
        count(lambda x: jax.lax.conv(x[None, None], jnp.ones((1, 1, 2, 2)), (1, 1), "SAME"), X)
