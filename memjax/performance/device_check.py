"""A check of an accelerator in minutes: speed, memory, equality of kernels, and resuming.

    python -m memjax.performance.device_check --out=device.json

Each part is written to the file as soon as it is done; parts that begin after the time is up are
left out. `launch/device_check.sh` runs it and writes docs/benchmarks.md.

Shapes: B batch, T position, H query head, G key head, E head width, D width, V vocabulary.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import math
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memjax.checkpoints import load_params
from memjax.checkpoints.reading import finished_steps
from memjax.config import Backbone, Config, Data, Model
from memjax.data import prepare
from memjax.errors import MemjaxError, message
from memjax.experiment.reproduce.run import commit
from memjax.files import write_json
from memjax.layers import attend as attention
from memjax.layers.head import cross_entropy
from memjax.objectives import load_config
from memjax.performance.bench import BenchCase, measure
from memjax.progress import SILENT
from memjax.sharding.chips import peak_flops
from memjax.training import Evaluator, Run, train_stage
from memjax.version import __version__

CONFIG = "configs/benchmark.py:accelerator"
TIMED = ("train", "evaluate", "encode", "decode")
FLOAT32, BFLOAT16 = 1e-4, 2**-7
"""Largest relative differences that count as equal, by the type of the products."""
STEPS, SAVED_EVERY, KILLED_AT = 20, 10, 15
"""Steps of the run that is killed and resumed, between its checkpoints, and before its kill."""

Part = Callable[[], Mapping[str, Any]]


class Unequal(MemjaxError):
    """Two computations that must agree differ; the message names both."""


class _Killed(Exception):
    pass


def check_device(
    config: Config, minutes: float, write: Callable[[Mapping[str, Any]], None], steps: int = 10
) -> dict[str, Any]:
    """Run all parts on the default devices and return their results.

    Args:
      config: a run whose last stage trains a memory model; no data is read.
      minutes: parts that would begin later are left out.
      write: called with all results so far after each part.
      steps: timed steps of each program.
    """
    began, parts = time.monotonic(), {}
    found = platform() | {"config": config.name, "parts": parts}
    for name, part in _parts(config, steps).items():
        started = time.monotonic()
        if started - began > 60 * minutes:
            parts[name] = {"skipped": f"{minutes:g} minutes were over"}
        else:
            try:
                parts[name] = dict(part())
            except Exception as error:  # Of one part; the others may still work.
                parts[name] = {"error": message(f"{type(error).__name__}: {error}")}
            parts[name]["seconds"] = time.monotonic() - started
        write(found)
    return found


def platform() -> dict[str, Any]:
    """Return the devices and versions that are checked, as JSON."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "memjax": __version__,
        "jax": jax.__version__,
        "device_kind": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "peak_flops": peak_flops(device.device_kind),
        "hbm_bytes": (device.memory_stats() or {}).get("bytes_limit"),
    }


def _parts(config: Config, steps: int) -> dict[str, Part]:
    timed = {name: functools.partial(_timed, config, name, steps) for name in TIMED}
    return {
        "splash": splash_attention,
        "attention by blocks": attention_by_blocks,
        "cross entropy by blocks": cross_entropy_by_blocks,
        **timed,
        "resume": functools.partial(resume, config),
    }


def _timed(config: Config, program: str, steps: int) -> dict[str, Any]:
    """Time a program of the last stage."""
    result = measure(
        BenchCase("device check", config, config.curriculum[-1]), [program], steps=steps
    )
    report = result.to_json()["reports"][0]
    kept = ("tokens_per_second", "mfu", "compile_seconds", "planned_bytes", "spread", "tokens")
    return {key: report[key] for key in kept} | {"peak_bytes": result.memory["device"]}


def splash_attention() -> dict[str, Any]:
    """Compare the TPU kernel in bfloat16 with attention in float32.

    Raises:
      Unequal: outputs or gradients differ.
    """
    if jax.devices()[0].platform != "tpu":
        return {"skipped": "the kernel is of TPUs alone"}
    tensors, valid = _draw(640, heads=4, kv_heads=2, width=128, dtype=jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in tensors]
    kernel = functools.partial(attention.attend, valid=valid, causal=True, implementation="splash")
    return _equal("splash attention", kernel, tensors, _whole(valid), exact, BFLOAT16)


def attention_by_blocks() -> dict[str, Any]:
    """Compare attention over more than LONGEST_WHOLE positions with one product.

    Raises:
      Unequal: outputs or gradients differ.
    """
    length = attention.LONGEST_WHOLE + attention.QUERY_BLOCK
    tensors, valid = _draw(length, heads=2, kv_heads=1, width=64, dtype=jnp.float32)
    blocks = functools.partial(attention.attend, valid=valid, causal=True, implementation="xla")
    return _equal("attention by blocks", blocks, tensors, _whole(valid), tensors, FLOAT32)


def cross_entropy_by_blocks() -> dict[str, Any]:
    """Compare token losses by blocks with those of all logits.

    Raises:
      Unequal: losses or gradients differ.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    labels_BT = jax.random.randint(keys[2], (2, 512), 0, 4096)
    tensors = [
        jax.random.normal(keys[0], (2, 512, 256)),
        jax.random.normal(keys[1], (256, 4096)) / 16,
    ]

    def blocks(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
        return cross_entropy(hidden_BTD, kernel_DV, labels_BT, 128)[0]

    def whole(hidden_BTD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
        logits_BTV = hidden_BTD @ kernel_DV
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, labels_BT)

    return _equal("cross entropy by blocks", blocks, tensors, whole, tensors, FLOAT32)


def _draw(
    length: int, heads: int, kv_heads: int, width: int, dtype: Any
) -> tuple[list[jax.Array], jax.Array]:
    """Return query, key and value [1, T, H or G, E], and valid [1, T] with padding at the end."""
    keys = jax.random.split(jax.random.key(length), 3)
    counts = (heads, kv_heads, kv_heads)
    tensors = [
        jax.random.normal(key, (1, length, count, width), dtype)
        for key, count in zip(keys, counts, strict=True)
    ]
    return tensors, jnp.arange(length)[None] < length - 40


def _whole(valid_BT: jax.Array) -> Callable[..., jax.Array]:
    mask = valid_BT[:, None, None, :]
    return functools.partial(jax.nn.dot_product_attention, mask=mask, is_causal=True)


def _equal(
    name: str,
    ours: Callable[..., jax.Array],
    our_inputs: list[jax.Array],
    theirs: Callable[..., jax.Array],
    their_inputs: list[jax.Array],
    allowed: float,
) -> dict[str, Any]:
    """Compare outputs, and gradients of the sum of sines of outputs, by their norms."""

    def both(function: Callable[..., jax.Array], inputs: list[jax.Array]) -> list[np.ndarray]:
        def loss(*tensors: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = function(*tensors)[:, :-40].astype(jnp.float32)  # Padding is left out.
            return jnp.sum(jnp.sin(y)), y

        gradient = jax.value_and_grad(loss, argnums=tuple(range(len(inputs))), has_aux=True)
        (_, y), gradients = jax.jit(gradient)(*inputs)
        return [np.asarray(x, np.float64) for x in (y, *gradients)]

    with jax.default_matmul_precision("highest"):
        pairs = zip(both(ours, our_inputs), both(theirs, their_inputs), strict=True)
        output, *gradients = (np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)
    found = {"output": float(output), "gradients": float(max(gradients)), "allowed": allowed}
    worst = max(found["output"], found["gradients"])
    if not worst <= allowed:  # NaN is unequal too.
        raise Unequal(f"{name}: relative difference {worst:.3g}, expected at most {allowed:.3g}")
    return found


def resume(config: Config) -> dict[str, Any]:
    """Kill a small run between two checkpoints, resume it, and compare it with an undisturbed one.

    Args:
      config: the run whose model is trained at a small width, on random text.

    Raises:
      Unequal: the final parameters differ by more than rounding.
    """
    name = config.curriculum[-1]
    with tempfile.TemporaryDirectory() as folder, jax.enable_x64(False):
        small = _small(config, Path(folder))
        data = prepare(small.data, Path(folder) / "data")

        def run(workdir: str) -> Run:
            return Run(small, Path(folder) / workdir, data, SILENT)

        def kill(*_: object) -> NoReturn:
            raise _Killed

        train_stage(run("whole"), name)
        with contextlib.suppress(_Killed):
            train_stage(run("killed"), name, [Evaluator(KILLED_AT, kill)])
        saved = max(finished_steps(run("killed").checkpoints(name)))
        train_stage(run("killed"), name)
        ours, theirs = (
            jax.tree.leaves(load_params(run(workdir).checkpoints(name))[0])
            for workdir in ("killed", "whole")
        )
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)]
    worst = max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30) for a, b in pairs)
    if not worst <= FLOAT32:
        raise Unequal(f"a resumed run: relative difference {worst:.3g}, expected rounding alone")
    return {
        "steps": STEPS,
        "killed_at": KILLED_AT,
        "resumed_from": saved,
        "bitwise": all((a == b).all() for a, b in pairs),
        "difference": float(worst),
    }


def _small(config: Config, folder: Path) -> Config:
    """Return a run of the last stage alone, of small width, on text that is written to `folder`."""
    name, draw = config.curriculum[-1], np.random.default_rng(0)
    words = np.array(["memory", "chunk", "token", "reads", "holds", "text", "of", "the"])
    text = "\n".join(" ".join(draw.choice(words, 200)) + "." for _ in range(1000))
    (folder / "corpus.txt").write_text(text, encoding="utf-8")

    def narrow(stack: Backbone) -> Backbone:
        return dataclasses.replace(stack, width=128, layers=2, heads=2)

    model: Model = dataclasses.replace(
        config.model,
        encoder=narrow(config.model.encoder),
        decoder=narrow(config.model.decoder),
        reconstructor=narrow(config.model.reconstructor),
    )
    data = Data(
        corpus=str(folder / "corpus.txt"),
        tokenizer="",
        vocab_size=320,
        sequence_length=config.data.sequence_length,
    )
    fresh = dataclasses.replace(config.stages[name], init_from="", init_part="")
    rows = 8 * math.ceil(jax.device_count() / 8)
    stage = dataclasses.replace(fresh, steps=STEPS, warmup_steps=2, batch_size=rows)
    return dataclasses.replace(
        config,
        data=data,
        model=model,
        stages={name: stage},
        curriculum=(name,),
        controls=(),
        evaluators={},
        checkpoint_every=SAVED_EVERY,
    )


def failed(found: Mapping[str, Any]) -> list[str]:
    """Return the names of parts that ended with an error."""
    return [name for name, part in found["parts"].items() if "error" in part]


def main() -> int:
    """Check the devices of this machine and return the exit status: 1 if a part failed."""
    about = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    about.add_argument("--out", required=True, help="results, as JSON")
    about.add_argument("--minutes", type=float, default=10.0, help="parts begin within these")
    about.add_argument("--config", default=CONFIG, help="FILE or FILE:VARIANT with get_config()")
    given = about.parse_args()
    file, _, variant = given.config.partition(":")
    get_config = runpy.run_path(file)["get_config"]
    tree = get_config(variant) if variant else get_config()
    found = check_device(
        load_config(tree.to_dict()), given.minutes, functools.partial(write_json, given.out)
    )
    for name, part in found["parts"].items():
        facts = (f"{key} {value}" for key, value in part.items() if key != "spread")
        print(f"{name}: {', '.join(facts)}", flush=True)
    return int(bool(failed(found)))


if __name__ == "__main__":
    sys.exit(main())
