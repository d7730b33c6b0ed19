"""The command `memjax import-reference STATE.safetensors --spec=SPEC.json --out=DIR`."""

from collections.abc import Sequence

from absl import flags

EXAMPLE = "memjax import-reference model.safetensors --spec=model.json --out=imported/model"


def read_arguments(args: Sequence[str], values: flags.FlagValues, what: str, example: str) -> tuple[str, dict[str, str]]:
    """The one argument of a command line that is no flag, and the flags before it and behind it.

    Args:
      args: command name, argument and flags.
      values: the command's flags, those without default being required.
      what: what the argument is, for messages.
      example: a right command line.

    Raises:
      flags.Error: a flag is unknown, or something is missing or too much.
    """
    values.set_gnu_getopt(True)
    rest = values(list(args))[1:]
    if len(rest) != 1:
        wrong = f"{rest[1]!r} is one too many" if rest else "it is missing"
        raise flags.IllegalFlagValueError(f"give {what} and flags ({wrong}); for example: {example}")
    given = {name: values[name].value for name in values}
    for name, value in given.items():
        if value is None:
            raise flags.IllegalFlagValueError(f"--{name} is missing; for example: {example}")
    return rest[0], {name: str(value) for name, value in given.items()}


def run(args: Sequence[str]) -> int:
    """Writes a folder that `memjax.load` and `init_from` read."""
    values = flags.FlagValues()
    flags.DEFINE_string("spec", None, "What the model is: a JSON file (memjax/interop/spec.py).", flag_values=values)
    flags.DEFINE_string("out", None, "The folder to write.", flag_values=values)
    state, given = read_arguments(args, values, "one .safetensors file", EXAMPLE)
    from memjax.interop.checkpoint import import_checkpoint  # Imports JAX: after the flags are known to be right.

    out = given["out"]
    found = import_checkpoint(state, given["spec"], out)
    converted = f"; {found.converted} of its tensors were not float32 and are now" if found.converted else ""
    unused = f"; {len(found.unused)} tensors are unused and kept aside" if found.unused else ""
    print(f"{out}: {found.family} of {found.parameters:,} parameters{unused}{converted}")
    print(
        f"use it by memjax.load({out!r}), or train it on by --config.stages.STAGE.init_from={out}/stages/reference and"
        f" the model settings of {out}/config.json"
    )
    return 0
