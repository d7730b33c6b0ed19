"""Train the first stage of a config for its steps, and measure them.

    python docs/measure_steps.py CONFIG WORKDIR [KEY=VALUE ...]

CONFIG and KEY are as in `memjax train --config=CONFIG --config.KEY=VALUE`; data are prepared in
WORKDIR. A step begins when the one before has ended, so that it takes its memory alone; there is no
checkpoint. Prints JSON: `losses`; `step_seconds`, in the first of which the step is compiled;
`start_seconds` and `start_bytes`, until the state before the first step is there; `peak_bytes`.
Bytes are resident memory at most, since the process began.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

from memjax.cli.arguments import read_config
from memjax.config import Config
from memjax.data import TrainBatches, prepare
from memjax.experiment.preflight import check_stages
from memjax.objectives import Batch
from memjax.performance.bench.measure import peak_memory
from memjax.progress import SILENT
from memjax.sharding import put_batch
from memjax.training.compiled_steps import StageSteps
from memjax.training.init_state import Run, data_offset, init_train_state


def measure(config: Config, workdir: Path) -> Mapping[str, Any]:
    """Return the numbers of the first stage."""
    name = config.curriculum[0]
    stage = config.stages[name]
    run = Run(config, workdir, prepare(config.data, workdir / "data"), SILENT)
    check_stages(config, run.mesh)
    steps = StageSteps(config, name, run.mesh, run.ids)
    began = time.monotonic()
    state = jax.block_until_ready(init_train_state(run, name, steps.module, steps.optimizer))
    found = {
        "start_seconds": time.monotonic() - began,
        "start_bytes": peak_memory()["resident"],
        "losses": [],
        "step_seconds": [],
    }
    order = TrainBatches(run.data.train, stage.batch_size, config.seed, data_offset(config, stage))
    batches = order.from_step(0)
    with jax.set_mesh(run.mesh):
        train_step = steps.jit_train_step()
        for _ in range(stage.steps):
            batch = Batch(**put_batch(next(batches), run.mesh))
            began = time.monotonic()
            state, metrics = jax.block_until_ready(train_step(state, batch))
            found["step_seconds"].append(time.monotonic() - began)
            found["losses"].append(float(metrics.loss))
    batches.close()
    return found | {"peak_bytes": peak_memory()["resident"]}


def main() -> None:
    """Measure, and print the numbers."""
    if len(sys.argv) < 3:
        sys.exit("expected CONFIG WORKDIR [KEY=VALUE ...]")
    path, workdir, *settings = sys.argv[1:]
    changed = [(key, value) for key, _, value in (one.partition("=") for one in settings)]
    print(json.dumps(measure(read_config("config", path, changed), Path(workdir))))


if __name__ == "__main__":
    main()
