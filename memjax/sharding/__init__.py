"""Layout of arrays on devices, and coordination of the processes that own the devices."""

from memjax.sharding.mesh import (
    batch_parts,
    batch_sharding,
    batch_shards,
    check_rows,
    constrain,
    gather_params,
    local_rows,
    make_mesh,
    on_mesh,
    put_batch,
    replicated,
)
from memjax.sharding.param_overview import report_params
from memjax.sharding.process_monitor import ProcessMonitor
from memjax.sharding.processes import (
    ProcessesError,
    agreed,
    barrier,
    connect,
    first_process,
    require_equal,
)
from memjax.sharding.rules import (
    Placement,
    abstract,
    placements,
    shardings,
    spec_of,
    state_shardings,
)
from memjax.sharding.shares import alone, gather, leads, own, place, share, sharing, wait

__all__ = [
    "Placement",
    "ProcessMonitor",
    "ProcessesError",
    "abstract",
    "agreed",
    "alone",
    "barrier",
    "batch_parts",
    "batch_sharding",
    "batch_shards",
    "check_rows",
    "connect",
    "constrain",
    "first_process",
    "gather",
    "gather_params",
    "leads",
    "local_rows",
    "make_mesh",
    "on_mesh",
    "own",
    "place",
    "placements",
    "put_batch",
    "replicated",
    "report_params",
    "require_equal",
    "shardings",
    "share",
    "sharing",
    "spec_of",
    "state_shardings",
    "wait",
]
