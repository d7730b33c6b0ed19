"""A stage's steps compiled for TPUs that are not there, and what the compiler says of them.

The programs are those of `memjax.training.jitted`: what is measured here is what will run.
"""

import dataclasses
import functools
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from memjax.aot import hlo
from memjax.aot.collectives import Traffic, by_kind, collectives, total
from memjax.aot.flops import counted_flops, model_flops
from memjax.aot.roofline import Roofline, Work, hbm_bytes, roofline
from memjax.aot.topologies import Topology, devices, topology
from memjax.config import REGRESSIONS, WEIGHTINGS, Config, ConfigError, Mesh, Stage
from memjax.instruments import regenerate
from memjax.models import MemoryModel, build
from memjax.objectives import Batch, SpecialIds
from memjax.sharding import batch_sharding, check_rows, make_mesh
from memjax.training.jitted import abstract_state, jit_evaluation_step, jit_train_step
from memjax.training.optimizer import make_optimizer, split
from memjax.training.start import abstract_params

PROGRAMS = ("train", "evaluate", "decode")
"""A training step, a look at held-out rows without gradients, and (memory models) chunks regenerated token by token."""


@dataclasses.dataclass(frozen=True)
class Report:
    """One program on one topology; all amounts are those of one chip, in bytes, FLOPs and seconds."""

    program: str
    stage: str
    topology: str
    chips: int
    mesh: dict[str, int]
    rows: int
    """In a batch, over all chips."""
    tokens: int
    """In a batch, over all chips."""
    parameters: int
    """In the whole model."""
    hbm: int
    """What a chip has for a program."""
    problem: str = ""
    """Why it does not fit, and what to change; what follows is then empty."""
    arguments: int = 0
    temporary: int = 0
    peak: int = 0
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    hbm_moved: int = 0
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    bound: Roofline | None = None
    seconds: float = 0.0
    """That compiling took, on this machine."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = dataclasses.asdict(self)
        if self.bound is not None:
            plain["bound"] |= {"seconds": self.bound.seconds, "binds": self.bound.binds}
        return plain


def compile_program(config: Config, name: str, topology_name: str, mesh: Mesh | None = None, program: str = "train") -> Report:
    """Compiles a program of stage `name` for a topology.

    Args:
      config: the run.
      name: the stage.
      topology_name: such as v5e-256 or 2xv5e-256 (`topologies.topology`).
      mesh: in place of `config.mesh`.
      program: one of PROGRAMS.

    Raises:
      ConfigError: there is no such stage, topology or program, libtpu is not installed, or the batch does not divide over the chips.
    """
    if name not in config.stages:
        raise ConfigError(f"--stage={name!r} is no stage of this config; its stages are {', '.join(sorted(config.stages))}")
    if program not in PROGRAMS:
        raise ConfigError(f"--program={program!r} is not known; it can be {', '.join(PROGRAMS)}")
    config = dataclasses.replace(config, mesh=mesh or config.mesh)
    where, stage = topology(topology_name), config.stages[name]
    grid = make_mesh(config.mesh, devices(topology_name))
    check_rows(stage.rows, stage.microbatches, grid, f"config.stages.{name}.rows")
    module = build(config, stage)
    report = Report(
        program=program,
        stage=name,
        topology=where.name,
        chips=where.chips,
        mesh=dict(grid.shape),
        rows=stage.rows,
        tokens=stage.rows * config.data.row_tokens,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(abstract_params(module, config, stage))),
        hbm=where.chip.hbm,
    )
    began = time.monotonic()
    with jax.set_mesh(grid):
        traced = _trace(config, stage, grid, module, program)
        counted = counted_flops(traced.jaxpr) if program != "decode" else 0
        try:
            lowered = traced.lower()
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return dataclasses.replace(report, problem=_too_large(error, config, stage), seconds=time.monotonic() - began)
        text = _text(lowered, compiled)
    report = dataclasses.replace(report, seconds=time.monotonic() - began)
    return _read(report, compiled, hlo.parse(text), where, config, stage, counted)


def _trace(config: Config, stage: Stage, mesh: jax.sharding.Mesh, module: nn.Module, program: str) -> Any:
    """The program on abstract arrays."""
    ids = SpecialIds()
    trainable, _ = split(abstract_params(module, config, stage), stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    state, batch = abstract_state(config, stage, mesh, module, optimizer), _abstract_batch(config, stage, mesh)
    if program == "train":
        return jit_train_step(config, stage, mesh, module, optimizer, ids).trace(state, batch)
    params = state.params
    if program == "evaluate":
        names = tuple(sorted(set(stage.objectives) - {*REGRESSIONS}))
        return jit_evaluation_step(stage, mesh, module, names, ids).trace(params, batch)
    if not isinstance(module, MemoryModel):
        raise ConfigError(
            f"--program=decode regenerates chunks from memories; a stage of family {stage.family} has none to read"
        )
    ask = next((name for name in ("copy", "plain_copy", "blank_copy") if name in stage.objectives), "copy")
    decode = functools.partial(regenerate, module, ids=ids, ask=ask, compat=stage.compat)
    return jax.jit(lambda params, tokens: decode(params, tokens)).trace(params, batch.tokens)


def _abstract_batch(config: Config, stage: Stage, mesh: jax.sharding.Mesh) -> Batch:
    def rows(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((stage.rows, *shape), dtype, sharding=batch_sharding(mesh))

    model, weighed = config.model, set(stage.objectives) & {*WEIGHTINGS, *REGRESSIONS}
    memory = (config.chunks, model.vectors, model.encoder.width)
    return Batch(
        tokens=rows((config.data.row_tokens,), jnp.int32),
        attribution=rows((config.data.row_tokens,), jnp.float32) if weighed else None,
        memories=rows(memory, jnp.bfloat16) if config.data.memories else None,
    )


def _text(lowered: Any, compiled: Any) -> str:
    """The compiled program as text."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # libtpu 0.0.51 cannot hand over programs for v5p that look tokens up on a SparseCore. It can write them to files, the whole program
        # beside what was taken out of it.
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            files = Path(folder).rglob("*.after_optimizations.txt")
            return max(files, key=lambda file: file.stat().st_size).read_text(encoding="utf-8")


def _read(
    report: Report, compiled: Any, program: hlo.Module, where: Topology, config: Config, stage: Stage, counted: int
) -> Report:
    """What the compiled program says of itself."""
    memory, found = compiled.memory_analysis(), collectives(program, report.mesh)
    traffic, moved = total(found), hbm_bytes(program)
    needed = model_flops(config, stage, stored=bool(config.data.memories))
    useful = {"train": needed.total, "evaluate": needed.forward}.get(report.program, 0.0) / report.chips
    work = Work(useful, counted / report.chips, moved, traffic.ici, traffic.dcn)
    return dataclasses.replace(
        report,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        model_flops=useful,
        hardware_flops=work.hardware_flops,
        hbm_moved=moved,
        collectives=by_kind(found),
        bound=roofline(work, where.chip) if useful else None,
    )


def _too_large(error: Exception, config: Config, stage: Stage) -> str:
    """The compiler's complaint in a line, with what would help.

    Raises:
      JaxRuntimeError: it complains of something else.
    """
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    needs = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)|Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
    used, there = [amount for amount in needs.groups() if amount] if needs else ("", "")
    advice = []
    if config.model.remat != "nothing_saveable":
        advice.append(f"config.model.remat='nothing_saveable' (now {config.model.remat!r})")
    advice.append(
        f"more microbatches (config.stages.NAME.microbatches, now {stage.microbatches}) or fewer rows (now {stage.rows})"
    )
    advice.append("a mesh that splits parameters over more chips (--mesh=fsdp or fsdp_tp)")
    amount = f"{used} of {there} HBM a chip" if used else "more HBM than a chip has"
    return f"out of memory: needs {amount}; try {', or '.join(advice)}"
