"""The initial state of a stage: fresh weights, or weights of another model."""

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

from memjax.checkpoints import CheckpointError, parts_of, paths_of, transplant
from memjax.checkpoints.identity import ENCODER_SETTINGS
from memjax.checkpoints.reading import read_config
from memjax.config import FUNCTION_QUIRKS, Config, Source, Stage, differences
from memjax.config.choices import FULL_PACKINGS, PACKINGS
from memjax.data import Prepared
from memjax.data.packing import check_side
from memjax.interop.huggingface.init_from import start_pretrained
from memjax.interop.stage import StoredStage, open_stage
from memjax.layers.lora import adapter_shapes, draw_adapters
from memjax.models import example, find
from memjax.models.initialize import initial_params
from memjax.objectives import SpecialIds
from memjax.progress import Reporter
from memjax.sharding import ProcessMonitor, make_mesh, replicated, shardings, state_shardings
from memjax.training.optimizer import Tree, as_stored, merge, split
from memjax.training.status import Status
from memjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """The config, data and devices that all stages of a run share."""

    config: Config
    workdir: Path
    data: Prepared
    reporter: Reporter
    watch: ProcessMonitor = dataclasses.field(default_factory=lambda: ProcessMonitor(print))
    remote: str = ""
    """The bucket for checkpoints, gs://BUCKET/FOLDER; empty keeps them in `workdir`."""
    profile: tuple[int, int] | None = None
    """First and last step of every stage to trace with the profiler; None traces nothing."""
    status: Status = dataclasses.field(default_factory=Status)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of all devices of all processes, by `config.mesh`."""
        return make_mesh(self.config.mesh)

    def places(self, params: Tree) -> Tree:
        """Return the shardings of parameters, which are arrays or abstract."""
        return shardings(params, self.config.mesh.rules, self.mesh)

    @property
    def ids(self) -> SpecialIds:
        """The reserved ids of the run's tokenizer."""
        return SpecialIds.of(self.data.tokenizer)

    def tokens(self, stage: str, steps: int) -> int:
        """Return the tokens of so many steps of a stage, without padding: as many per row as a row
        in training has on average.
        """
        return round(steps * self.config.stages[stage].batch_size * self.data.train.mean_tokens)

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's metrics."""
        return self.workdir / "stages" / stage

    def checkpoints(self, stage: str) -> epath.Path:
        """Return the folder of a stage's checkpoints, beside its metrics or in the bucket."""
        return epath.Path(self.remote or self.workdir) / "stages" / stage / "checkpoints"


def abstract_params(
    module: nn.Module, config: Config, stage: Stage | None = None, key: str = "trainable"
) -> Tree:
    """Return shapes and dtypes of a module's parameters, without computing them.

    Args:
      module: the model.
      config: the run.
      stage: the stage whose LoRA factors and types of frozen parameters are included; None includes
        no factors, and all parameters are float32.
      key: the setting of the rules that give ranks, for messages.

    Raises:
      ConfigError: a rule gives a rank to no matrix, or a rank that a matrix cannot have.
    """
    shapes = _init_shapes(module, jax.eval_shape(lambda: example(module, config)).shape)
    if stage is None:
        return shapes
    return as_stored(merge(shapes, adapter_shapes(shapes, stage.trainable, key)), stage)


@functools.lru_cache(maxsize=32)
def _init_shapes(module: nn.Module, tokens: tuple[int, ...]) -> Tree:
    """Return shapes and dtypes of parameters, which a run needs many times."""
    # All is abstract: with the mesh of an absent machine in context, no array can be made.
    return jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros(tokens, jnp.int32))["params"]
    )


def data_offset(config: Config, stage: Stage, step: int = 0) -> int:
    """Return the sequences that the stage, at a step, and the stages before it have read.

    A stage continues after those of the stage whose whole model it starts from.
    """
    own = step * stage.batch_size
    if not stage.init_from or stage.init_part or stage.init_from not in config.stages:
        return own
    before = config.stages[stage.init_from]
    return data_offset(config, before, before.steps) + own


def init_train_state(
    run: Run, name: str, module: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step: fresh weights, or those that `init_from` names.

    Raises:
      CheckpointError: the weights do not fit, or have another config, tokenizer or side of padding.
    """
    config, stage = run.config, run.config.stages[name]
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    shapes = as_stored(abstract_params(module, config), stage)
    places = run.places(shapes)
    sources = open_sources(run.config, name, run.remote or run.workdir)
    taken: set[str] = set()
    for source, found in sources:
        if found.pretrained is not None:
            taken |= set(start_pretrained(found.pretrained, config, name, source, shapes))
            continue
        _check_source(run, source, found, stage)
        # A stack that the source fills in part is drawn whole.
        taken |= set() if _fills_layers(stage) else paths_of(source.part, shapes)

    def init(key: jax.Array) -> Tree:
        return _without(as_stored(initial_params(module, config, stage, key), stage), taken)

    # What a source gives is not drawn. Every device draws its own part, so that no device holds all
    # parameters.
    drawn = jax.jit(init, out_shardings=_without(places, taken))(key)
    params = merge(shapes, drawn)
    for source, found in sources:
        params = _fill(run, name, source, found, params, shapes)
    if adapters := adapter_shapes(shapes, stage.trainable, "trainable"):
        draw = functools.partial(draw_adapters, adapters)
        params = merge(params, jax.jit(draw, out_shardings=run.places(adapters))(key))
    trainable, frozen = split(params, stage.trainable, "trainable")
    moments = jax.eval_shape(optimizer.init, trainable)
    # Moments have the layout of their parameters.
    places = state_shardings(moments, trainable, run.places(trainable), run.mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=places)(trainable)
    step = jax.device_put(jnp.int32(0), replicated(run.mesh))
    return TrainState(step, trainable, frozen, opt_state)


def _fill(
    run: Run, name: str, source: Source, found: StoredStage, params: Tree, shapes: Tree
) -> Tree:
    """Return parameters of a stage, some of which are still abstract, with those of a source.

    Args:
      run: the run.
      name: the stage.
      source: which parameters the source gives.
      found: the source.
      params: all parameters; abstract where a source gives them.
      shapes: their shapes and types.
    """
    stage = run.config.stages[name]
    flat, wanted = flatten_dict(params, sep="/"), flatten_dict(shapes, sep="/")
    places = flatten_dict(run.places(shapes), sep="/")
    if found.pretrained is not None:
        stored = start_pretrained(found.pretrained, run.config, name, source, shapes)
        return unflatten_dict(flat | found.pretrained.read_each(stored, places), sep="/")
    read = found.read(run.places)
    given = flatten_dict(
        transplant(params, read, source.part, found.path, _fills_layers(stage)), sep="/"
    )
    del read
    for path in [path for path in given if given[path] is not flat[path]]:
        # A copy: the first step takes the state's memory, and must not take the source's. One
        # parameter at a time is held twice.
        array = given.pop(path).astype(wanted[path].dtype)
        flat[path] = jax.device_put(array, places[path], may_alias=False)
    return unflatten_dict(flat, sep="/")


def _fills_layers(stage: Stage) -> bool:
    return "untrained_layers" in stage.compat


def open_sources(
    config: Config, name: str, workdir: str | Path
) -> list[tuple[Source, StoredStage]]:
    """Open the sources of a stage's initial weights (`Stage.sources`).

    Args:
      config: the run's config.
      name: the stage that starts.
      workdir: where the run's checkpoints are, for stages of the same run; they are left out if it
        is empty.

    Raises:
      CheckpointError: there is no trained stage; the message names the key.
    """
    found = []
    for source in config.stages[name].sources:
        own = source.path in config.stages
        if own and not workdir:
            continue
        path = f"{workdir}/stages/{source.path}" if own else source.path
        try:
            found.append((source, open_stage(path, vocab_size=config.data.vocab_size)))
        except CheckpointError as error:
            key = f"config.stages.{name}.{source.key}={source.path!r}"
            raise CheckpointError(f"{key}: {error}") from error
    return found


def _without(tree: Tree, paths: Container[str]) -> Tree:
    return unflatten_dict(
        {path: x for path, x in flatten_dict(tree, sep="/").items() if path not in paths}, sep="/"
    )


def check_origin(run: Run, name: str, meta: dict[str, Any], path: str) -> None:
    """Check that a checkpoint of a stage has the run's config, tokenizer and order of data."""
    changed = differences(run.config, read_config(meta["config"], path))
    CheckpointError.require(
        not changed,
        f"{path} is of another config ({'; '.join(changed[:3])}); use another --workdir",
    )
    fingerprint = run.data.tokenizer.fingerprint
    CheckpointError.require(
        meta["tokenizer"] == fingerprint,
        f"{path} is of tokenizer {meta['tokenizer']}, this run has {fingerprint}; use another"
        " --workdir",
    )
    stage = run.config.stages[name]
    next_row = data_offset(run.config, stage, meta["step"])
    for key, ours in {"stage": name, "next_row": next_row}.items():
        CheckpointError.require(
            meta[key] == ours,
            f"{path}: {key} {meta[key]!r}, expected {ours!r}. Delete it, to resume from the"
            " checkpoint before it",
        )


def _check_source(run: Run, part: Source, found: StoredStage, stage: Stage) -> None:
    """Check settings and tokenizer of a source whose weights fit in shape.

    With other heads, another kernel, norm or vocabulary they would be another function.
    """
    folder, source = found.path, found.config
    if not found.fingerprint:
        run.reporter.log(
            f"{folder}: no tokenizer is named there; its ids are taken for those of this run"
        )
    elif found.fingerprint != run.data.tokenizer.fingerprint:
        raise CheckpointError(
            f"{folder} was trained with tokenizer {found.fingerprint}, this run has"
            f" {run.data.tokenizer.fingerprint}; its embeddings mean"
            " other tokens"
        )
    elif part.path not in run.config.stages and not part.part:
        ours, theirs = ((c.seed, c.data.sequence_length) for c in (run.config, source))
        if ours == theirs and (rows := data_offset(source, found.settings, found.step)):
            run.reporter.log(
                f"{folder}: trained on rows 0 to {rows - 1} of the order of"
                f" config.seed={source.seed}, with which this stage begins again. Set another"
                " config.seed for another order"
            )
    ours, theirs = run.config.data.packing, source.data.packing
    if not {ours, theirs} & set(FULL_PACKINGS):
        where, remedy = f"config.data.packing={ours!r}", f"Train on rows as {folder} was"
        check_side(PACKINGS[ours][1], theirs, where, remedy, CheckpointError)
    family = found.settings.family
    for there, here in parts_of(part.part):
        for key_there, key_here in _settings_of(there, here, family, stage.family):
            theirs, ours = _meaning(source, key_there, there), _meaning(run.config, key_here, here)
            if (
                _fills_layers(stage)
                and key_here == "encoder"
                and theirs.final_norm <= ours.final_norm
            ):
                theirs = dataclasses.replace(theirs, layers=ours.layers, final_norm=ours.final_norm)
            CheckpointError.require(
                theirs == ours,
                f"{folder} was trained with config.model.{key_there}={theirs}, this run has"
                f" config.model.{key_here}={ours}",
            )


ENCODER = (*ENCODER_SETTINGS, "compat")
MODEL = ("encoder", *ENCODER, "decoder", "expansion", "layout", "memory_injection")


def _settings_of(
    there: str, here: str, family_there: str, family_here: str
) -> list[tuple[str, str]]:
    """Return pairs of settings, there and here, that must be equal for the part's weights."""
    if not here:
        return [(key, key) for key in (*MODEL, "reconstructor")]
    parts = (there, family_there), (here, family_here)
    stack_there, stack_here = (
        "encoder" if part.startswith("encoder") else find(family).backbone for part, family in parts
    )
    keys = ENCODER if there == here == "encoder" else ("compat",)
    return [(stack_there, stack_here), *((key, key) for key in keys)]


def _meaning(config: Config, key: str, part: str) -> Any:
    """Return a setting as far as it changes the function of the part's weights."""
    value = getattr(config.model, key)
    if key != "compat":
        return value
    # Full sequences have no padding, and then an encoder is the same function however it reads it.
    padded = {"attended_padding"} if config.data.packing not in FULL_PACKINGS else set()
    bearing = {"residual_noise"} | padded if part else FUNCTION_QUIRKS
    return tuple(sorted(bearing & set(value)))
