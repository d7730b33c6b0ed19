"""What makes tests of many small models quick: compilation without optimisation, and weights
without compilation."""

import functools
import gc
import importlib.metadata
import json
import os
import signal
import stat
from pathlib import Path
from typing import NamedTuple

# Compiling costs more than everything a test computes.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if importlib.metadata.version("jaxlib") < "0.11":  # which has no other emitters
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
# Before JAX starts; processes that tests start inherit it.
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Every core has its own process of tests, beside which more threads only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from memjax.testing.workdir import write_workdir  # noqa: E402

# Tracing makes many objects, few of them garbage: collecting it so often takes a sixth of the time.
gc.set_threshold(200_000, 50, 1000)

# Nor are the lines looked up where an operation was traced.
jax.config.update("jax_traceback_in_locations_limit", 0)

# `make test-beam` runs these, in an environment with other versions.
collect_ignore = ["beam"]

# A machine that is busy is no fault of a test.
settings.register_profile("memjax", deadline=None)
settings.load_profile("memjax")


def pytest_configure():
    """Lets processes that tests start hear SIGINT: a shell's background jobs ignore it, and what is
    ignored is inherited. (`Popen`'s preexec_fn would fork, which JAX's threads forbid.)"""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["pipe", "socket", "device", "folder"])
def put_no_file(request):
    """Puts what is no file, and is never read to an end, in the place of one."""

    def put(path):
        if request.param == "folder":
            path.mkdir()
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            os.mknod(path, stat.S_IFIFO if request.param == "pipe" else stat.S_IFSOCK)
        return path

    return put


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Marks those cases slow that `quick_cases` does not name; where it names slow ones, all that
    it does not name are night's."""
    cases = {}
    for item in items:
        for mark in item.iter_markers("quick_cases"):
            key = item.fspath, item.originalname, mark.args, mark.kwargs.get("slow")
            cases.setdefault(key, []).append(item)
    for (path, name, quick, slow), found in cases.items():
        ids, named = {item.callspec.id for item in found}, {*quick, *(slow or ())}
        if len(found) > 1 and not ids >= named:
            raise pytest.UsageError(f"{path}::{name}: {named}, expected some of {sorted(ids)}")
        for item in found:
            if item.callspec.id not in quick:
                late = slow is not None and item.callspec.id not in slow
                item.add_marker(pytest.mark.night if late else pytest.mark.slow)


@pytest.fixture
def quick_collection():
    """Garbage is looked for among the objects of a test alone: where a checkpoint cannot be read it
    is collected, and a process with many tests behind it has millions of objects."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def quick():
    """`jax.jit` that compiles several times as fast and returns numpy arrays, on which nothing more
    is compiled."""

    def jit(function, **kwargs):
        compiled = jax.jit(function, compiler_options=OPTIONS, **kwargs)
        return lambda *args: jax.device_get(compiled(*args))

    return jit


@functools.cache
def shapes_of(module, method, args, tree, settings):
    """Shapes of a module's variables, traced once for all tests of a process."""
    init = functools.partial(module.init, method=method, **dict(settings))
    return jax.eval_shape(init, jax.random.key(0), *jax.tree.unflatten(tree, args))


@pytest.fixture(scope="session")
def draw():
    """Variables of a module in which no entry is special: norms are not 1 and biases not 0."""

    def variables(module, *args, method=None, seed=0, **kwargs):
        leaves, tree = jax.tree.flatten(args)
        args = tuple(jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)) for x in leaves)
        shapes = shapes_of(module, method, args, tree, tuple(kwargs.items()))
        rng = np.random.default_rng(seed)
        return jax.device_put(
            jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), shapes)
        )

    return variables


@pytest.fixture(scope="session")
def made(tmp_path_factory, draw):
    """A workdir with the stages `autoencoder`, `combined` (on the same encoder) and
    `causal_control`, of drawn weights; not to be written to."""
    return write_workdir(tmp_path_factory.mktemp("made"), draw)


# Cases of golden/: what the published code computes on random weights

GOLDEN = Path(__file__).resolve().parent / "golden"


class Case(NamedTuple):
    """One case; `state` and `spec_file` are its files."""

    state: Path
    spec_file: Path
    spec: dict
    tensors: dict
    tokens: np.ndarray
    logits: np.ndarray


def read_case(name):
    state, spec_file = GOLDEN / f"{name}.safetensors", GOLDEN / f"{name}.json"
    arrays = np.load(GOLDEN / f"{name}.npz")
    return Case(
        state,
        spec_file,
        json.loads(spec_file.read_text()),
        load_file(state),
        arrays["input_ids"],
        arrays["logits"],
    )


@pytest.fixture(scope="session")
def golden():
    """Reads a case by name; its dicts are the caller's own."""
    return read_case


def pytest_generate_tests(metafunc):
    """Tests that take `case_name` run once for every case."""
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize(
            "case_name", sorted(path.stem for path in GOLDEN.glob("*.json")), scope="module"
        )
