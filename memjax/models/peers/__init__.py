"""The field's other memories, one file per architecture and one line per file here.

To add one, write a file with a `Peer` and its adapter, and add it to PEERS.
"""

from memjax.models.peers import calm, icae, inversion, next_vector, per_text, rmt
from memjax.models.peers.adapters import PeerAdapter

PEERS: dict[str, PeerAdapter] = {
    adapter.name: adapter
    for adapter in (
        rmt.ADAPTER,
        icae.ADAPTER,
        calm.ADAPTER,
        inversion.ADAPTER,
        next_vector.ADAPTER,
        per_text.CRAMMING,
        per_text.MEMORY_TOKENS,
    )
}
"""Peers by name, values of `config.stages.NAME.family` like those of our own families."""
