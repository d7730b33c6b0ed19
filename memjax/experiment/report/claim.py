"""The claim of the report, in words that depend on the measured numbers."""

import dataclasses

from memjax.experiment.report import numbers
from memjax.experiment.report.run import CAUSAL_CONTROL, NO_MEMORY, Run

FACTOR = 2.0
"""Ratio of copy accuracy to that of every control from which the claim counts as shown."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """The verdict on a run."""

    verdict: str
    """`shown`, `not shown` or `not measured`."""
    title: str
    sentence: str


def judge(run: Run) -> Claim:
    """Compare the memory model's copy accuracy on held-out text with that of the controls."""
    ours = run.headline("copy_accuracy")
    causal, without = (
        run.headline("copy_accuracy", CAUSAL_CONTROL),
        run.headline("copy_accuracy", NO_MEMORY),
    )
    if ours is None or causal is None:
        missing = "the memory model" if ours is None else "the control trained on next tokens alone"
        return Claim(
            "not measured",
            "The content of these memories is not measured yet",
            f"The copy accuracy of {missing} on held-out text is missing, so this run neither"
            " supports nor contradicts the claim that "
            "memories hold a text once they are trained to retain it.",
        )
    rival = max(causal, without or 0.0)
    measured = (
        f"the memory model reconstructs {numbers.percent(ours)} of held-out tokens from its"
        " memories"
    )
    if ours >= FACTOR * rival and ours > 0:
        ratio = f"{ours / causal:.1f} times the" if causal > 0 else "against the"
        sentence = (
            f"{measured[0].upper()}{measured[1:]}, {ratio} {numbers.percent(causal)} of the"
            " same model trained on next tokens alone"
        )
        sentence += (
            f" and against {numbers.percent(without)} without any memory"
            if without is not None
            else ""
        )
        return Claim(
            "shown", "Trained to retain, memories hold the text", f"{sentence}{_price(run)}."
        )
    others = f"{numbers.percent(causal)} of the same model trained on next tokens alone"
    others += f" and {numbers.percent(without)} without any memory" if without is not None else ""
    return Claim(
        "not shown",
        "This run does not show that memories hold the text",
        f"Although it was trained to retain, {measured}, less than twice the accuracy of"
        f" the controls ({others}){_price(run)}.",
    )


def _price(run: Run) -> str:
    """Return the clause on next-token loss, relative to the next-token control."""
    difference = numbers.relative(
        run.headline("next_token_nats"), run.headline("next_token_nats", CAUSAL_CONTROL)
    )
    if difference is None:
        return ""
    if abs(difference) < 5e-4:
        return ", and its next-token loss is that of the next-token control"
    return (
        f", and its next-token loss is {100 * abs(difference):.1f}%"
        f" {'above' if difference > 0 else 'below'} that of the next-token control"
    )
