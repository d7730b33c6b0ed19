"""Every stage of every config file, shrunk to a toy, trains every parameter that it says it trains.

What is shrunk: widths to 16 for the narrowest stack of a model, 2 layers, chunks of 8 tokens, rows
of at most 4 chunks, or 2 where chunks do not see each other, 40 tokens of vocabulary. What stays:
ratios of widths, kinds, kernels, heads where the width allows them, everything else of stacks and
models, quirks, objectives and rules.

Gradients are taken with respect to all parameters and of every objective apart: stages that differ
in weights of objectives and in what is frozen share them.

Shapes: B row, N token of a row, J objective.
"""

import dataclasses
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import REPEATS, Backbone, Config, Data, Model, Stage
from memjax.config.published import AS_PUBLISHED
from memjax.models import build, can
from memjax.objectives import Batch, SpecialIds, load_config, score, total, weighted_loss
from memjax.testing.scripts import load_script
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import split

FOLDER = Path(__file__).resolve().parents[1] / "configs"
OTHER_SIZES = {"benchmark", "release", "scaling"}
"""Files whose models differ from those of others in size alone."""
FILES = sorted({path.stem for path in FOLDER.glob("*.py")} - OTHER_SIZES)
OURS = {"quickstart": ("", "small", "decoder", "no_memory"), "pretrained": ("all", "no_memory")}
"""Files whose variants are not published experiments."""
STACKS = {
    "autoencoder": ("encoder", "reconstructor"),
    "memory_model": ("encoder", "decoder"),
    "causal_lm": ("decoder",),
    "oracle": ("encoder", "decoder"),
    "recurrent_memory": ("decoder",),
    "retriever": ("encoder",),
    "ranker": ("encoder", "decoder"),
    "entropy_regressor": ("decoder",),
}
"""The stacks a family has."""
SETTINGS = {
    "expansion": ("autoencoder",),
    "layout": ("memory_model",),
    "token_positions": ("memory_model",),
    "chunk_positions": ("memory_model",),
    "task_embedding": ("memory_model",),
    "memory_injection": ("oracle",),
    "bptt_chunks": ("recurrent_memory",),
    **dict.fromkeys(
        ("readout", "bottleneck", "noise"),
        ("autoencoder", "memory_model", "oracle", "retriever", "ranker"),
    ),
}
"""The families that read a setting of the model."""
WIDTH, LAYERS, LENGTH, CHUNKS, VOCABULARY, ROWS = 16, 2, 8, 4, 40, 2
IDS, KEY = SpecialIds(), jax.random.key(1)
DEAD = 1e-6
"""Share of the largest gradient below which one is but rounding."""
BATCHES = 3
"""Random batches after which a parameter without a gradient is dead."""


@pytest.fixture(autouse=True, scope="module")
def no_collection_while_tracing() -> Iterator[None]:
    """Half of the time of many traces goes into looking for garbage."""
    gc.disable()
    yield
    gc.enable()
    gc.collect(0)


# Config files as toys


def shrink_stack(stack: Backbone, narrowest: int) -> Backbone:
    """The same stack at toy width."""
    width = WIDTH * stack.width // narrowest
    heads, multiple = stack.heads, 2 if stack.kind == "transformer" else 1
    while heads and width % (heads * multiple):
        heads //= 2
    kv_heads = stack.kv_heads * heads // stack.heads if stack.kv_heads else 0
    return dataclasses.replace(stack, width=width, layers=LAYERS, heads=heads, kv_heads=kv_heads)


def shrink(config: Config, stage: Stage) -> tuple[Config, Stage]:
    """Config and stage as a toy; what the stage's family does not read is as by default, so that
    equal models are equal."""
    model, default = config.model, Model()
    used = ("decoder",) if not stage.memory else STACKS[stage.family]
    narrowest = min(getattr(model, part).width for part in used)
    parts = {part: shrink_stack(getattr(model, part), narrowest) for part in used}
    parts |= {
        part: getattr(default, part)
        for part in ("encoder", "decoder", "reconstructor")
        if part not in used
    }
    unread = {
        name: getattr(default, name)
        for name, families in SETTINGS.items()
        if stage.family not in families
    }
    if "encoder" in used:
        unread |= {"bottleneck": model.bottleneck * parts["encoder"].width // model.encoder.width}
    else:
        unread |= {"readout": default.readout, "bottleneck": 0, "noise": 0.0}
    small = {"chunk_length": LENGTH, "dtype": "float32", "remat": "none"}
    model = dataclasses.replace(model, **parts | unread | small)
    chunks = min(config.chunks, CHUNKS) if can(stage.family, "reads_chunks") else 2
    row_tokens = LENGTH * chunks
    toy = Config(data=Data(vocab_size=VOCABULARY, sequence_length=row_tokens), model=model)
    kept = ("family", "objectives", "trainable", "memory", "dials", "compat")
    return toy, Stage(**{name: getattr(stage, name) for name in kept})


def kind_of(config: Config, stage: Stage) -> str:
    """What two toys share that are one model but for sizes and for quirks that are nothing to
    gradients of text without padding.

    Sizes are those of kernels, heads, hidden layers, noise, bottlenecks and, beyond which stack is
    wider, widths. Repeat mixers without decay are one kind: layers/test_repeat.py knows each of
    them. So are transformers with and without a final norm.
    """

    def stack(s: Backbone) -> Backbone:
        sizes = {
            name: min(getattr(s, name), 1) for name in ("channel_kernel", "heads", "mlp_ratio")
        }
        kind = "repeat" if s.kind in REPEATS and not s.decay_length else s.kind
        normed = s.final_norm or kind == "transformer"
        return dataclasses.replace(
            s, kind=kind, width=min(s.width, 2 * WIDTH), kv_heads=0, final_norm=normed, **sizes
        )

    model = config.model
    parts = {part: stack(getattr(model, part)) for part in ("encoder", "decoder", "reconstructor")}
    model = dataclasses.replace(
        model, noise=0.0, bottleneck=min(model.bottleneck, 1), compat=(), **parts
    )
    quirks = {
        *(() if stage.family != "memory_model" else ("slots_of_ones", "slots_of_zeros")),
        *(
            "overwritten_write_slot",
            "residual_noise",
            "unscored_first_tokens",
            "overwritten_delimiter",
        ),
    }
    quirks &= {*config.model.compat, *stage.compat}
    return repr((model, config.data, stage.family, stage.memory, sorted(quirks)))


def exactly(config: Config, stage: Stage) -> str:
    """What two toys share whose gradients are the same but for weights of objectives."""
    return repr((config, stage.family, stage.memory, sorted(stage.dials.items()), stage.compat))


def size(model: Model) -> tuple[float, ...]:
    """The greater, the harder: the most final norms, greatest kernels, most heads, then the
    narrowest bottleneck, then noise."""
    stacks = (model.encoder, model.decoder, model.reconstructor)
    sums = (
        sum(getattr(s, name) for s in stacks) for name in ("final_norm", "channel_kernel", "heads")
    )
    return (*sums, -model.bottleneck, model.noise)


@dataclasses.dataclass
class Group:
    """Stages of one model."""

    config: Config
    stages: dict[str, Stage]
    """By FILE:VARIANT/STAGE."""


def load(name: str) -> Iterator[tuple[str, Config]]:
    """All variants of a config file, each followed by its twin."""
    module = load_script(FOLDER / f"{name}.py")
    for variant in OURS.get(name) or module.VARIANTS:
        for suffix in ("",) if name in OURS else ("", AS_PUBLISHED):
            chosen = variant + suffix
            yield chosen, load_config(module.get_config(*[chosen] if chosen else []))


def group(every: bool) -> dict[str, list[Group]]:
    """The stages of all files by models, each under the first file that has it.

    Args:
      every: False takes of models of one kind the hardest alone, and of kinds that only published
        forms have one for each file.
    """
    groups: dict[str, dict[str, Group]] = {name: {} for name in FILES}
    owners: dict[str, str] = {}
    for name in FILES:
        sampled = False
        for variant, config in load(name):
            for stage_name, stage in config.stages.items():
                toy, small = shrink(config, stage)
                shared = exactly(toy, small) if every else kind_of(toy, small)
                if shared not in owners and variant.endswith(AS_PUBLISHED) and not every:
                    if sampled:
                        continue
                    sampled = True
                found = groups[owners.setdefault(shared, name)].setdefault(shared, Group(toy, {}))
                if size(toy.model) > size(found.config.model):
                    found.config = toy
                found.stages[f"{name}:{variant}/{stage_name}"] = small
    return {name: list(of.values()) for name, of in groups.items()}


@pytest.fixture(scope="module")
def sample() -> dict[str, list[Group]]:
    return group(every=False)


# Gradients


def weights(shapes: dict) -> dict:
    """Parameters in which no entry is special; maps keep the scale of what they are given."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        x = rng.normal(0, 0.4, leaf.shape)
        if path[-1].key == "kernel":
            x = rng.normal(0, leaf.shape[-2] ** -0.5, leaf.shape)
        return (1 + x if path[-1].key == "scale" else x).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def dead_by_design(model: Model, stage: Stage) -> str:
    """Pattern of paths that have no gradient in the published form of a model either, and why:

    - a transformer that is given one vector at all positions has one value everywhere, so that
      whatever it attends to, it returns one vector at all positions: rotary positions turn queries
      and keys alone, and these have no gradient;
    - a flat mixer's bias adds one number to all channels, which every later layer norm takes away,
      and where no map, RMS norm or head reads the memory before one does, nothing is left of it;
    - the bias of keys in place heads is that of memories, of which a control without them has none.
    """
    encoder, decoder = model.encoder, model.decoder
    if stage.family == "autoencoder":
        blind = model.expansion == "repeat" and model.reconstructor.kind == "transformer"
        return r"^backbone/blocks/mix/(query|key)/kernel$" if blind else "$^"
    if not stage.memory and decoder.place_heads:
        return r"^backbone/blocks/mix/key_address$"
    flat = (
        encoder.kind == "mixer"
        and encoder.heads == 0
        and encoder.norm == "layer"
        and not encoder.final_norm
    )
    kept = (
        encoder.width == decoder.width
        and not model.bottleneck
        and model.memory_injection == "token"
    )
    if (
        stage.family in ("memory_model", "oracle")
        and stage.memory
        and flat
        and kept
        and decoder.norm == "layer"
    ):
        return r"^encoder/backbone/blocks/mix/mixing_bias$"
    return "$^"


Lines = set[tuple[str, str, int]]
"""FILE:VARIANT/STAGE, path and layer of a parameter."""


def dead(quick, found: Group) -> tuple[Lines, Lines]:
    """What of a group's stages has no gradient and moves, and what of that has none by design."""
    names = sorted({name for stage in found.stages.values() for name in stage.objectives})
    config, stage = found.config, next(iter(found.stages.values()))
    module = build(config, stage)
    params = weights(abstract_params(module, config))

    def loss(params, weights, tokens, attribution):
        scores = score(
            module, {"params": params}, Batch(tokens, attribution), names, IDS, stage, KEY
        )
        return weighted_loss({name: total(s) for name, s in scores.items()}, weights)

    compiled, rng = quick(jax.grad(loss)), np.random.default_rng(1)
    flat = flatten_dict(params, sep="/")
    largest = {path: np.zeros((len(names), LAYERS if "blocks/" in path else 1)) for path in flat}
    missing, expected = set(), set()
    for _ in range(BATCHES):
        shape = (ROWS, config.data.sequence_length)
        tokens = rng.integers(IDS.first_content, VOCABULARY, shape).astype(np.int32)
        attribution = rng.uniform(0, 8, shape).astype(np.float32)
        for j, asked in enumerate(names):
            alone = {name: np.float32(name == asked) for name in names}
            for path, gradient in flatten_dict(
                compiled(params, alone, tokens, attribution), sep="/"
            ).items():
                assert np.isfinite(gradient).all(), path
                parts = np.abs(gradient).reshape(largest[path].shape[1], -1).max(axis=1)
                largest[path][j] = np.maximum(largest[path][j], parts)
        scale_J = np.max([x.max(axis=1) for x in largest.values()], axis=0)
        missing, expected = set(), set()
        for where, stage in found.stages.items():
            asked = [names.index(name) for name in stage.objectives]
            trainable, frozen = split(params, stage.trainable, where)
            assert {path for path in flat if path.startswith(prefixes(stage))} == set(
                flatten_dict(frozen, sep="/")
            ), where
            for path in flatten_dict(trainable, sep="/"):
                alive = (largest[path] > DEAD * scale_J[:, None])[asked].any(axis=0)
                missing |= {(where, path, layer) for layer in np.flatnonzero(~alive).tolist()}
                if re.search(dead_by_design(config.model, stage), path):
                    expected |= {(where, path, layer) for layer in range(len(alive))}
        if missing <= expected:
            break
    return missing, expected


def prefixes(stage: Stage) -> tuple[str, ...]:
    """What paths of frozen parameters begin with, by the rules in use."""
    return tuple(pattern.removeprefix("^") for pattern, moves in stage.trainable if not moves)


def check(quick, groups: list[Group]) -> None:
    """Fails where a parameter has no gradient, and where one has that has none by design."""
    assert groups
    found = [dead(quick, of) for of in groups]
    missing, expected = (set().union(*lines) for lines in zip(*found, strict=True))
    assert sorted(missing - expected) == []
    assert sorted(expected - missing) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "blind"), [("transformer", True), ("mixer", False)])
def test_a_transformer_cannot_tell_positions_of_a_repeated_memory_apart(
    quick, draw, kind: str, blind: bool
) -> None:
    stack = Backbone(kind=kind, width=WIDTH, layers=LAYERS, heads=2)
    model = Model(chunk_length=LENGTH, encoder=stack, reconstructor=stack, expansion="repeat")
    module = build(
        Config(data=Data(vocab_size=VOCABULARY, sequence_length=LENGTH), model=model),
        Stage(family="autoencoder"),
    )
    tokens = np.random.default_rng(0).integers(IDS.first_content, VOCABULARY, (2, LENGTH))
    variables = draw(module, tokens)
    logits = quick(module.apply)(variables, tokens)
    apart = np.abs(logits[:, 1:] - logits[:, :1]).max(axis=-1)
    assert np.all(apart < 1e-4) if blind else np.all(apart > 0.1)
    assert np.abs(logits[0] - logits[1]).max() > 0.1


@pytest.mark.quick_cases(slow=("memory_model", "quickstart"))
@pytest.mark.parametrize("name", FILES)
def test_every_trained_parameter_has_a_gradient(
    name: str, sample: dict[str, list[Group]], quick
) -> None:
    check(quick, sample[name])


@pytest.mark.night
@pytest.mark.parametrize("name", FILES)
def test_every_trained_parameter_of_every_variant_has_a_gradient(name: str, quick) -> None:
    check(quick, group(every=True)[name])
