"""Adapters beside matrices that stay, and stages that start from a Hugging Face folder.

Shapes: B row, C chunk, L token.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from memjax.checkpoints import CheckpointError, load_params
from memjax.cli.main import main
from memjax.config import (
    FREEZING,
    Backbone,
    Config,
    ConfigError,
    Data,
    Evaluator,
    Model,
    Optimizer,
    Stage,
    check,
    from_json,
    to_json,
    usual_evaluators,
)
from memjax.data import prepare
from memjax.evaluation.evaluators import open_evaluators
from memjax.experiment.evaluate import evaluate_run
from memjax.experiment.preflight import check_stages
from memjax.interop.huggingface.settings import decoder_settings
from memjax.interop.huggingface.weights import save_pretrained
from memjax.layers.lora import adapter_shapes, draw_adapters, merge_lora
from memjax.models import build, example
from memjax.objectives import Batch, SpecialIds
from memjax.objectives import check as check_all
from memjax.progress import SILENT
from memjax.sharding import make_mesh
from memjax.testing import write_corpus
from memjax.training.flops import counted_flops, model_flops, token_flops
from memjax.training.init_state import Run, abstract_params
from memjax.training.loop import train_stage
from memjax.training.optimizer import make_optimizer, merge, split
from memjax.training.step import TrainState, evaluation_step, train_step

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hf"
FOLDER = GOLDEN / "qwen3_qknorm"
IDS = SpecialIds()
RANK = 3
LORA = ((r"^backbone/.*/(query|up)/kernel$", RANK), *FREEZING["encoder_and_bridge"])
ADAPTED = ("backbone/blocks/mix/query", "backbone/blocks/mlp/up")


def config_of(folder=FOLDER, **stage):
    settings = {
        "batch_size": 8,
        "steps": 12,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "trainable": LORA,
        "init_from": f"hf:{folder}",
    }
    settings["objectives"] = {"plain_copy": 1.0}
    decoder = decoder_settings(folder).stack
    return Config(
        data=Data(vocab_size=320, sequence_length=32),
        model=Model(
            chunk_length=8,
            token_positions=False,
            chunk_positions=False,
            task_embedding=False,
            encoder=Backbone(width=16, layers=1, heads=2, mlp_ratio=1.0),
            decoder=decoder,
        ),
        optimizer=Optimizer(clip_norm=0.0),
        stages={"train": Stage(**settings | stage)},
        curriculum=("train",),
        checkpoint_every=6,
        evaluators=usual_evaluators(every=6, examples=32)
        | {
            "base_validation": Evaluator("base_validation", every=6),
            "base_accuracy": Evaluator("base_accuracy", examples=32),
        },
        log_every=2,
    )


def flat(tree):
    return flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def drawn(draw):
    """(config, module, parameters without adapters, with adapters whose second half is not 0)."""
    config = config_of(init_from="")
    stage = config.stages["train"]
    module = build(config, stage)
    params = draw(module, example(module, config))["params"]
    shapes = adapter_shapes(params, stage.trainable, "trainable")
    adapters = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 4, shapes
    )
    return config, module, params, adapters


TOKENS = np.random.default_rng(0).integers(IDS.first_content, 320, (8, 32)).astype(np.int32)


def test_a_product_is_added_to_its_matrix(drawn, quick):
    _, module, params, adapters = drawn
    assert set(flat(adapters)) == {f"{at}/lora_{half}" for at in ADAPTED for half in ("in", "out")}
    given = merge(params, adapters)
    merged = merge_lora(given)
    assert set(flat(merged)) == set(flat(params))
    for path, leaf in flat(merged).items():
        at = path.removesuffix("/kernel")
        if at in ADAPTED:
            into, out = (np.asarray(flat(adapters)[f"{at}/lora_{half}"]) for half in ("in", "out"))
            product = np.stack([a @ b for a, b in zip(into, out, strict=True)])
            np.testing.assert_allclose(leaf, np.asarray(flat(params)[path]) + product, atol=1e-5)
        else:
            assert leaf is flat(params)[path]
    # The same function, before and after; and not that without adapters.
    chunks = TOKENS.reshape(8, 4, 8)
    run = quick(lambda params: module.apply({"params": params}, chunks))
    beside, inside, without = run(given), run(merged), run(params)
    np.testing.assert_allclose(beside, inside, atol=1e-3 * np.abs(inside).max())
    assert np.abs(beside - without).max() > 0.05 * np.abs(inside).max()
    assert merge_lora(params) is params


def test_merging_leaves_the_given_arrays_as_they_are(drawn):
    _, _, params, adapters = drawn
    given = jax.tree.map(np.array, merge(params, adapters))
    before = jax.tree.map(np.copy, given)
    merge_lora(given)
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(before), strict=True):
        assert np.array_equal(one, other)


def test_fresh_adapters_change_nothing_and_are_as_they_should_be(drawn, quick):
    _, module, params, adapters = drawn
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*x.shape[:-2], 40 * x.shape[-2], x.shape[-1]), x.dtype),
        adapters,
    )
    fresh = flat(draw_adapters(shapes, jax.random.key(0)))
    for path, leaf in fresh.items():
        if path.endswith("lora_out"):
            assert not leaf.any()
        else:
            assert float(leaf.std()) == pytest.approx(leaf.shape[-2] ** -0.5, rel=0.05)
    one, other = (fresh[f"{at}/lora_in"] for at in ADAPTED)
    assert one.shape == other.shape and not np.array_equal(one, other)
    run = quick(lambda params: module.apply({"params": params}, TOKENS.reshape(8, 4, 8)))
    given = merge(params, draw_adapters(adapters, jax.random.key(0)))
    assert run(given).tobytes() == run(params).tobytes()


@pytest.fixture(scope="module")
def trained(drawn, quick):
    """State before and after 20 steps in which adapters alone move, and the losses."""
    config, module, params, adapters = drawn
    stage = dataclasses.replace(config.stages["train"], learning_rate=0.03, lr_schedule="constant")
    stage = dataclasses.replace(stage, trainable=((r"^backbone/.*kernel$", RANK), (".*", False)))
    adapters = draw_adapters(
        adapter_shapes(params, stage.trainable, "trainable"), jax.random.key(1)
    )
    trainable, frozen = split(merge(params, adapters), stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    before = TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable))
    step = functools.partial(train_step, module=module, stage=stage, optimizer=optimizer, ids=IDS)

    def run(state):
        return jax.lax.scan(lambda state, _: step(state, TOKENS), state, None, length=20)

    after, metrics = quick(run)(before)
    return stage, before, after, metrics


@pytest.mark.slow
def test_adapters_alone_move_and_learn(trained):
    _, before, after, metrics = trained
    assert all(path.endswith(("lora_in", "lora_out")) for path in flat(after.trainable))
    assert len(flat(after.trainable)) == 2 * 7
    for path, leaf in flat(before.frozen).items():
        assert np.asarray(leaf).tobytes() == np.asarray(flat(after.frozen)[path]).tobytes(), path
    for path, leaf in flat(before.trainable).items():
        # Every layer of a stack.
        assert np.any(np.asarray(leaf) != flat(after.trainable)[path], axis=(1, 2)).all(), path
    assert metrics.loss[-1] < 0.9 * metrics.loss[0]


@pytest.mark.slow
def test_what_they_learned_is_there_after_merging(trained, drawn, quick):
    stage, before, after, metrics = trained
    look = quick(
        functools.partial(
            evaluation_step, module=drawn[1], names=("plain_copy",), ids=IDS, stage=stage
        )
    )

    def nats(params):
        term = look(params, TOKENS)["plain_copy"]
        return term.nats / term.count

    beside, merged, first = (
        nats(after.params),
        nats(merge_lora(jax.tree.map(jnp.asarray, after.params))),
        nats(before.params),
    )
    assert merged == pytest.approx(beside, rel=1e-4)
    assert first == pytest.approx(metrics.loss[0], rel=1e-5)
    assert merged < 0.9 * first


@pytest.mark.quick_cases("causal_lm-True")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["memory_model", "causal_lm"])
def test_a_step_has_the_products_of_the_formula(family, tied):
    """Of wider heads than the width has room for, a tied head, and adapters: causal matrices in
    full, every logit once more."""
    config = config_of(init_from="", family=family)
    decoder = dataclasses.replace(config.model.decoder, tie_embeddings=tied)
    # With slots of its own for every chunk, so that all matrices are causal ones.
    compat = ("slots_of_zeros",) if family == "memory_model" else ()
    model = dataclasses.replace(config.model, decoder=decoder, compat=compat)
    config = dataclasses.replace(config, model=model)
    for rules in (
        LORA,
        ((r"layer|embed/", True), (r"mlp/up", 2), (".*", False)),
        FREEZING["trainable"],
    ):
        stage = dataclasses.replace(config.stages["train"], trainable=rules)
        module = build(config, stage)
        trainable, frozen = split(abstract_params(module, config, stage), rules, "trainable")
        optimizer = make_optimizer(config.optimizer, stage, trainable)
        state = TrainState(
            jax.ShapeDtypeStruct((), jnp.int32),
            trainable,
            frozen,
            jax.eval_shape(optimizer.init, trainable),
        )
        step = functools.partial(
            train_step, module=module, stage=stage, optimizer=optimizer, ids=IDS
        )
        batch = Batch(jax.ShapeDtypeStruct((8, 32), jnp.int32))
        parts = model_flops(config, stage).parts
        wanted = (
            sum(part.total * (1 + name.endswith("_mixing")) for name, part in parts.items())
            + parts["head"].forward
        )
        assert counted_flops(jax.jit(step).trace(state, batch).jaxpr) == wanted
    params = flat(abstract_params(module, config))
    kernels = sum(
        x.size
        for path, x in params.items()
        if path.startswith("backbone/") and path.endswith("kernel")
    )
    assert token_flops(config, stage, 10) == 2 * (kernels + 320 * 32 + 2 * 2 * 10 * 64)


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, results, parameters, those after going on from half way) of a run with adapters,
    bridge and encoder."""
    folder = tmp_path_factory.mktemp("pretrained")
    corpus = write_corpus(folder / "corpus.jsonl")
    config = config_of()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, corpus=str(corpus)))
    data = prepare(config.data, folder / "run/data", lambda _: None)
    run = Run(config, folder / "run", data, SILENT)

    def train():
        return train_stage(run, "train", open_evaluators(run, "train", training=True))

    results = evaluate_run(run, {"train": train()})
    # As if it had been killed after step 6.
    whole = load_params(folder / "run/stages/train/checkpoints")[0]
    shutil.rmtree(folder / "run/stages/train/checkpoints/12")
    return folder, results, whole, train()


@pytest.mark.slow
def test_a_run_starts_from_the_folder_and_keeps_what_does_not_move(run):
    folder, results, whole, _ = run
    theirs = load_file(FOLDER / "model.safetensors")
    found = flat(whole)
    np.testing.assert_array_equal(
        found["embed/embedding"][:73], theirs["model.embed_tokens.weight"]
    )
    for layer in range(2):
        for name, path in (("self_attn.k_proj", "mix/key"), ("mlp.up_proj", "mlp/up")):
            ours = np.asarray(found[f"backbone/blocks/{path}/kernel"][layer]).T
            same = np.array_equal(ours, theirs[f"model.layers.{layer}.{name}.weight"])
            # An adapter has been added to what it stands beside.
            assert same == (path == "mix/key")
    assert not any("lora" in path for path in found)
    adapters = sum(x.size for x in jax.tree.leaves(adapter_shapes(whole, LORA, "trainable")))
    moved = sum(x.size for path, x in found.items() if path.startswith(("encoder/", "bridge/")))
    assert results["stages"]["train"]["trainable_parameters"] == adapters + moved
    # Written back, it is a folder of the same tensors.
    save_pretrained(whole, FOLDER, folder / "out")
    written = load_file(folder / "out" / "model.safetensors")
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in theirs.items()}
    np.testing.assert_array_equal(written["model.norm.weight"], theirs["model.norm.weight"])
    assert not np.array_equal(
        written["model.layers.1.mlp.up_proj.weight"], theirs["model.layers.1.mlp.up_proj.weight"]
    )
    # The command writes the same.
    stage = folder / "run/stages/train"
    huggingface = ["--format=huggingface", f"--spec={FOLDER}", f"--out={folder / 'command'}"]
    assert main(["export", str(stage), *huggingface]) == 0
    assert (folder / "command/model.safetensors").read_bytes() == (
        folder / "out/model.safetensors"
    ).read_bytes()
    assert main(["export", str(stage), *huggingface]) == 2


@pytest.mark.slow
def test_the_loss_without_memory_is_told_before_and_after(run):
    folder, results, _, _ = run
    lines = [
        json.loads(line)
        for line in (folder / "run/stages/train/metrics.jsonl").read_text().splitlines()
        if line
    ]
    found = {line["step"]: line for line in lines if line["split"] == "validation"}
    assert sorted(found) == [0, 6, 12]
    assert all("next_token_empty/nats" in line for line in found.values())
    before = results["stages"]["train"]["before"]
    assert before == {key: found[0][key] for key in before}
    assert before["next_token_empty/nats"] != found[12]["next_token_empty/nats"]
    assert found[12]["plain_copy/nats"] < before["plain_copy/nats"]
    assert results["models"]["train"]["next_token_empty_nats"] == pytest.approx(
        found[12]["next_token_empty/nats"], rel=0.05
    )


@pytest.mark.slow
def test_a_run_that_goes_on_ends_where_it_would_have(run):
    folder, results, whole, meta = run
    after = load_params(folder / "run/stages/train/checkpoints")[0]
    jax.tree.map(np.testing.assert_array_equal, whole, after)
    assert meta["step"] == 12
    assert meta["before"] == results["stages"]["train"]["before"]


# Refusals


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            ((r"mix/query", 40), (".*", True)),
            r"got rank 40 for 'backbone/blocks/mix/query/kernel' of shape \(2, 32, 64\), expected"
            r" at most 32",
        ),
        (
            (("^embed/", 4), (".*", True)),
            r"trainable: got a rank for '\^embed/', which matches no matrix of a block",
        ),
    ],
)
def test_ranks_that_cannot_be_are_refused_before_anything_runs(rules, said):
    with pytest.raises(ConfigError, match=said):
        check_stages(config_of(trainable=rules), make_mesh())


@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_a_rule_gives_true_or_false_or_a_rank(value):
    with pytest.raises(ConfigError, match="expected True, False or a rank from 1 to 65536"):
        check(config_of(trainable=((".*", value),)))


def test_settings_survive_json():
    config = config_of()
    assert from_json(to_json(config)) == config


@pytest.mark.quick_cases(
    "changes0-has heads=4, this run has config\\\\.model\\\\.decoder\\\\.heads=2"
)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 2}, r"has heads=4, this run has config\.model\.decoder\.heads=2"),
        ({"qk_norm": False}, r"has qk_norm=True, this run has .*qk_norm=False"),
        (
            {"mlp_ratio": 2.0},
            r"has hidden_width=72, this run has config\.model\.decoder\.hidden_width=64",
        ),
        (
            {"tie_embeddings": False},
            r"tie_embeddings=True, and config\.model\.decoder\.tie_embeddings=False",
        ),
    ],
)
def test_a_decoder_of_other_settings_is_refused_by_their_name(changes, said):
    config = config_of()
    decoder = dataclasses.replace(config.model.decoder, **changes)
    with pytest.raises(CheckpointError, match=said):
        check_stages(
            dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder)),
            make_mesh(),
        )


def test_a_folder_that_is_not_there_is_refused():
    config = config_of()
    stage = dataclasses.replace(config.stages["train"], init_from="hf:absent")
    with pytest.raises(
        CheckpointError,
        match=r"config\.stages\.train\.init_from='hf:absent': absent/config\.json: no such file",
    ):
        check_stages(dataclasses.replace(config, stages={"train": stage}), make_mesh())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "mixer"}, "decoder.head_dim=16 has no meaning in a mixer; leave it 0"),
        ({"head_dim": 15}, "decoder.head_dim=15, expected 0 .* or an even number"),
        ({"head_dim": -2}, "decoder.head_dim=-2, expected a number from 0"),
        ({"rope_scaling": (8.0, 4.0, 1.0, 16.0)}, "of which low is less than high"),
        ({"rope_scaling": (8.0, 1.0, 4.0)}, "decoder.rope_scaling=.* four numbers"),
        ({"norm_eps": -1e-5}, "decoder.norm_eps=-1e-05, expected a number from 0 .the norm"),
        ({"rope_theta": 0.0}, "decoder.rope_theta=0.0, expected a number from 1e-30"),
    ],
)
def test_forms_that_cannot_be_are_refused(changes, said):
    config = config_of()
    decoder = dataclasses.replace(
        config.model.decoder, **{"kv_heads": 0, "output_gate": False} | changes
    )
    with pytest.raises(ConfigError, match=said):
        check(dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder)))


def test_a_tied_head_is_refused_where_a_family_has_its_own():
    config = config_of(family="oracle", objectives={"next_token": 1.0}, init_from="")
    with pytest.raises(
        ConfigError, match="tie_embeddings=True is not read by stages of family oracle"
    ):
        check_all(config)


def test_an_encoder_can_start_from_a_folder_too():
    """Of the same width: every part is mapped to where it is said to go."""
    config = config_of(
        init_part="backbone,embed,backbone:encoder/backbone,embed:encoder/embed",
        trainable=FREEZING["trainable"],
    )
    encoder = dataclasses.replace(config.model.decoder, tie_embeddings=False)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
    check_stages(config, make_mesh())
    narrow = dataclasses.replace(
        config.model, encoder=dataclasses.replace(config.model.encoder, width=16)
    )
    with pytest.raises(
        CheckpointError, match=r"has width=32, this run has config\.model\.encoder\.width=16"
    ):
        check_stages(dataclasses.replace(config, model=narrow), make_mesh())
