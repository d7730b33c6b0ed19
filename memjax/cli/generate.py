"""The command `memjax generate`."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from memjax.cli.arguments import Arguments, UsageError, take
from memjax.cli.flags import STAGE_PATH
from memjax.progress import Reporter

if TYPE_CHECKING:
    from memjax.checkpoints.store import MemoryStore
    from memjax.inference import TrainedModel
    from memjax.inference.strategy import DecodingStrategy

ARGUMENTS = Arguments(
    example='memjax generate runs/quickstart --prompt="The list is" --temperature=0.8',
    words={"PATH": STAGE_PATH},
    flags=take(
        prompt={},
        prompt_file={},
        memory={"what": "that the text continues"},
        document={},
        chunks={},
        max_new_tokens={"default": 200},
        temperature={"default": 0.0},
        top_k={"default": 0},
        top_p={"default": 1.0},
        seed={"default": 0},
        overflow={"choices": ("evict", "error"), "default": "evict"},
    ),
    notes="""
    Writes the continuation, and nothing else, to standard output. The family of the stage must
    predict the next token: memory_model, causal_lm or recurrent_memory. The end of a document ends
    the text.

    With --memory a memory model continues a text that `memjax compress` has encoded, by the same
    encoder. The memories come before the prompt. The model reads as many as it keeps, those nearest
    to the end; --document and --chunks choose others. A model with the positions of the text
    (config.model.layout=text) reads all of them; more than config.model.max_memories are an
    error. The store has no chunk that is not full, such
    as the last one of a document: pass its text with the prompt. A message on standard error names
    the memories that are read.
    """,
)
_LONGEST = 1 << 24
"""Characters of a prompt."""


def run(given: Namespace) -> None:
    """Writes the continuation of a prompt."""
    if (given.prompt is None) == (given.prompt_file is None):
        what = "both missing" if given.prompt is None else "both given"
        raise UsageError(
            f"--prompt, --prompt_file: {what}, expected one of them. For example:"
            f" {ARGUMENTS.example}"
        )
    for name in ("document", "chunks"):
        UsageError.require(
            getattr(given, name) is None or given.memory,
            f"--{name}: given without a store. Add --memory=STORE.",
        )
    chunks, text = _slice(given.chunks or ":"), _text(given)
    # It imports JAX: after the flags are checked.
    from memjax.inference import load

    model = load(given.path)
    pieces = model.generate(
        text,
        given.max_new_tokens,
        _memories(model, text, given, chunks) if given.memory else None,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        seed=given.seed,
        overflow=given.overflow,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _text(given: Namespace) -> str:
    if given.prompt is not None:
        return given.prompt
    try:
        # A pipe is as good as a file, and a device may have no end.
        with open(given.prompt_file, encoding="utf-8-sig") as file:
            text = file.read(_LONGEST + 1)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--prompt_file: {given.prompt_file} ({error}), expected UTF-8 text. Convert it."
        ) from error
    UsageError.require(
        len(text) <= _LONGEST,
        f"--prompt_file: {given.prompt_file} has more than {_LONGEST:,} characters, expected a"
        " prompt. Name a shorter file.",
    )
    return text


def _slice(chunks: str) -> slice:
    """The slice of `A:B`, where either number may be missing."""
    try:
        start, stop = (int(end) if end.strip() else None for end in chunks.split(":"))
    except ValueError:
        raise UsageError(
            f"--chunks: {chunks!r}, expected a slice such as 10:20, -5: or :8."
        ) from None
    return slice(start, stop)


def _memories(model: "TrainedModel", text: str, given: Namespace, chunks: slice) -> "MemoryStore":
    """The chosen chunks of a store; logs on stderr which of them are read before the prompt."""
    from memjax.checkpoints.store import open_store
    from memjax.inference import GenerationError
    from memjax.inference.room import evicts_nothing
    from memjax.models.elastic import reads_fewer

    generator, prompt = model.generator(), len(model.required_tokenizer.encode(text))
    store, of = open_store(given.memory, expected=generator.provenance), given.memory
    store.provenance.require_same(model.provenance, of, reads_fewer(model.module))
    strategy = model.generator(chunk_length=store.provenance.chunk_length).strategy
    if given.document is not None:
        store, of = store.of_document(given.document), f"{of}, document {given.document}"
    full = store.full_chunks
    GenerationError.require(
        len(full),
        f"{of}: {store.tokens} tokens in texts shorter than a chunk, expected"
        f" {strategy.window} or more. Begin the prompt with the text itself.",
    )
    picked = full[chunks]
    GenerationError.require(
        len(picked),
        f"--chunks: {given.chunks}, expected at least one of the {len(full)} full chunks of {of}.",
    )
    new = given.max_new_tokens
    if given.overflow == "error" or evicts_nothing(strategy):
        _require_room(strategy, prompt, new, len(picked), of, chunks, len(full))
    read = min(len(picked), strategy.kept(prompt // strategy.window))
    message = f"{of}: reads the last {read} of {len(picked)} memories"
    after = int(picked[-1]) + 1
    if after < len(store) and after not in full:
        document, _, tokens, first, last = store.spans[after].tolist()
        if document == store.spans[after - 1, 0]:
            message += (
                f"; the next {tokens} tokens ({store.documents[document].name}, bytes {first}"
                f" to {last}) fill no chunk: begin the prompt with them"
            )
    Reporter(stderr=True).log(message)
    return store[picked]


def _require_room(
    strategy: "DecodingStrategy",
    prompt: int,
    new: int,
    memories: int,
    of: str,
    picked: slice,
    full: int,
) -> None:
    """Raises GenerationError if memories of a store are more than the model keeps.

    Args:
      strategy: of the model.
      prompt: tokens of the prompt.
      new: tokens to generate.
      memories: how many the command reads.
      of: the store.
      picked: the value of --chunks, a slice of its full chunks.
      full: how many these are.
    """
    from memjax.inference import GenerationError
    from memjax.inference.room import budget, room

    most = room(strategy, prompt, new)
    if most is None or memories <= most:
        return
    given = f"a prompt of {prompt} tokens and --max_new_tokens={new}"
    GenerationError.require(
        most > 0,
        f"{of}: {memories} memories before {given}, expected none: these leave no room for them."
        " Pass fewer tokens.",
    )
    end = picked.indices(full)[1]
    last = f"-{most}:" if end == full else f"{end - most}:{end}"
    raise GenerationError(
        f"{of}: {memories} memories before {given}, expected at most {most} {budget(strategy)}."
        f" Read the last ones by --chunks={last}"
    )
