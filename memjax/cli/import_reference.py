"""The command `memjax import-reference STATE.safetensors --spec=SPEC.json --out=DIR`."""

from collections.abc import Sequence

from absl import flags

from memjax.cli.arguments import read_one

EXAMPLE = "memjax import-reference model.safetensors --spec=model.json --out=imported/model"


def run(args: Sequence[str]) -> int:
    """Writes a folder that `memjax.load` and `init_from` read."""
    values = flags.FlagValues()
    flags.DEFINE_string("spec", None, "What the model is: a JSON file (memjax/interop/spec.py).", flag_values=values)
    flags.DEFINE_string("out", None, "The folder to write.", flag_values=values)
    found = read_one(args, values, __doc__ or "", EXAMPLE, ("spec", "out"), "one .safetensors file")
    if found is None:
        return 0
    state, given = found
    from memjax.interop.checkpoint import import_checkpoint  # Imports JAX: after the flags are known to be right.

    out = given["out"]
    imported = import_checkpoint(state, given["spec"], out)
    converted = f"; {imported.converted} of its tensors were not float32 and are now" if imported.converted else ""
    unused = f"; {len(imported.unused)} tensors are unused and kept aside" if imported.unused else ""
    print(f"{out}: {imported.family} of {imported.parameters:,} parameters{unused}{converted}")
    print(
        f"use it by memjax.load({out!r}), or train it on by --config.stages.STAGE.init_from={out}/stages/reference and"
        f" the model settings of {out}/config.json"
    )
    return 0
