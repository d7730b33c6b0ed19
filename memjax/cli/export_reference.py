"""The command `memjax export-reference DIR --out=STATE.safetensors [--stage=STAGE]`."""

from collections.abc import Sequence

from absl import flags

from memjax.cli.arguments import read_one

EXAMPLE = "memjax export-reference imported/model --out=model.safetensors"


def run(args: Sequence[str]) -> int:
    """Writes the state dict of a folder that `import-reference` wrote."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "The .safetensors file to write.", flag_values=values)
    flags.DEFINE_string(
        "stage",
        "reference",
        "A stage of the folder, or, with a slash, the folder of a stage that trained the same model on.",
        flag_values=values,
    )
    found = read_one(args, values, __doc__ or "", EXAMPLE, ("out",), "one folder")
    if found is None:
        return 0
    folder, given = found
    from memjax.interop.checkpoint import export_checkpoint  # Imports JAX: after the flags are known to be right.

    tensors = export_checkpoint(folder, given["out"], given["stage"])
    print(f"{given['out']}: {tensors} tensors under the published names")
    return 0
