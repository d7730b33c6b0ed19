"""Every config file and variant resolves to what is stored, and its training step is sound, at full
size and without an array of it.

What is stored is in golden_configs/, a file for each config file: the parameters of every stage,
and the settings that differ from the defaults. After a change that is meant, write it anew and look
at the difference:

    python tests/test_configs.py --write
"""

import dataclasses
import functools
import gc
import itertools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from memjax.checkpoints import parts_of, transplant
from memjax.config import Config, Stage, from_json, to_json
from memjax.config.published import AS_PUBLISHED, as_published
from memjax.layers.lora import adapter_shapes
from memjax.models import build
from memjax.objectives import Batch, SpecialIds, load_config
from memjax.testing.scripts import load_script
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import make_optimizer, merge, split
from memjax.training.step import TrainState, train_step

FOLDER = Path(__file__).resolve().parents[1] / "configs"
GOLDEN = Path(__file__).resolve().parent / "golden_configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
OURS = {
    "quickstart": ("", "small", "decoder", "no_memory"),
    "release": ("", "continue"),
    "scaling": (),
    "benchmark": (),
    "pretrained": (),
}
"""Files whose variants are not published experiments, and those variants; none named is all that
the file names."""
IMPORTED = (
    "hf:",
    "runs/llama_3_2_1b/",
    "runs/llama_3_2_1b_with_encoder/",
    "runs/bert_large/",
    "runs/qwen3_0_6b/",
    "small-en",
)
"""Weights that no config of ours makes."""
PARAMETERS = {
    # What the reference counts less what nothing there reads: token tables inside stacks that are
    # given embeddings, layers past the eighth of stacks that run eight, final norms, projections of
    # what is repeated and not unrolled.
    ("autoencoder", "mixer_1024_k16_unroll", "train"): 218_391_552,
    ("autoencoder", "mixer_1024_k1_repeat", "train"): 155_476_992 - (512 * 1024 + 1024),
    ("autoencoder", "mixer_1024_h4_repeat", "train"): 201_671_680 - (512 * 1024 + 1024),
    ("autoencoder", "transformer_512_unroll", "train"): 150_767_104
    - 16 * 4_195_328
    - 2 * 8000 * 512
    - 2 * 512,
    ("causal_lm", "transformer_512", "train"): 75_317_760,
    ("causal_lm", "mixer_1024_l16_n512", "train"): 154_951_680,
    ("causal_lm", "mixer_512_l16_n512", "train"): 46_022_656,
    ("copying", "transformer", "train"): 154_731_520 - 8000 * (512 + 512),
    ("copying", "mixer_frozen", "autoencoder"): 83_976_704,
    ("memory_model", "paper", "combined"): 100_427_008 - 8000 * (256 + 512),
    ("memory_model", "transformer_4x256", "train"): 100_427_008 - 8000 * (256 + 512),
    # A control there has an encoder's token table and a bridge, and no encoder.
    ("memory_model", "transformer_4x256_no_memory", "train"): 81_593_344
    - 8000 * (256 + 512)
    - (256 * 512 + 512),
    ("memory_model", "mixer_4x256_as_published", "train"): 198_477_120,
    ("oracle", "transformer_512", "train"): 98_412_096 - 8000 * 512,
    ("oracle", "large_transformer_l8", "train"): 301_238_272 - 8000 * 1024,
    ("oracle", "large_mixer_k8", "train"): 192_569_416,
    # The map up from the bottleneck, where what is beside the tokens is the bottleneck.
    ("oracle", "mixer_1024_embedding", "train"): 194_330_944 - (64 * 256 + 256),
    ("recurrent_memory", "transformer_512_4x256_as_published", "train"): 79_413_760 - 8000 * 512,
    ("recurrent_memory", "mixer_1024_k8_4x256_as_published", "train"): 159_207_568,
    # Llama-3.2-1B, whose head is its token table.
    ("llm_copy", "no_memory", "train"): 1_235_814_400 + 128_256 * 2048,
    # Our own.
    ("pretrained", "no_memory", "train"): 1_235_814_400 + 8 * 2048,
    ("memory_model", "1b", "combined"): 1_307_255_808,
    ("quickstart", "", "autoencoder"): 1_099_136,
    ("quickstart", "", "combined"): 1_648_144,
    ("quickstart", "no_memory", "no_memory"): 1_086_224,
    ("quickstart", "small", "combined"): 80_936,
    ("release", "", "small_en"): 2_041_360,
}
"""Parameters that are known from elsewhere."""


@functools.cache
def loaded(name):
    return load_script(FOLDER / f"{name}.py")


def variants(name):
    return OURS.get(name) or tuple(loaded(name).VARIANTS)


@functools.cache
def resolved(name, variant):
    return load_config(loaded(name).get_config(*[variant] if variant else []))


@functools.cache
def shapes_of(model, data, family, memory):
    config = Config(data=data, model=model)
    return abstract_params(build(config, Stage(family=family, memory=memory)), config)


def shapes(config, stage):
    return shapes_of(config.model, config.data, stage.family, stage.memory)


def with_adapters(config, stage):
    """`shapes` and what a stage trains beside them."""
    return merge(
        shapes(config, stage), adapter_shapes(shapes(config, stage), stage.trainable, "trainable")
    )


def count(config):
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(shapes(config, stage)))
        for name, stage in config.stages.items()
    }


@pytest.fixture(autouse=True, scope="module")
def no_collection_while_tracing():
    """Half of the time of many traces goes into looking for garbage."""
    gc.disable()
    yield
    gc.enable()
    gc.collect(0)


# Stored settings


def difference(ours, theirs):
    """Keys of nested settings that differ, with our values."""
    if not isinstance(ours, dict):
        return ours
    changed = {
        key: difference(value, theirs[key]) if key in theirs else value
        for key, value in ours.items()
        if value != theirs.get(key)
    }
    return changed | dict.fromkeys(theirs.keys() - ours.keys(), "absent")


def plain(config):
    """As JSON holds it."""
    return json.loads(to_json(config))


def settings(config):
    """What differs from the defaults, of a stage from those of a stage."""
    default = plain(dataclasses.replace(Config(), stages={name: Stage() for name in config.stages}))
    found = difference(plain(config), default)
    return found | {"stages": {name: found["stages"][name] for name in config.stages}}


def golden(name):
    """What should be stored of a config file."""
    stored = {}
    for variant in variants(name):
        config = resolved(name, variant)
        stored[variant] = {"parameters": count(config), "config": settings(config)}
        if name not in OURS:
            twin = resolved(name, variant + AS_PUBLISHED)
            stored[variant][AS_PUBLISHED] = difference(plain(twin), plain(config))
    return stored


def write():
    GOLDEN.mkdir(exist_ok=True)
    for path in set(GOLDEN.glob("*.json")) - {GOLDEN / f"{name}.json" for name in FILES}:
        path.unlink()
    for name in FILES:
        (GOLDEN / f"{name}.json").write_text(lines(golden(name)) + "\n", encoding="utf-8")


def lines(value, indent=0):
    """JSON in which a group is on one line if it fits there."""
    flat, inner = json.dumps(value), " " * (indent + 1)
    if not isinstance(value, dict) or len(flat) + indent < 100:
        return flat
    parts = (f"{inner}{json.dumps(key)}: {lines(part, indent + 1)}" for key, part in value.items())
    return "{\n" + ",\n".join(parts) + f"\n{' ' * indent}}}"


FEW = pytest.mark.quick_cases(
    "causal_lm",
    "entropy",
    "llm_copy",
    "memory_model",
    "pretrained",
    "quickstart",
)
"""Files of few variants."""


def test_every_file_has_its_stored_settings():
    assert {path.stem for path in GOLDEN.iterdir()} == set(FILES)


@FEW
@pytest.mark.parametrize("name", FILES)
def test_settings_and_parameters_are_those_stored(name):
    found, stored = golden(name), json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert list(found) == list(stored)
    for variant in found:
        assert found[variant] == stored[variant], (
            f"{name}.py:{variant} is not as stored; python tests/test_configs.py --write"
        )


@FEW
@pytest.mark.parametrize("name", FILES)
def test_a_config_survives_json_and_a_twin_is_the_published_form_of_its_variant(name):
    for variant in variants(name):
        config = resolved(name, variant)
        assert from_json(to_json(config)) == config
        assert count(config).keys() == set(config.curriculum + config.controls)
        if name not in OURS:
            assert config.name == f"{name}-{variant}"
            twin = resolved(name, variant + AS_PUBLISHED)
            assert from_json(to_json(twin)) == twin
            assert dataclasses.replace(twin, name=config.name) == as_published(config) != config


@pytest.mark.slow
def test_parameters_are_as_many_as_are_known():
    found = {key: count(resolved(*key[:2]))[key[2]] for key in PARAMETERS}
    assert found == PARAMETERS


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_variant_is_refused_with_those_there_are(name):
    last = variants(name)[-1]
    for variant in ("huge", "huge" + AS_PUBLISHED):
        with pytest.raises(
            ValueError, match=rf"^{name}\.py has no variant '{variant}'; it has .*{last}"
        ):
            resolved(name, variant)


# Weights that are handed on


def source(config, stage):
    """(config, stage) whose weights a stage starts from; None where they come from elsewhere."""
    if stage.init_from in config.stages:
        return config, config.stages[stage.init_from]
    if stage.init_from.startswith(IMPORTED):
        return None
    name, variant, stage_name = re.fullmatch(
        r"runs/(\w+)(?:/(\w+))?/stages/(\w+)", stage.init_from
    ).groups("")
    config = resolved(name, variant)
    return config, config.stages[stage_name]


def meaning(config, stage, part):
    """What the weights of a part are of; without a part, of the whole model."""
    model = config.model
    if not part:
        return {"model": model}
    other = "reconstructor" if stage.family == "autoencoder" else "decoder"
    found = {"stack": getattr(model, "encoder" if part.startswith("encoder") else other)}
    found["quirks"] = {"residual_noise"} & set(model.compat)
    if part == "encoder":
        found |= {
            "chunk": (model.chunk_length, model.memory_vectors),
            "read": (model.readout, model.bottleneck),
        }
    return found


@pytest.mark.quick_cases("llm_copy", "memory_model", "quickstart")
@pytest.mark.parametrize("name", FILES)
def test_weights_a_stage_starts_from_fit_and_mean_the_same(name):
    for variant in variants(name) + (
        () if name in OURS else tuple(v + AS_PUBLISHED for v in variants(name))
    ):
        config = resolved(name, variant)
        for stage_name, stage in config.stages.items():
            if not stage.init_from:
                continue
            given, at = source(config, stage), f"{name}.py:{variant}, {stage_name}"
            params = shapes(config, stage)
            if given is None:
                taken = {here for _, here in parts_of(stage.init_part)} - {""}
                assert all(part.split("/")[0] in params for part in taken), at
                continue
            there, before = given
            assert there.data.vocab_size == config.data.vocab_size, at
            transplant(
                params,
                shapes(there, before),
                stage.init_part,
                at,
                "untrained_layers" in stage.compat,
            )
            for part_there, part_here in parts_of(stage.init_part):
                theirs, ours = meaning(there, before, part_there), meaning(config, stage, part_here)
                if "untrained_layers" in stage.compat:
                    deep = ours["stack"]
                    theirs["stack"] = dataclasses.replace(
                        theirs["stack"], layers=deep.layers, final_norm=deep.final_norm
                    )
                assert theirs == ours, at


@FEW
@pytest.mark.parametrize("name", FILES)
def test_what_is_frozen_was_trained_before_or_is_meant_to_be_untrained(name):
    for variant in variants(name):
        config = resolved(name, variant)
        for stage in config.stages.values():
            trainable, frozen = split(with_adapters(config, stage), stage.trainable, "trainable")
            assert trainable
            # A decoder that stays is a pretrained one.
            assert not frozen or "encoder" in frozen or stage.init_from.startswith("hf:")
            # What is timed or compiled need not have been trained.
            assert (
                not frozen
                or stage.init_from
                or name in ("benchmark", "scaling")
                or re.search("untrained|random", variant)
            ), variant


# Training steps


def lower(config, stage):
    """Traces and lowers the training step; checks what it returns."""
    module = build(config, stage)
    params = with_adapters(config, stage)
    trainable, frozen = split(params, stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        trainable,
        frozen,
        jax.eval_shape(optimizer.init, trainable),
    )
    size = (stage.batch_size, config.data.sequence_length)
    attribution = jax.ShapeDtypeStruct(size, jnp.float32) if config.data.attributions else None
    step = functools.partial(
        train_step, module=module, stage=stage, optimizer=optimizer, ids=SpecialIds()
    )
    after, metrics = (
        jax.jit(step)
        .lower(state, Batch(jax.ShapeDtypeStruct(size, jnp.int32), attribution))
        .out_info
    )
    same = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert same(after) == same(state)
    assert metrics.terms.keys() == stage.objectives.keys()


def program(config, stage):
    """All that a training step is made of."""
    stage = dataclasses.replace(
        stage, steps=1, warmup_steps=0, learning_rate=1.0, init_from="", init_part=""
    )
    return json.dumps([dataclasses.asdict(part) for part in (config.data, config.model, stage)])


def kind(config, stage):
    """What sets training steps apart, but for sizes, heads, norms and what is frozen."""
    model = config.model
    stacks = (model.encoder.kind, model.decoder.kind, model.reconstructor.kind)
    choices = (model.expansion, model.layout, model.memory_injection, model.noise > 0, model.compat)
    return stage.family, *stage.objectives, stage.memory, stage.compat, stacks, choices


def first_of_each(key, twins):
    """{file: (variant, stage)s}: the first stage of every value of `key`."""
    found, chosen = set(), {name: [] for name in FILES}
    for name, suffix in itertools.product(FILES, ("", AS_PUBLISHED) if twins else ("",)):
        for variant in variants(name) if not suffix or name not in OURS else ():
            config = resolved(name, variant + suffix)
            for stage_name, stage in config.stages.items():
                if key(config, stage) not in found:
                    found.add(key(config, stage))
                    chosen[name].append((variant + suffix, stage_name))
    return chosen


def lower_all(name, chosen):
    for variant, stage in chosen:
        config = resolved(name, variant)
        try:
            lower(config, config.stages[stage])
        except Exception as error:
            error.add_note(f"{name}.py:{variant}, stage {stage}")
            raise


@pytest.mark.quick_cases(slow=("quickstart", "memory_model", "retrieval"))
@pytest.mark.parametrize("name", FILES)
def test_a_training_step_of_every_kind_lowers(name):
    lower_all(name, first_of_each(kind, twins=False)[name])


@pytest.mark.night
@pytest.mark.parametrize("name", FILES)
def test_every_training_step_lowers(name):
    lower_all(name, first_of_each(program, twins=True)[name])


# What the files say of themselves


def expanded(pattern):
    """The words that braces stand for: `a{b,c}` is ab and ac."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    return [
        "".join(words)
        for words in itertools.product(
            *(part.split(",") if at % 2 else [part] for at, part in enumerate(parts))
        )
    ]


def table(text):
    """Cells of the rows of a Markdown table, but for its head."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return rows[2:]


def register(name):
    """{register line: variants} of a file's table."""
    lines = {}
    for pattern, line, _, _ in table(loaded(name).__doc__):
        lines.setdefault(line, []).extend(expanded(pattern))
    return lines


PUBLISHED = [name for name in FILES if name not in OURS]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_a_file_has_its_variants_and_the_tokens_they_see(name):
    seen = {}
    for pattern, _, tokens, expected in table(loaded(name).__doc__):
        assert expected
        for variant in expanded(pattern):
            assert seen.setdefault(variant, tokens) == tokens
    assert seen.keys() == set(variants(name))
    for variant, tokens in seen.items():
        config = resolved(name, variant)
        total = (
            sum(stage.steps * stage.batch_size for stage in config.stages.values())
            * config.data.sequence_length
        )
        assert tokens == f"{total / 1e9:.3g} B", variant
    command = f" memjax train --config=configs/{name}.py:VARIANT --workdir=runs/{name}/VARIANT "
    assert command in " ".join(loaded(name).__doc__.split())


def test_the_register_names_every_experiment_and_where_it_is():
    rows = table((FOLDER / "README.md").read_text(encoding="utf-8"))
    assert [row[0] for row in rows] == [f"E{number}" for number in range(1, 35)]
    for line, _, where in rows:
        found = {name: variants for name in PUBLISHED if (variants := register(name).get(line))}
        named = {}
        for file, patterns in re.findall(r"`(\w+)\.py:([^`]*)`", where):
            named[file] = [
                variant for pattern in patterns.split(" ") for variant in expanded(pattern)
            ]
        assert {file: sorted(variants) for file, variants in named.items()} == {
            file: sorted(variants) for file, variants in found.items()
        }, line


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_configs.py --write")
    gc.disable()
    write()
