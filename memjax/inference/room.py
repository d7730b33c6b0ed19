"""The room that a model has for memories before a prompt, and the errors where they are more."""

from collections.abc import Sequence

from memjax.inference.sampling import GenerationError
from memjax.inference.strategy import DecodingStrategy


def evicts_nothing(strategy: DecodingStrategy) -> bool:
    """Return whether a model keeps all memories of a text up to its limit, whatever is chosen."""
    return strategy.grows and strategy.module.memory


def room(strategy: DecodingStrategy, prompt: int, new: int) -> int | None:
    """Return the number of memories that fit before a prompt, with none of them evicted.

    Args:
      strategy: of the model.
      prompt: tokens of the prompt.
      new: generated tokens.

    Returns:
      The number, below 0 where prompt and new tokens alone do not fit; None without a limit.
    """
    if strategy.limit is None:
        return None
    # Where nothing is evicted, what is read must leave room for the chunk of one more token.
    new = max(new, 1) if evicts_nothing(strategy) else new
    return (strategy.limit - prompt - new) // strategy.window


def budget(strategy: DecodingStrategy) -> str:
    """Return how many memories a model keeps, and the setting that it is, in words."""
    kept = strategy.kept(0)
    if evicts_nothing(strategy):
        return f"of the {kept} of config.model.max_memories"
    return f"of the {kept} before the last chunk of a training sequence"


def require_room(
    strategy: DecodingStrategy, prompts: Sequence[int], new: int, held: Sequence[int]
) -> None:
    """Raise GenerationError if a sequence could outgrow the context.

    Args:
      strategy: of the model.
      prompts: tokens of each prompt.
      new: generated tokens; 0 for a prompt that is read alone.
      held: memories before each prompt.
    """
    other = "" if evicts_nothing(strategy) else ", or overflow='evict'"
    for row, (prompt, memories) in enumerate(zip(prompts, held, strict=True)):
        most = room(strategy, prompt, new)
        if most is None or memories <= most:
            continue
        given = f"{prompt} tokens" + (f" and max_new_tokens={new}" if new else "")
        GenerationError.require(
            most >= 0 and memories,
            f"prompt {row}: {given}, expected at most the {strategy.limit} tokens of which the"
            f" model keeps everything. Pass fewer{other}.",
        )
        part = f", such as store[-{most}:]" if most else ""
        raise GenerationError(
            f"memories of row {row}: {memories} before a prompt of {given}, expected at most"
            f" {most} {budget(strategy)}. Pass fewer{part}{other}."
        )
