"""The command `memjax import`."""

from argparse import Namespace

from memjax.cli.arguments import Arguments, take
from memjax.progress import Reporter

ARGUMENTS = Arguments(
    example="memjax import model.safetensors --spec=model.json --out=imported/model",
    words={"FILE": "The state dict of the published PyTorch code, as .safetensors."},
    flags=take(
        out={"what": "New folder to write", "metavar": "FOLDER", "required": True},
        format={"what": "weights", "choices": ("reference",), "default": "reference"},
        spec={
            "what": "its architecture as JSON (memjax/interop/reference/spec.py)",
            "required": True,
        },
    ),
    notes="""
    `memjax.load` reads the folder, without a tokenizer. A stage starts from it by
    --config.stages.STAGE.init_from=FOLDER/stages/reference. Weights of Hugging Face need no import:
    pass hf:FOLDER wherever a trained stage is expected.
    """,
)


def run(given: Namespace) -> None:
    """Writes a folder that `memjax.load` and `init_from` read."""
    # It imports JAX: after the flags are checked.
    from memjax.interop.reference.folder import import_checkpoint

    out = given.out
    imported = import_checkpoint(given.file, given.spec, out)
    facts = [f"{imported.family} of {imported.parameters:,} parameters"]
    if imported.unused:
        facts.append(f"{len(imported.unused)} unused tensors are kept aside")
    if imported.converted:
        facts.append(f"{imported.converted} tensors were converted to float32")
    reporter = Reporter()
    reporter.log(f"{out}: {'; '.join(facts)}")
    reporter.log(
        f"load it by memjax.load({out!r}), or train it by --config.stages.STAGE.init_from="
        f"{out}/stages/reference with the model settings of {out}/config.json"
    )
