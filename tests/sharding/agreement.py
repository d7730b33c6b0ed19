"""What several processes say of one thing: each prints it as JSON for test_processes.py to compare.

python agreement.py FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from memjax.checkpoints import Checkpoints
from memjax.config import Mesh
from memjax.sharding import (
    ProcessesError,
    agreed,
    barrier,
    batch_sharding,
    connect,
    first_process,
    local_rows,
    make_mesh,
    on_mesh,
    put_batch,
    require_equal,
)

ROWS = 8
MESHES = {
    "ddp": Mesh(),
    "fsdp": Mesh(data=1, fsdp=-1),
    "fsdp_tp": Mesh(data=1, fsdp=-1, tensor=2),
    "tp": Mesh(data=1, tensor=-1),
}


def refused(text: str) -> str:
    """Why a text that may differ between processes is refused."""
    try:
        require_equal(text, "the text")
    except ProcessesError as error:
        return str(error)
    return ""


def placed(config: Mesh) -> dict:
    """The rows that this process reads of a batch whose row i is [i, i], those its devices then
    hold, and the sum over all."""
    mesh = make_mesh(config)
    places = local_rows(mesh, ROWS)
    batch = put_batch({"tokens": np.repeat(places, 2).reshape(-1, 2)}, mesh, ROWS)["tokens"]
    assert batch.shape == (ROWS, 2) and batch.sharding == batch_sharding(mesh)
    held = sorted(
        {int(row) for shard in batch.addressable_shards for row in np.asarray(shard.data)[:, 0]}
    )
    return {"read": places.tolist(), "held": held, "sum": int(on_mesh(jnp.sum, mesh)(batch))}


def restored(folder: Path) -> dict:
    """What is restored where the last process, and it alone, cannot read its part of the latest
    checkpoint."""
    place = batch_sharding(make_mesh(MESHES["fsdp"]))
    weights = {"weights": jax.jit(lambda: jnp.arange(4096.0), out_shardings=place)()}
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, weights, weights, {})
    barrier("saved")
    if first_process():
        for file in (
            folder / "2" / "params" / f"ocdbt.process_{jax.process_count() - 1}" / "d"
        ).iterdir():
            file.unlink()
    barrier("damaged")
    said, wanted = [], {"weights": jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=place)}
    with Checkpoints(folder, report=said.append) as checkpoints:
        step, *_ = checkpoints.restore_latest(wanted, wanted)
    return {"step": step, "said": said, "there": sorted(path.name for path in folder.iterdir())}


if __name__ == "__main__":
    connect()
    process = jax.process_index()
    said = {
        "process": process,
        "first": first_process(),
        "number": agreed(10.5 + process),
        "truth": agreed(process == 0),
        "same": refused("text"),
        "last differs": refused(f"text {process == jax.process_count() - 1}"),
        "meshes": {name: placed(config) for name, config in MESHES.items()},
        "restored": restored(Path(sys.argv[1])),
    }
    barrier("end")
    print(json.dumps(said))
