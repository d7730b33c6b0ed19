"""Advice in messages: what they name exists, and following them works."""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memjax
from memjax.cli.flags import FLAGS
from memjax.cli.main import COMMANDS
from memjax.config import Config
from memjax.objectives import load_config
from memjax.testing.settings import message_of, tree_with

PACKAGE = Path(memjax.__file__).parent
OTHERS = {
    "data_dir",
    "file_format",
    "a",
    "always",
    "dirty",
    "exclude",
    "help",
    "local",
    "long",
    "minutes",
    "repo",
}
"""Flags of other tools, of scripts and of every command, and names of CSS."""


def messages() -> Iterator[str]:
    """All texts of the package but docstrings, with NAME for what is filled in."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        told = {id(x.value) for x in ast.walk(tree) if isinstance(x, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (x.value if isinstance(x, ast.Constant) else "NAME" for x in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield "" if id(node) in told else node.value


def is_setting(path: str, kind: Any = Config) -> bool:
    """Whether there is such a setting; NAME stands for any part of a path."""
    if not path:
        return True
    part, _, rest = path.partition(".")
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = hints.values() if part == "NAME" else [hints[part]] if part in hints else []
        return any(is_setting(rest, own) for own in known)
    # Values of a mapping; those of other kinds have no parts.
    values = typing.get_args(kind)
    return bool(values) and (not rest or is_setting(rest, values[-1]))


def test_flags_settings_commands_and_extras_in_messages_exist() -> None:
    setup = (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")
    known = re.findall(r'"(\w+)": ', setup.split("extras_require=")[1].split("}")[0])
    count = 0
    for text in messages():
        for flag in re.findall(r"(?<![\w-])--([a-z_]+)", text):
            assert flag in FLAGS or flag in OTHERS, text
            count += 1
        for path in re.findall(r"(?<![\w./])config\.((?:[A-Za-z_]+\.)*[a-z_]+)", text):
            assert path == "json" or is_setting(path), text
            count += 1
        for command in re.findall(r"`memjax ([a-z-]+)", text):
            assert command in COMMANDS, text
            count += 1
        for extra in re.findall(r"memjax\[(\w+)\]", text):
            assert extra in known or extra == "NAME", text
            count += 1
    assert count > 200


@pytest.mark.parametrize(
    ("changes", "advice", "followed"),
    [
        ({"model.chunk_length": 30}, "use 8, 16, 32", {"model.chunk_length": 8}),
        ({"model.chunk_length": 128}, "use 16, 32, 64", {"model.chunk_length": 64}),
        ({"data.sequence_length": 130}, "use 10, 13, 26", {"model.chunk_length": 26}),
        (
            {"model.memory_vectors": 2},
            "needs config.model.readout='memory_tokens'",
            {"model.readout": "memory_tokens"},
        ),
        ({"model.decoder.heads": 3}, "use 1, 2, 4", {"model.decoder.heads": 2}),
        ({"model.decoder.kv_heads": 3}, "a divisor of config.model", {"model.decoder.kv_heads": 2}),
        ({"model.compat": ("one_sided_noise",)}, "config.model.noise=0.0", {"model.noise": 0.1}),
        ({"model.decoder.causal": False}, "use True", {"model.decoder.causal": True}),
        (
            {"model.encoder.tie_embeddings": True},
            "it False",
            {"model.encoder.tie_embeddings": False},
        ),
        ({"model.bptt_chunks": 2}, "leave it 0", {"model.bptt_chunks": 0}),
        (
            {
                "stages.main.compat": ("overwritten_delimiter",),
                "stages.main.objectives": {"copy": 1.0},
            },
            "needs unscored_first_tokens",
            {"stages.main.compat": ("overwritten_delimiter", "unscored_first_tokens")},
        ),
        (
            {"stages.main.init_from": "no"},
            "an earlier stage (auto)",
            {"stages.main.init_from": "auto"},
        ),
        ({"stages.main.init_from": "no"}, "nor a folder path", {"stages.main.init_from": "./no"}),
        ({"curriculum": ("auto", "nope")}, "auto, main, control", {"curriculum": ("auto", "main")}),
        ({"stages.main.family": "memory"}, "memory_model", {"stages.main.family": "memory_model"}),
        ({"data.packing": "pack"}, "one of packed", {"data.packing": "packed"}),
        (
            {"stages.main.batch_size": 6, "stages.main.grad_accum_steps": 4},
            "does not divide config.stages.main.batch_size=6",
            {"stages.main.grad_accum_steps": 3},
        ),
        (
            {"stages.main.objectives": {"coppy": 1.0}},
            "one of next_token, copy",
            {"stages.main.objectives": {"copy": 1.0}},
        ),
        ({"data.vocab_size": 10}, "use 300 or more", {"data.vocab_size": 300}),
        (
            {"stages.main.warmup_steps": 10**6},
            "between 0 and config.stages.main.steps=100",
            {"stages.main.warmup_steps": 100},
        ),
        ({"model.decoder.head_dim": 7}, "or an even number", {"model.decoder.head_dim": 8}),
        ({"data.validation_share": 1.5}, "between 0 and 1", {"data.validation_share": 0.5}),
        (
            {"stages.main.init_from": ""},
            "needs config.stages.main.init_from",
            {"stages.main.init_from": "auto"},
        ),
        ({"model.expansion": "x"}, "one of unroll, repeat", {"model.expansion": "repeat"}),
    ],
)
def test_a_config_works_when_the_advice_is_followed(
    changes: dict[str, Any], advice: str, followed: dict[str, Any]
) -> None:
    assert advice in message_of(changes)
    load_config(tree_with(changes | followed))
