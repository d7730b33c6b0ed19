"""The claim of the report, in words that depend on the measured numbers."""

import dataclasses

from memjax.evaluation import numbers
from memjax.experiment.report.run import CAUSAL_CONTROL, NO_MEMORY, Run
from memjax.experiment.report.words import compared_controls, stage_name

FACTOR = 2.0
"""Ratio of copy accuracy to that of every control from which the claim counts as shown."""
_MEANING = {
    CAUSAL_CONTROL: "of the same model trained on next tokens alone",
    NO_MEMORY: "without any memory",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """The verdict on a run."""

    verdict: str
    """`shown`, `not shown`, `not compared` or `not measured`."""
    title: str
    sentence: str


def judge(run: Run) -> Claim:
    """Compare the memory model's copy accuracy on held-out text with that of the controls."""
    ours = run.headline("copy_accuracy")
    compared = dict.fromkeys((*compared_controls(run), NO_MEMORY))
    rivals = {name: run.headline("copy_accuracy", name) for name in compared}
    if ours is None or (CAUSAL_CONTROL in run.controls and rivals[CAUSAL_CONTROL] is None):
        missing = "the memory model" if ours is None else "the control trained on next tokens alone"
        return Claim(
            "not measured",
            "The content of these memories is not measured yet",
            f"The copy accuracy of {missing} on held-out text is missing, so this run neither"
            " supports nor contradicts the claim that "
            "memories hold a text once they are trained to retain it.",
        )
    measured = (
        f"the memory model reconstructs {numbers.percent(ours)} of held-out tokens from its"
        " memories"
    )
    shares = {name: share for name, share in rivals.items() if share is not None}
    if not shares:
        return Claim(
            "not compared",
            "The content of these memories is not compared with a control",
            f"{measured[0].upper()}{measured[1:]}. The run has no control, so it neither supports"
            " nor contradicts the claim that memories hold a text once they are trained to retain"
            " it.",
        )
    first, *others = (
        f"{numbers.percent(share)} {_MEANING.get(name, f'of the control {stage_name(name)}')}"
        for name, share in shares.items()
    )
    rival = next(iter(shares.values()))
    if ours >= FACTOR * max(shares.values()) and ours > 0:
        ratio = f"{ours / rival:.1f} times the" if rival > 0 else "against the"
        against = "".join(f" and against {other}" for other in others)
        return Claim(
            "shown",
            "Trained to retain, memories hold the text",
            f"{measured[0].upper()}{measured[1:]}, {ratio} {first}{against}{_price(run)}.",
        )
    return Claim(
        "not shown",
        "This run does not show that memories hold the text",
        f"Although it was trained to retain, {measured}, less than twice the accuracy of"
        f" the controls ({' and '.join((first, *others))}){_price(run)}.",
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
