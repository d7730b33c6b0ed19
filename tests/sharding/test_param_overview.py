"""The overview of parameters states sizes, and over several devices where each part lies."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from memjax.config import Mesh
from memjax.progress import Reporter
from memjax.sharding import report_params


@pytest.mark.parametrize("devices", [1, 8])
def test_sizes_and_places_are_reported(devices, capsys):
    shape = jax.ShapeDtypeStruct
    params = {
        "embed": {"embedding": shape((2048, 512), jnp.float32)},
        "backbone": {"norm": {"scale": shape((512,), jnp.bfloat16)}},
    }
    mesh = AbstractMesh((1, min(4, devices), max(1, devices // 4)), ("data", "fsdp", "tensor"))
    moving = {"embed": params["embed"]}
    report_params(Reporter(), "stage", params, moving, Mesh().rules, mesh)
    first, *rest = capsys.readouterr().out.splitlines()
    held = 4.0 / devices
    assert first == f"stage: 1.0 M parameters, 1.0 M of them trained; {held:.1f} MiB per device"
    rows = [line.split("│")[1:-1] for line in rest if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    expected = [
        ["backbone/norm/scale", "512", "bfloat16", "–", "1.0", "frozen"],
        ["embed/embedding", "2048 512", "float32", "tensor fsdp", "512.0", ""],
    ]
    assert cells == (expected if devices > 1 else [])
    assert devices == 1 or rest[0] == "stage over 8 devices (data 1, fsdp 4, tensor 2)"
