"""The adapter of a peer, one of the field's other memories."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from memjax.config import Config, ConfigError, Rules, Stage
from memjax.files import read_json
from memjax.models.adapter import Adapter, Answers
from memjax.models.peers.peer import Peer
from memjax.models.request import Asking, Requests, Variables, shared_entries

CAPABILITIES = frozenset(("predicts", "copies", "reads_memories", "reads_chunks", "keeps_written"))
"""Capabilities of every peer."""
LM_PARTS = "embed,backbone,head"
"""Parts that a peer has from a causal language model, for `init_part`."""
FROZEN_LM: Rules = ((r"^(embed|backbone|head)/", False), (".*", True))
"""A peer whose language model stays as it was trained."""
STATUSES = ("works", "fails", "mechanism only")
MEASURED = Path(__file__).with_name("status.json")
"""The statuses of those that docs/make_peers.py has measured."""


@dataclasses.dataclass(frozen=True)
class PeerAdapter(Adapter):
    """One of the field's memories."""

    published: str = ""
    """The name, the paper and its arXiv number."""
    lm_parts: str = ""
    """Parts that come from a causal language model that is trained first, as `init_part`; empty
    where everything is trained from scratch."""
    trainable: Rules = ((".*", True),)
    """Parameters that `memjax compare` trains, as `config.stages.NAME.trainable`."""
    sized: str = "vectors"
    """The dial, a whole number, that `memjax compare` sets by the budget; empty for none."""
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Dials of tests, whose chunks have 4 tokens."""
    kind: str = ""
    """The kind of memory, one of KINDS in models/memory.py."""
    unclaimed: str = ""
    """Published results that are not claimed here."""

    @property
    def status(self) -> str:
        """One of STATUSES (docs/peers.md)."""
        return measured().get(self.name, "mechanism only")


@functools.cache
def measured() -> dict[str, str]:
    """Return the statuses of the peers that were measured."""
    return read_json(MEASURED, ConfigError)


def peer(name: str, module: type[Peer], summary: str, **about: Any) -> PeerAdapter:
    """Return the adapter of a peer.

    Args:
      name: lower-case ASCII.
      module: the peer.
      summary: one or two sentences.
      about: other fields of `PeerAdapter`.
    """
    check = about.pop("check", None)

    def build(config: Config, stage: Stage) -> Peer:
        settings = config.model, config.chunks, config.data.vocab_size
        return module(*settings, dials=found.dials_of(stage), memory=stage.memory)

    def checked(config: Config, stage: Stage, key: str) -> None:
        _check(config, stage, key)
        if check is not None:
            check(config, stage, key)

    found = PeerAdapter(
        name=name,
        module=module,
        summary=summary,
        capabilities=CAPABILITIES,
        build=build,
        example=lambda config: jnp.zeros((1, config.chunks, config.model.chunk_length), jnp.int32),
        answer=answer,
        reads=frozenset(("bptt_chunks",)),
        check=checked,
        kind=module.KIND,
        **about,
    )
    return found


def answer(asking: Asking, variables: Variables, requests: Requests) -> Answers:
    """Write the entries of requests, once for all that have the same, and decode each request."""

    def run(module: Peer) -> Answers:
        tokens = jnp.asarray(asking.chunks)
        valid, found = tokens != asking.ids.pad, {}
        names = list(requests)
        for entries, numbers in shared_entries([requests[name] for name in names]):
            prefixes = module.written(tokens, valid, entries)
            for name in (names[number] for number in numbers):
                request = requests[name]
                shown = jnp.asarray(request.inputs) != asking.ids.pad
                hidden = module.hidden(prefixes, request, shown)
                found[name] = module.head.token_losses(hidden, jnp.asarray(request.labels))
        return found

    scored: Answers = asking.module.apply(variables, method=run, rngs=asking.rngs)
    return scored


def _check(config: Config, stage: Stage, key: str) -> None:
    model, decoder = config.model, config.model.decoder
    ConfigError.require(
        decoder.kind == "transformer" and decoder.causal,
        f"config.model.decoder.kind: {decoder.kind!r}, expected a causal transformer for"
        f" {key}.family={stage.family!r}. Change it",
    )
    ConfigError.require(
        model.layout == "fixed",
        f"config.model.layout: {model.layout!r}, expected 'fixed' for {key}.family="
        f"{stage.family!r}. Change it",
    )
    ConfigError.require(
        not config.data.memories,
        f"config.data.memories: {config.data.memories!r}, expected '' for {key}.family="
        f"{stage.family!r}, which writes memories of its own. Leave it out",
    )
    quirks = sorted({*stage.compat, *model.compat} - {"reference_init"})
    ConfigError.require(
        not quirks,
        f"{key}.compat: {', '.join(quirks)}, expected none for {key}.family={stage.family!r}. Leave"
        " them out",
    )
