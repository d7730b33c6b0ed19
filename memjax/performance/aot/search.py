"""Search of the layout in which a training step has the highest bound of its MFU.

A layout is a mesh, the activations that are computed again, and the number of microbatches. The
compiler decides: memory and traffic are its own numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from memjax.config import Config, Mesh
from memjax.config.choices import REMAT_POLICIES
from memjax.performance.aot.compiling import Report, compile_program, compute_bound, state_bytes
from memjax.performance.aot.topologies import devices, topology
from memjax.performance.stage_programs import find_stage
from memjax.sharding import batch_shards, check_rows, make_mesh


class Layout(NamedTuple):
    """The settings that a search varies; none of them changes the trained model."""

    mesh: Mesh
    remat: str
    microbatches: int

    def __str__(self) -> str:
        """Return the layout in words."""
        sizes = f"data={self.mesh.data},fsdp={self.mesh.fsdp},tensor={self.mesh.tensor}"
        return f"{sizes}, remat {self.remat}, microbatches {self.microbatches}"

    def of(self, config: Config, stage: str) -> Config:
        """Return a config with this layout for one of its stages."""
        changed = dataclasses.replace(config.stages[stage], grad_accum_steps=self.microbatches)
        return dataclasses.replace(
            config,
            mesh=self.mesh,
            model=dataclasses.replace(config.model, remat=self.remat),
            stages={**config.stages, stage: changed},
        )

    def flags(self, stage: str) -> str:
        """Return the flags that give a command this layout."""
        mesh = dataclasses.asdict(self.mesh)
        settings = {f"mesh.{axis}": mesh[axis] for axis in ("data", "fsdp", "tensor")} | {
            "model.remat": self.remat,
            f"stages.{stage}.grad_accum_steps": self.microbatches,
        }
        return " ".join(f"--config.{key}={value}" for key, value in settings.items())


def usual_meshes(topology_name: str) -> list[Mesh]:
    """Return meshes with parameters split over a slice, a quarter and a sixteenth, and whole."""
    where = topology(topology_name)
    parts = [where.slice_chips // share for share in (1, 4, 16, where.slice_chips)]
    return [Mesh(data=where.chips // part, fsdp=part) for part in dict.fromkeys(parts) if part]


def best(found: Sequence[tuple[Layout, Report]]) -> tuple[Layout, Report] | None:
    """Return the layout with the highest bound of its MFU, to 0.1 %, and its report.

    Among equal ones it is that in which a chip sends the fewest bytes. None if no layout fits.
    """

    def rank(one: tuple[Layout, Report]) -> tuple[float, float]:
        bound, traffic = one[1].bound, one[1].collectives.values()
        sent = sum(kind.ici + kind.dcn for kind in traffic)
        return (round(bound.mfu, 3) if bound else 0.0, -sent)

    return max((one for one in found if one[1].bound is not None), key=rank, default=None)


def search(
    config: Config, stage: str, topology_name: str, meshes: Sequence[Mesh]
) -> Iterator[tuple[Layout, Report]]:
    """Compile the training step in layouts that may be the best, and yield each with its report.

    Policies of remat are tried in the order of the FLOPs that they leave, the fewest first. With
    each mesh the fewest microbatches that fit are used: more of them only add traffic. Layouts
    that cannot be better than the best so far, by their FLOPs alone, are left out.

    Args:
      config: the run.
      stage: the stage; its batch size is kept.
      topology_name: such as v5e-256.
      meshes: those to try. One that splits parameters over fewer chips must come later, as it
        needs more memory.

    Raises:
      ConfigError: as in `compile_program`.
    """
    rows, where = find_stage(config, stage).batch_size, devices(topology_name)
    for mesh in meshes:
        check_rows(rows, 1, make_mesh(mesh, where), f"config.stages.{stage}.batch_size")
    usual = Layout(meshes[0], REMAT_POLICIES[0], 1)
    hbm = topology(topology_name).chip.hbm
    meshes = [
        mesh
        for mesh in meshes
        if state_bytes(usual._replace(mesh=mesh).of(config, stage), stage, topology_name) < hbm
    ]
    bounds = {
        remat: compute_bound(usual._replace(remat=remat).of(config, stage), stage, topology_name)
        for remat in REMAT_POLICIES
    }
    best = 0.0
    for remat in sorted(bounds, key=bounds.__getitem__, reverse=True):
        if bounds[remat] <= best:
            return
        least = 1.0
        for mesh in meshes:
            shards = batch_shards(make_mesh(mesh, where))
            counts = [n for n in range(1, rows // shards + 1) if rows % (shards * n) == 0]
            fits = False
            while not fits and (enough := [n for n in counts if n >= least]):
                layout = Layout(mesh, remat, enough[0])
                report = compile_program(layout.of(config, stage), stage, topology_name)
                yield layout, report
                fits = not report.problem
                if report.bound is not None:
                    best = max(best, report.bound.mfu)
                # What exceeds the memory are activations, which shrink with the microbatch.
                least = layout.microbatches * (1 if fits else max(1.01, report.peak / report.hbm))
