"""Reading and writing files: whole or not at all, JSON within limits, and manifests."""

from memjax.files.atomic import (
    atomic_dir,
    atomic_file,
    check_writable,
    explain,
    local,
    locked,
    regular,
    remove_temporary,
    resumable_dir,
    sha256,
    write_json,
    write_text,
    writing,
)
from memjax.files.json_values import (
    JSON_LIMIT,
    parse_json,
    read_json,
    require_shape,
)
from memjax.files.manifest import (
    check_seal,
    check_size,
    entries,
    read_manifest,
    require_inside,
    sealed,
    verify,
)

__all__ = [
    "JSON_LIMIT",
    "atomic_dir",
    "atomic_file",
    "check_seal",
    "check_size",
    "check_writable",
    "entries",
    "explain",
    "local",
    "locked",
    "parse_json",
    "read_json",
    "read_manifest",
    "regular",
    "remove_temporary",
    "require_inside",
    "require_shape",
    "resumable_dir",
    "sealed",
    "sha256",
    "verify",
    "write_json",
    "write_text",
    "writing",
]
