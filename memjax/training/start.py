"""How a stage starts: what a run holds, fresh weights, and weights taken from another model."""

import dataclasses
import functools
import zlib
from collections.abc import Container
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.checkpoints import CheckpointError, load_params, parts_of, transplant
from memjax.config import FUNCTION_QUIRKS, Config, Stage, differences, from_json
from memjax.config.settings import FULL_ROWS
from memjax.data import Prepared
from memjax.interop.huggingface import Stored
from memjax.layers.lora import adapter_shapes, draw_adapters
from memjax.models import example
from memjax.objectives import SpecialIds
from memjax.sharding import Watch, make_mesh, replicated, shardings, state_shardings
from memjax.training.initialize import reference_init
from memjax.training.optimizer import Tree, merge, split
from memjax.training.pretrained import start_pretrained
from memjax.training.progress import Reporter
from memjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: Config
    workdir: Path
    data: Prepared
    reporter: Reporter
    watch: Watch = dataclasses.field(default_factory=lambda: Watch(print))
    remote: str = ""
    """Where checkpoints go if that is no folder of this machine: gs://bucket/folder."""

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices of all processes, as `config.mesh` lays them out."""
        return make_mesh(self.config.mesh)

    def places(self, params: Tree) -> Tree:
        """The layout of parameters, arrays or abstract."""
        return shardings(params, self.config.mesh.rules, self.mesh)

    @property
    def ids(self) -> SpecialIds:
        """Reserved ids of the run's tokenizer."""
        return SpecialIds.of(self.data.tokenizer)

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its metrics."""
        return self.workdir / "stages" / stage

    def checkpoints(self, stage: str) -> epath.Path:
        """Where a stage keeps its checkpoints: beside its metrics, or in the bucket."""
        return epath.Path(self.remote or self.workdir) / "stages" / stage / "checkpoints"


def abstract_params(module: nn.Module, config: Config, stage: Stage | None = None, key: str = "trainable") -> Tree:
    """Paths, shapes and dtypes of a module's parameters, with the adapters that a stage trains; nothing is computed.

    Raises:
      ConfigError: a rule of `key`, the stage's `trainable`, gives a rank to no matrix, or a rank that one has not.
    """
    # The key is abstract too: where the mesh in context is of a machine that is not there, nothing can be made.
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), example(module, config))["params"])
    return shapes if stage is None else merge(shapes, adapter_shapes(shapes, stage.trainable, key))


def first_row(config: Config, stage: Stage) -> int:
    """Rows that the stages this one carries on from have read: it goes on after them."""
    if not stage.init_from or stage.init_part or stage.init_from not in config.stages:
        return 0
    before = config.stages[stage.init_from]
    return first_row(config, before) + before.steps * before.rows


def fresh_state(run: Run, name: str, module: nn.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: drawn weights, in whose place those come that `init_from` names.

    Raises:
      CheckpointError: those do not fit, or are of another config or tokenizer.
    """
    config, stage = run.config, run.config.stages[name]
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    shapes = abstract_params(module, config)
    places = run.places(shapes)
    pretrained = start_pretrained(config, name, shapes)
    # What comes from there is not drawn, and stays in files until the rest is there.
    taken = flatten_dict(pretrained.params, sep="/") if pretrained else {}
    stored = {path: leaf for path, leaf in taken.items() if isinstance(leaf, Stored)}

    def init(key: jax.Array) -> Tree:
        params = module.init(key, example(module, config))["params"]
        if "reference_init" in config.model.compat:
            params = reference_init(params, config, stage, key)
        return _without(params, stored)

    # Every device draws its own part: the whole is nowhere.
    params = jax.jit(init, out_shardings=_without(places, stored))(key)
    if pretrained is not None:
        flat_places = flatten_dict(places, sep="/")
        read = {path: pretrained.source.read(leaf, flat_places[path]) for path, leaf in stored.items()}
        params = merge(params, unflatten_dict(read, sep="/"))
    elif stage.init_from:
        inside = stage.init_from in config.stages
        folder = run.checkpoints(stage.init_from).parent if inside else epath.Path(stage.init_from)
        source, meta = load_params(folder / "checkpoints", place=run.places)
        _check_source(run, meta, stage, folder)
        given = transplant(params, source, stage.init_part, str(folder), "untrained_layers" in stage.compat)
        # A copy where it belongs: the state is donated to the first step, the source must not be.
        params = jax.tree.map(lambda x, place: jax.device_put(x, place, may_alias=False), given, places)
    if adapters := adapter_shapes(shapes, stage.trainable, "trainable"):
        draw = functools.partial(draw_adapters, adapters)
        params = merge(params, jax.jit(draw, out_shardings=run.places(adapters))(key))
    trainable, frozen = split(params, stage.trainable, "trainable")
    return TrainState(
        jax.device_put(jnp.int32(0), replicated(run.mesh)), trainable, frozen, fresh_moments(run, optimizer, trainable)
    )


def _without(tree: Tree, paths: Container[str]) -> Tree:
    return unflatten_dict({path: x for path, x in flatten_dict(tree, sep="/").items() if path not in paths}, sep="/")


def fresh_moments(run: Run, optimizer: optax.GradientTransformation, trainable: Tree) -> optax.OptState:
    """The optimizer's state before the first step, laid out as the parameters are."""
    state = jax.eval_shape(optimizer.init, trainable)
    return jax.jit(optimizer.init, out_shardings=state_shardings(state, trainable, run.places(trainable), run.mesh))(trainable)


def check_origin(run: Run, meta: dict[str, Any], path: str) -> None:
    """Refuses a checkpoint of this stage that another config or tokenizer wrote."""
    changed = differences(run.config, from_json(meta["config"]))
    if changed:
        raise CheckpointError(f"{path} is of another config ({'; '.join(changed[:3])}); use another --workdir")
    fingerprint = run.data.tokenizer.fingerprint
    if meta["tokenizer"] != fingerprint:
        raise CheckpointError(f"{path} is of tokenizer {meta['tokenizer']}, this run has {fingerprint}; use another --workdir")


def _check_source(run: Run, meta: dict[str, Any], stage: Stage, folder: epath.Path) -> None:
    """Refuses weights that would fit in shape and yet mean something else (heads, kernel, norm, another vocabulary)."""
    if not meta["tokenizer"]:
        run.reporter.say(f"{folder} does not say which tokenizer it was trained with; its ids are taken for those of this run")
    elif meta["tokenizer"] != run.data.tokenizer.fingerprint:
        raise CheckpointError(
            f"{folder} was trained with tokenizer {meta['tokenizer']}, this run has {run.data.tokenizer.fingerprint}; its embeddings mean"
            " other tokens"
        )
    source = from_json(meta["config"])
    family = source.stages[meta["stage"]].family
    for there, here in parts_of(stage.init_part):
        for key_there, key_here in _settings_of(there, here, family, stage.family):
            theirs, ours = _meaning(source, key_there, there), _meaning(run.config, key_here, here)
            if "untrained_layers" in stage.compat and key_here == "encoder" and theirs.final_norm <= ours.final_norm:
                theirs = dataclasses.replace(theirs, layers=ours.layers, final_norm=ours.final_norm)
            if theirs != ours:
                raise CheckpointError(
                    f"{folder} was trained with config.model.{key_there}={theirs}, this run has config.model.{key_here}={ours}"
                )


ENCODER = ("chunk_length", "vectors", "readout", "bottleneck", "compat")
MODEL = ("encoder", *ENCODER, "decoder", "expansion", "layout", "combine")


def _settings_of(there: str, here: str, family_there: str, family_here: str) -> list[tuple[str, str]]:
    """Settings of the model that must be equal, there and here, for weights of the part to mean the same."""
    if not here:
        return [(key, key) for key in (*MODEL, "reconstructor")]
    stacks = _stack_of(there, family_there), _stack_of(here, family_here)
    keys = ENCODER if there == here == "encoder" else ("compat",)
    return [stacks, *((key, key) for key in keys)]


def _stack_of(part: str, family: str) -> str:
    """The setting that describes the stack a part of the model belongs to."""
    if part.startswith("encoder"):
        return "encoder"
    return "reconstructor" if family == "autoencoder" else "decoder"


def _meaning(config: Config, key: str, part: str) -> Any:
    """A setting, as far as it bears on what the part's weights mean."""
    value = getattr(config.model, key)
    if key != "compat":
        return value
    # Padding apart, which full rows have not, an encoder is the same function however padding is read.
    padded = {"attended_padding"} if config.data.rows not in FULL_ROWS else set()
    bearing = {"residual_noise"} | padded if part else FUNCTION_QUIRKS
    return tuple(sorted(bearing & set(value)))
