"""Compile a stage's steps for TPUs without having them, and read the compiler's analysis.

The programs are those of `memjax.training.compiled_steps`, the same as in training.
"""

import dataclasses
import functools
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from memjax.config import Config, ConfigError, Mesh, Stage
from memjax.models import can
from memjax.performance.aot import hlo
from memjax.performance.aot.collectives import Traffic, by_kind, collectives, total
from memjax.performance.aot.roofline import Roofline, Work, hbm_bytes, roofline
from memjax.performance.aot.topologies import devices, topology
from memjax.performance.stage_programs import StagePrograms, find_stage
from memjax.sharding import make_mesh
from memjax.training.encode_corpus import reads_memories
from memjax.training.flops import counted_flops, model_flops

PROGRAMS = ("train", "evaluate", "generate")
"""A training step, an evaluation step without gradients, and (memory models) greedy reconstruction
of chunks token by token."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Analysis of a program on a topology; amounts are per chip, in bytes, FLOPs and seconds."""

    program: str
    stage: str
    topology: str
    chips: int
    mesh: dict[str, int]
    rows: int
    """Batch size over all chips."""
    tokens: int
    """Tokens of a batch over all chips."""
    parameters: int
    """Parameters of the whole model."""
    hbm: int
    """HBM of a chip that a program may use."""
    problem: str = ""
    """Reason that the program does not fit, and advice.

    Of the fields below it then has `peak`, where the compiler reports it, and `seconds`."""
    arguments: int = 0
    temporary: int = 0
    peak: int = 0
    """Memory of a chip in use at once; of a program that does not fit, what it needs."""
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    hbm_moved: int = 0
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    bound: Roofline | None = None
    seconds: float = 0.0
    """Compilation time on this machine."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


def compile_program(
    config: Config, name: str, topology_name: str, mesh: Mesh | None = None, program: str = "train"
) -> Report:
    """Compile a program of stage `name` for a topology.

    Args:
      config: the run.
      name: the stage.
      topology_name: such as v5e-256 or 2xv5e-256 (`topologies.topology`).
      mesh: replaces `config.mesh`.
      program: one of PROGRAMS.

    Raises:
      ConfigError: there is no such stage or topology, the stage's family has no such program,
        libtpu is not installed, or the batch does not divide over the chips.
    """
    stage = find_stage(config, name)
    ConfigError.require(
        program != "generate" or can(stage.family, "reads_memories"),
        f"--program=generate: got a stage of family {stage.family}, expected memory_model, as it"
        " reconstructs chunks from memories",
    )
    config = dataclasses.replace(config, mesh=mesh or config.mesh)
    where = topology(topology_name)
    programs = _programs(config, name, topology_name)
    report = functools.partial(
        Report,
        program=program,
        stage=name,
        topology=where.name,
        chips=where.chips,
        mesh=dict(programs.mesh.shape),
        rows=stage.batch_size,
        tokens=stage.batch_size * config.data.sequence_length,
        parameters=programs.parameters,
        hbm=where.chip.hbm,
    )
    began = time.monotonic()
    with jax.set_mesh(programs.mesh):
        jitted, arguments = getattr(programs, program)()
        traced = jitted.trace(*arguments)
        counted = counted_flops(traced.jaxpr) if program != "generate" else 0
        try:
            compiled, text = _compile(traced.lower())
        except jax.errors.JaxRuntimeError as error:
            problem, needed = _too_large(error, config, stage)
            return report(problem=problem, peak=needed, seconds=time.monotonic() - began)
    seconds, parsed = time.monotonic() - began, hlo.parse(text)
    memory, found = compiled.memory_analysis(), collectives(parsed)
    traffic, moved = total(found), hbm_bytes(parsed)
    useful = _model_flops(programs, program) / where.chips
    work = Work(useful, counted / where.chips, moved, traffic.ici, traffic.dcn)
    return report(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        model_flops=useful,
        hardware_flops=work.hardware_flops,
        hbm_moved=moved,
        collectives=by_kind(found),
        bound=roofline(work, where.chip) if useful else None,
        seconds=seconds,
    )


def compute_bound(config: Config, name: str, topology_name: str) -> float:
    """Return the MFU of a training step that its FLOPs alone allow; nothing is compiled.

    It is the share of its FLOPs that the model needs: others compute activations again.

    Args:
      config: the run.
      name: the stage.
      topology_name: such as v5e-256.

    Raises:
      ConfigError: as in `compile_program`.
    """
    programs = _programs(config, name, topology_name)
    with jax.set_mesh(programs.mesh):
        jitted, arguments = programs.train()
        counted = counted_flops(jitted.trace(*arguments).jaxpr)
    return _model_flops(programs, "train") / counted


def state_bytes(config: Config, name: str, topology_name: str) -> int:
    """Return the bytes of a chip that the state of a stage takes; nothing is compiled.

    Args:
      config: the run.
      name: the stage.
      topology_name: such as v5e-256.

    Raises:
      ConfigError: as in `compile_program`.
    """
    programs = _programs(config, name, topology_name)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(programs.state)
    )


def _programs(config: Config, name: str, topology_name: str) -> StagePrograms:
    find_stage(config, name)
    return StagePrograms(config, name, make_mesh(config.mesh, devices(topology_name)))


def _model_flops(programs: StagePrograms, program: str) -> float:
    """Return the FLOPs that the model needs for a program, on all chips; 0 for `generate`."""
    config, stage = programs.config, programs.stage
    # Held-out sequences are encoded whatever training reads.
    stored = program == "train" and reads_memories(config, stage, programs.trainable)
    scored = stage if program == "train" else dataclasses.replace(stage, scored_chunks={})
    needed = model_flops(config, scored, stored)
    return {"train": needed.total, "evaluate": needed.forward}.get(program, 0.0)


def _compile(lowered: Any) -> tuple[Any, str]:
    """Return the compiled program, and its text.

    libtpu 0.0.51 cannot return the text of programs for v5p that look up tokens on a SparseCore. It
    can write it to files: that of the whole program, and those of parts split from it.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        files = Path(folder).rglob("*.after_optimizations.txt")
        text = max(files, key=lambda file: file.stat().st_size).read_text(encoding="utf-8")
    return compiled, text


def _too_large(error: Exception, config: Config, stage: Stage) -> tuple[str, int]:
    """Return the compiler's out-of-memory error as one line, with advice, and the bytes needed.

    Bytes are 0 where the compiler does not report them.

    Raises:
      JaxRuntimeError: the error is another one.
    """
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    needs = re.search(
        r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)|Used ([\d.]+\w) of ([\d.]+\w) hbm",
        str(error),
    )
    used, there = [amount for amount in needs.groups() if amount] if needs else ("", "")
    advice = [
        f"more microbatches (config.stages.NAME.grad_accum_steps, now {stage.grad_accum_steps}) or"
        f" fewer rows (now {stage.batch_size})",
        "a mesh that splits parameters over more chips (--mesh=fsdp or fsdp_tp)",
    ]
    if config.model.remat != "nothing_saveable":
        advice.insert(0, f"config.model.remat='nothing_saveable' (now {config.model.remat!r})")
    amount = f"{used} of {there} HBM per chip" if used else "more HBM than a chip has"
    return f"out of memory: needs {amount}; try {', or '.join(advice)}", _bytes(used)


def _bytes(amount: str) -> int:
    """Return the bytes of an amount such as 23.5G; 0 of none."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(amount.rstrip("KMGT")) * units.get(amount[-1], 1)) if amount else 0
