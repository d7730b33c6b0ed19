"""The command `memjax embed-hf MODEL --corpus=PATH|python-docs --out=FILE.npz|FILE.arrayrecord`: vectors of texts by a Hugging Face encoder.

MODEL is a folder that save_pretrained of a model and its tokenizer wrote, or a name of the hub; whatever transformers.AutoModel loads and
gives hidden states will do, causal or bidirectional. Needs the extra: pip install 'memjax[embed]'. What it writes is probed beside others:

    memjax embed-hf models/bert --corpus=python-docs --out=bert.npz
    memjax probe --encoder=bert.npz

Texts are --length tokens of the model's own tokenizer each, without special tokens, in the order of the corpus. An .arrayrecord file is
written as vectors come and may be larger than memory; a .npz may not.
"""

from collections.abc import Sequence

from absl import flags

from memjax.cli.arguments import read_one

EXAMPLE = "memjax embed-hf models/bert --corpus=python-docs --out=bert.npz"


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("corpus", None, "`python-docs`, or a file, folder or glob of texts.", flag_values=values)
    flags.DEFINE_string("out", None, "File to write, .npz or .arrayrecord.", flag_values=values)
    flags.DEFINE_integer("length", 16, "Tokens of a text, in the model's own ids.", 1, flag_values=values)
    flags.DEFINE_integer("limit", 20_000, "Texts, at most: the first of the corpus.", 1, flag_values=values)
    flags.DEFINE_enum(
        "read_out",
        "-1",
        ("-1", "-2", "mean"),
        "At a text's last token, at the last but one, or the mean over all.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "layer", -1, "Of the hidden states: 0 is what enters the first layer, -1 what the model hands on.", flag_values=values
    )
    flags.DEFINE_integer("batch", 32, "Texts at a time.", 1, flag_values=values)
    flags.DEFINE_string("device", "cpu", "Where it is computed, as torch names it.", flag_values=values)
    flags.DEFINE_string("text_field", "text", "The field of a JSON line that holds the document.", flag_values=values)
    return values


def run(args: Sequence[str]) -> int:
    """Writes the file."""
    found = read_one(args, define_flags(), __doc__ or "", EXAMPLE, ("corpus", "out"), "one folder or name of a model")
    if found is None:
        return 0
    model, given = found
    from memjax.interop.hugging_face_vectors import embed  # Imports JAX: after the flags are known to be right.

    embed(model, **given)
    return 0
