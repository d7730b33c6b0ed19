"""Where arrays lie on the devices, and how the processes that hold the devices work as one."""

from memjax.sharding.mesh import (
    batch_parts,
    batch_sharding,
    batch_shards,
    check_rows,
    constrain,
    gathered,
    local_rows,
    make_mesh,
    on_mesh,
    put_batch,
    replicated,
)
from memjax.sharding.processes import ProcessesError, agreed, barrier, connect, first_process, require_equal
from memjax.sharding.rules import Placement, abstract, placements, shardings, spec_of, state_shardings
from memjax.sharding.watch import Watch

__all__ = [
    "Placement",
    "ProcessesError",
    "Watch",
    "abstract",
    "agreed",
    "barrier",
    "batch_parts",
    "batch_sharding",
    "batch_shards",
    "check_rows",
    "connect",
    "constrain",
    "first_process",
    "gathered",
    "local_rows",
    "make_mesh",
    "on_mesh",
    "placements",
    "put_batch",
    "replicated",
    "require_equal",
    "shardings",
    "spec_of",
    "state_shardings",
]
