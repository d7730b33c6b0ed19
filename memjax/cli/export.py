"""The command `memjax export --workdir=RUN --out=FOLDER`: a trained stage as a folder that others can load.

    memjax export --workdir=runs/quickstart --out=quickstart-memory-model
    memjax export --workdir=runs/quickstart --stage=autoencoder --out=quickstart-autoencoder --dtype=bfloat16

writes weights as safetensors, every setting and the checksums (config.json), the tokenizer and a model card (README.md). `memjax.load(FOLDER)`
gives the model; in float32 it is the same to the last bit. With --like, the Hugging Face folder that the stage's decoder came from, the
decoder is written in that folder's form instead, for transformers to load:

    memjax export --workdir=runs/llama --like=Llama-3.2-1B --out=llama-that-copies
"""

from collections.abc import Sequence

from absl import flags

from memjax.cli.arguments import read_own

EXAMPLE = "memjax export --workdir=runs/quickstart --out=quickstart-memory-model"
DTYPES = ("float32", "bfloat16")


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Where `memjax train` wrote.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write.", flag_values=values)
    flags.DEFINE_string("stage", "", "Name of the stage; by default the last of the curriculum.", flag_values=values)
    flags.DEFINE_enum("dtype", "float32", DTYPES, "What weights are written as.", flag_values=values)
    flags.DEFINE_float("shard_gb", 5.0, "Gigabytes of a file of weights, at most.", 1e-9, flag_values=values)
    flags.DEFINE_string("like", "", "A Hugging Face folder whose form the decoder is written in, alone.", flag_values=values)
    flags.DEFINE_string("license", "unknown", "Of the weights, as the Hugging Face Hub names licenses.", flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Writes the folder and says what is in it."""
    given = read_own(args, define_flags(), __doc__ or "", EXAMPLE, ("workdir", "out", "license"))
    if given is None:
        return 0
    # These import JAX: after the flags are known to be right.
    from memjax.exporting.writing import GIGABYTE, export
    from memjax.training.progress import Reporter

    say = Reporter().say
    if given["like"]:
        from memjax.interop.huggingface import save_pretrained
        from memjax.loading import read_stage

        trained = read_stage(given["workdir"], given["stage"])
        save_pretrained(trained.params, given["like"], given["out"])
        say(f"{given['out']}: the decoder of stage {trained.name} at step {trained.step}, in the form of {given['like']}")
        return 0
    limit = max(1, round(given["shard_gb"] * GIGABYTE))
    out, license_id = given["out"], given["license"]
    manifest = export(given["workdir"], out, given["stage"], given["dtype"], limit, license_id)
    weights = [manifest.files[name] for name in manifest.weights]
    say(
        f"{out}: stage {manifest.stage} at step {manifest.step}, {manifest.parameters:,} parameters in {manifest.dtype},"
        f" {sum(file.bytes for file in weights):,} bytes in {len(weights)} file{'s' if len(weights) > 1 else ''}"
    )
    say(f"use it by memjax.load({out!r}); its card is {out}/README.md")
    return 0
