"""All flags of all commands: each is defined once, with one meaning."""

import dataclasses
from collections.abc import Mapping
from typing import Any

STAGE_PATH = (
    "A trained stage: a workdir (its last stage), the folder of a stage"
    " (runs/NAME/stages/STAGE), an export, the released model small-en, or hf:FOLDER of a Hugging"
    " Face model."
)
"""The meaning of the word PATH in every command that takes a trained stage."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag, or a key of a flag that takes KEY=VALUE pairs."""

    help: str
    """One sentence; `{}` stands for the word that a command fills in."""
    kind: str = "text"
    """text, int, float, switch, a list of these (texts, ints, floats), steps (N or START:STOP), or
    pairs (KEY=VALUE)."""
    metavar: str = ""
    """The value in help texts; by default its choices or its kind."""
    minimum: float | None = None
    default: Any = None
    choices: tuple[str, ...] = ()
    keys: Mapping[str, "Flag"] = dataclasses.field(default_factory=dict)
    """The keys of a flag of kind `pairs`."""
    required: bool = False


def flag(kind: str, metavar: str, sentence: str, minimum: float | None = None) -> Flag:
    """A flag whose default and choices each command states."""
    return Flag(sentence, kind, metavar, minimum)


PATHS = ("FILE", "FOLDER", "PATH", "STORE")
"""Values of flags in which `~` is the user's folder: a shell replaces it in words alone."""
WRITTEN = ("out", "save")
"""Flags that name what is written, on this machine alone."""
FLAGS: Mapping[str, Flag] = {
    # What a command reads.
    "config": flag("text", "FILE", "Config file (FILE or FILE:VARIANT) with get_config()."),
    "against": flag("text", "FILE", "Compare with {}."),
    "corpus": flag("text", "SOURCE", "Text for {}: python-docs, files or hf:NAME."),
    "data": flag("text", "FOLDER", "Prepared data; by default the data of the stage's run."),
    "split": flag("text", "", "Split of the prepared data; training reads train."),
    "spec": flag("text", "PATH", "The model in the other format: {}."),
    "memory": flag("text", "STORE", "Store of memories {}."),
    "model": flag("text", "PATH", "A trained stage {}."),
    "document": flag("int", "N", "Read only document N of the store, counted from 0.", 0),
    "chunk": flag("text", "N,A:B,...", "Chunks to recall by their numbers, counted from 0."),
    "find": flag("text", "TEXT", "List the chunks in which a phrase is most likely to begin."),
    "chunks": flag("text", "A:B", "Full chunks to read, as a Python slice: 10:20, -5: or :8."),
    "prompt": flag("text", "TEXT", "Text to continue; an empty one starts a new text."),
    "prompt_file": flag("text", "FILE", "UTF-8 file with the text to continue."),
    "task_folder": flag("text", "FOLDER", "Folder of task files and of the files of local tasks."),
    # What a command writes.
    "workdir": flag("text", "FOLDER", "Folder of the run: data, checkpoints, metrics and report."),
    "out": flag("text", "PATH", "{}."),
    "save": flag("text", "FILE", "Also write {}."),
    "dtype": flag("text", "", "Number format of what is stored."),
    "vectors": flag("int", "K", "Keep the first K vectors of each memory; by default all.", 1),
    "chunk_length": flag("int", "L", "Tokens per chunk; by default the model's.", 1),
    "format": flag("text", "", "Format of the {}."),
    "shard_gb": flag("float", "GB", "Largest size of a weight file.", 1e-9),
    "license": flag("text", "NAME", "License of the weights, by its name on the Hugging Face Hub."),
    # How much of it.
    "limit": flag("int", "N", "Use at most N {}.", 1),
    "eval_examples": flag("int", "N", "Evaluate on at most N texts.", 0),
    "sequence_length": flag("int", "TOKENS", "Tokens per sequence; {}.", 1),
    "batch_size": flag("int", "N", "{} per batch.", 1),
    "context_lengths": flag("ints", "TOKENS,...", "Compare caches at these context lengths.", 1),
    "border_entries": flag("ints", "N,...", "Time borders of chunks behind so many memories.", 1),
    "max_new_tokens": flag("int", "N", "Generate at most N tokens.", 1),
    "steps": flag("int", "N", "Timed steps per program, or chunks per context, or borders.", 1),
    "warmup": flag("int", "N", "Steps before timing starts.", 1),
    "workers": flag("int", "N", "Processes; by default one per processor.", 1),
    # How it is computed.
    "stage": flag("text", "NAME", "Stage of the config; by default the curriculum's last."),
    "program": flag("texts", "NAME,...", "Programs of the stage: {}."),
    "topology": flag("text", "NAME", "TPU slice: v5e-256, 2xv5e-256, v5p-128, ..."),
    "mesh": flag(
        "text",
        "MESH",
        "Mesh: ddp, fsdp, fsdp_tp, or axes such as data=2,fsdp=8,tensor=4. By default config.mesh.",
    ),
    "search": flag("switch", "", "Find the mesh, remat and microbatches with the highest MFU."),
    "profile": flag("steps", "STEPS", "Record steps with the profiler: {}."),
    "compilation_cache": flag("switch", "", "Keep compiled programs in the workdir or bucket."),
    "seed": flag("int", "N", "Random seed.", 0),
    "seeds": flag("ints", "N,...", "Random seeds; the work is repeated for each.", 0),
    "list": flag("switch", "", "List {} and end."),
    "scale": flag("text", "", "Model sizes and training lengths."),
    "temperature": flag("float", "T", "Sampling temperature; 0 is greedy decoding.", 0),
    "top_k": flag("int", "K", "Sample from the K most likely tokens; 0 is all.", 0),
    "top_p": flag("float", "P", "Nucleus sampling threshold.", 0),
    "overflow": flag("text", "", "Past the model's context: evict the oldest part, or fail."),
    "instruments": flag("texts", "NAME,...", "Instruments: {}."),
    "recall_objective": flag("text", "", "Prompt for recall by a memory model."),
    "unscaled": flag("switch", "", "Keep attributions; by default each text's span [0, 1]."),
    "readout": flag("text", "", "Position read: last token, last but one, or the mean."),
    "protocol": flag("pairs", "", "How the probe's decoders are trained."),
    "transformers": flag("pairs", "", "How hf:MODEL is run."),
    "names": flag("texts", "NAME,...", "Names {}."),
    "tasks": flag("texts", "NAME,...", "Tasks: {}."),
    "num_fewshot": flag("int", "N", "Worked examples before each question.", 0),
    "long_recall": flag("pairs", "", "Questions of the task long_recall."),
}
"""The flags by name."""
