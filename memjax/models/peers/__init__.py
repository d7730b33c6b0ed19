"""The field's other memories, one file per architecture and one line per file here.

To add one, write a file with a `Peer` and its adapter, and add it to PEERS.
"""

from memjax.models.peers import (
    amortised_bank,
    associative,
    auto_compressor,
    calm,
    cartridge,
    cells,
    dual_memory,
    dynamic_memory,
    hmt,
    icae,
    inversion,
    kv_memory,
    lamemo,
    larimar,
    memformer,
    memory_network,
    memory_pool,
    memory_prompt,
    mplus,
    next_vector,
    per_text,
    quantiser,
    refrag,
    relational,
    reversible,
    rmt,
    scaling_rmt,
    xrag,
)
from memjax.models.peers.adapters import PeerAdapter

PEERS: dict[str, PeerAdapter] = {
    adapter.name: adapter
    for adapter in (
        rmt.ADAPTER,
        scaling_rmt.ADAPTER,
        auto_compressor.ADAPTER,
        auto_compressor.MEMO_ADAPTER,
        hmt.ADAPTER,
        reversible.ADAPTER,
        memformer.ADAPTER,
        memory_pool.ADAPTER,
        memory_prompt.ADAPTER,
        lamemo.ADAPTER,
        lamemo.XL_ADAPTER,
        mplus.ADAPTER,
        icae.ADAPTER,
        kv_memory.GIST_ADAPTER,
        kv_memory.COMPRESSOR_ADAPTER,
        cartridge.ADAPTER,
        xrag.ADAPTER,
        refrag.ADAPTER,
        amortised_bank.ADAPTER,
        amortised_bank.CMT_ADAPTER,
        quantiser.ADAPTER,
        larimar.ADAPTER,
        memory_network.END_TO_END,
        memory_network.SUPERVISED,
        dynamic_memory.ADAPTER,
        associative.ADAPTER,
        dual_memory.ADAPTER,
        relational.ADAPTER,
        cells.LEM,
        cells.LSTM,
        cells.GRU,
        calm.ADAPTER,
        next_vector.ADAPTER,
        inversion.ADAPTER,
        per_text.CRAMMING,
        per_text.MEMORY_TOKENS,
    )
}
"""Peers by name, values of `config.stages.NAME.family` like those of our own families."""
