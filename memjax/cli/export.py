"""The command `memjax export`."""

from argparse import Namespace
from pathlib import Path

from memjax.cli.arguments import Arguments, UsageError, refuse, take
from memjax.cli.flags import STAGE_PATH
from memjax.progress import Reporter

FORMATS = ("memjax", "reference", "huggingface")
ARGUMENTS = Arguments(
    example="memjax export runs/quickstart --out=quickstart-memory-model",
    words={"PATH": STAGE_PATH},
    flags=take(
        out={"what": "New folder (reference: .safetensors file) to write", "required": True},
        format={"what": "export", "choices": FORMATS, "default": "memjax"},
        spec={
            "what": "the Hugging Face folder that the decoder came from, or the folder that `memjax"
            " import` wrote (by default PATH)"
        },
        dtype={"choices": ("float32", "bfloat16"), "default": "float32"},
        shard_gb={"default": 5.0},
        license={"default": "unknown"},
    ),
    notes="""
    The format memjax is a folder of safetensors weights, every setting and the checksums
    (config.json), the tokenizer and a model card (README.md). `memjax.load(FOLDER)` returns the
    model; in float32 every bit is kept. --dtype, --shard_gb and --license belong to this format.

    The format huggingface writes the decoder alone, in the form of the folder --spec, for
    transformers to load. The format reference writes the state dict of the published PyTorch code,
    under its names.
    """,
)


def run(given: Namespace) -> None:
    """Writes the export and prints what it contains."""
    if given.format != "memjax":
        refuse(ARGUMENTS, given, ("dtype", "shard_gb", "license"), f"with --format={given.format}")
    write = {"memjax": _memjax, "reference": _reference, "huggingface": _huggingface}[given.format]
    write(given)


def _huggingface(given: Namespace) -> None:
    UsageError.require(
        given.spec,
        "--spec: missing, expected the Hugging Face folder that the decoder came from. For"
        " example: memjax export runs/llama --format=huggingface --spec=Llama-3.2-1B --out=new",
    )
    # These import JAX: after the flags are checked.
    from memjax.interop.huggingface.weights import save_pretrained
    from memjax.interop.stage import open_stage

    trained = open_stage(given.path)
    save_pretrained(trained.read(None), given.spec, given.out)
    Reporter().log(
        f"{given.out}: the decoder of stage {trained.name} at step {trained.step}, in the form of"
        f" {given.spec}"
    )


def _memjax(given: Namespace) -> None:
    UsageError.require(
        not given.spec,
        "--spec: given, expected none with --format=memjax. Add --format=huggingface or"
        " --format=reference.",
    )
    from memjax.checkpoints.export_writing import GIGABYTE
    from memjax.experiment.export import export

    limit, out = max(1, round(given.shard_gb * GIGABYTE)), given.out
    manifest = export(
        given.path, out, dtype=given.dtype, shard_bytes=limit, license_id=given.license
    )
    weights = [manifest.files[name] for name in manifest.weights]
    reporter = Reporter()
    reporter.log(
        f"{out}: stage {manifest.stage} at step {manifest.step}, {manifest.parameters:,}"
        f" parameters in {manifest.dtype}, {sum(file['bytes'] for file in weights):,} bytes in"
        f" {len(weights)} file{'s' if len(weights) > 1 else ''}"
    )
    reporter.log(f"load it by memjax.load({out!r}); its card is {out}/README.md")


def _reference(given: Namespace) -> None:
    from memjax.interop.reference.folder import export_checkpoint

    # With another folder's spec, PATH is the stage that was trained from that folder.
    stage = {"stage": str(Path(given.path).absolute())} if given.spec else {}
    tensors = export_checkpoint(given.spec or given.path, given.out, **stage)
    Reporter().log(f"{given.out}: {tensors} tensors under the published names")
