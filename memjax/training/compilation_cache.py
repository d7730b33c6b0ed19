"""JAX's persistent compilation cache in the folder of a run, for quick restarts."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as cache

FOLDER = "compilation_cache"


@contextlib.contextmanager
def programs_kept(workdir: epath.Path) -> Iterator[None]:
    """Read compiled programs from `workdir` and write new ones to it, while the block runs.

    Entries are keyed by program, devices and versions, so that a run on another slice compiles its
    own. Process 0 writes. An entry that cannot be read or written is a warning of JAX. A cache is
    code that runs: it must be as trusted as the run.

    Args:
      workdir: a folder on disk or in a bucket; entries lie in its folder `compilation_cache`.
    """
    wanted = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(workdir / FOLDER),
        # By default JAX leaves out programs that compile within a second.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, Any]) -> None:
    # An open cache would keep its folder.
    cache.reset_cache()
    for name, value in values.items():
        jax.config.update(name, value)
