"""Configs that are trained for the claims: a few per seed, equal at all scales except for sizes.

All models of a scale share width, depth, chunk length, vocabulary and rows. Decoders are compared
at equal steps, rows and targets; encoders have equal width and depth, and are probed by one
protocol.
"""

import dataclasses
from pathlib import Path

from memjax import config as c

MATRICES = r"blocks/.*(kernel|mixing)$|unroll_projection/kernel|bridge/kernel"
TOKENS = r"embed/embedding$"
FROZEN_ENCODER = (("^encoder/", False), (".*", True))
AS_ENCODER = "backbone:encoder/backbone,embed:encoder/embed"
"""Maps a causal language model's blocks and token table to those of an encoder."""
NOISE = 2**-4
"""q of Badger 2026 (noise on the bottleneck)."""
BOTH = {"copy": 1.0, "next_token": 1.5}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of models and lengths of training."""

    width: int
    layers: int
    heads: int
    mixer_heads: int
    chunk_length: int
    chunks: int
    vocabulary: int
    rows: int
    """Batch size of the models that read whole rows; models of single chunks see as many tokens per
    batch."""
    encoder_steps: int
    """Steps of autoencoders, oracles and causal encoders."""
    curriculum: tuple[int, int, int]
    """Steps of blank copy, copy and combined."""
    probe_steps: int
    probe_texts: int
    evaluation_rows: int
    learning_rate: float = 3e-3
    muon: bool = True
    """Use Muon for matrices, as in the quickstart; otherwise AdamW throughout, as published."""
    dtype: str = "float32"
    remat: str = "none"


SCALES = {
    # For tests: too short for the models to learn.
    "tiny": Scale(16, 1, 2, 2, 8, 4, 320, 8, 3, (2, 2, 2), 4, 64, 8),
    "small": Scale(128, 4, 4, 16, 16, 4, 1024, 32, 250, (300, 50, 250), 250, 16_384, 256),
    # Sizes, steps and rates of the published memory models and their encoders (Badger 2026); days
    # on a TPU slice.
    "paper": Scale(
        512,
        16,
        4,
        4,
        256,
        4,
        8000,
        64,
        200_000,
        (100_000, 100_000, 100_000),
        200_000,
        4_000_000,
        4096,
        2e-4,
        False,
        "bfloat16",
        "nothing_saveable",
    ),
}


def configs(scale: Scale, corpus: str, seed: int, folder: Path) -> dict[str, c.Config]:
    """Return every config of one seed, in an order in which they can be trained.

    The keys are the names of workdirs in `folder`.
    """
    mixer = c.Backbone(
        kind="mixer",
        width=scale.width,
        layers=scale.layers,
        heads=scale.mixer_heads,
        mlp="gelu",
        mlp_ratio=2.0,
    )
    transformer = c.Backbone(
        kind="transformer", width=scale.width, layers=scale.layers, heads=scale.heads, mlp_ratio=2.5
    )
    decoder = dataclasses.replace(transformer, output_gate=True)
    row_tokens = scale.chunk_length * scale.chunks
    warmup = max(1, min(500, scale.encoder_steps // 15))
    stage = c.Stage(batch_size=scale.rows, learning_rate=scale.learning_rate, warmup_steps=warmup)
    encoding = dataclasses.replace(stage, steps=scale.encoder_steps)
    muon, rate = (MATRICES, "muon"), ((MATRICES, 10.0), (TOKENS, 4.0), (".*", 1.0))
    optimizer = (
        c.Optimizer(rules=(muon, (".*", "adamw")), rate_rules=rate) if scale.muon else c.Optimizer()
    )

    def config(
        name: str, model: c.Model, stages: dict[str, c.Stage], row: int = row_tokens
    ) -> c.Config:
        return c.Config(
            name=name,
            seed=seed,
            data=c.Data(corpus=corpus, vocab_size=scale.vocabulary, sequence_length=row),
            model=dataclasses.replace(
                model,
                chunk_length=scale.chunk_length,
                dtype=scale.dtype,
                remat=scale.remat,
                reconstructor=model.reconstructor,
            ),
            optimizer=optimizer,
            stages=stages,
            curriculum=tuple(stages),
            checkpoint_every=max(scale.encoder_steps, *scale.curriculum, 500) // 2,
            checkpoints_kept=1,
            evaluators=c.usual_evaluators(
                every=max(50, scale.encoder_steps // 4), examples=scale.evaluation_rows
            ),
        )

    reads = c.Model(encoder=mixer, decoder=decoder, reconstructor=mixer)
    autoencoder = dataclasses.replace(
        encoding, family="autoencoder", objectives={"reconstruction": 1.0}
    )
    # The same tokens per step, as single chunks.
    blocks = dataclasses.replace(encoding, batch_size=scale.rows * scale.chunks)
    causal = dataclasses.replace(blocks, family="causal_lm", objectives={"next_token": 1.0})
    retriever = dataclasses.replace(
        blocks,
        family="retriever",
        objectives={"ngram_retrieval": 1.0},
        steps=max(1, scale.encoder_steps // 2),
        learning_rate=scale.learning_rate / 3,
        init_from="causal",
        init_part=AS_ENCODER,
        dials={"query_tokens": min(7, scale.chunk_length // 2)},
    )
    bottleneck = dataclasses.replace(reads, bottleneck=scale.width // 2)
    return {
        "encoders": config("encoders", reads, {"autoencoder": autoencoder}),
        "causal": config(
            "causal",
            dataclasses.replace(reads, decoder=mixer),
            {"causal": causal, "retriever": retriever},
            scale.chunk_length,
        ),
        "oracle": config(
            "oracle",
            reads,
            {
                "oracle": dataclasses.replace(
                    encoding, family="oracle", objectives={"next_token": 1.0}
                )
            },
        ),
        "transformer": config(
            "transformer",
            dataclasses.replace(reads, encoder=transformer, reconstructor=transformer),
            {"autoencoder": autoencoder},
        ),
        "plain": config("plain", bottleneck, {"autoencoder": autoencoder}),
        "noisy": config(
            "noisy", dataclasses.replace(bottleneck, noise=NOISE), {"autoencoder": autoencoder}
        ),
        "memory": config("memory", reads, _decoders(scale, stage, folder)),
    }


def _decoders(scale: Scale, stage: c.Stage, folder: Path) -> dict[str, c.Stage]:
    """Return memory models and their controls, all of as many steps on as many rows."""
    blank, copy, combined = scale.curriculum
    whole = dataclasses.replace(
        stage, steps=blank + copy + combined, objectives={"next_token": 1.0}
    )
    stages: dict[str, c.Stage] = {}
    sources = {
        "autoencoder": (folder / "encoders" / "stages" / "autoencoder", "encoder"),
        "causal": (folder / "causal" / "stages" / "causal", AS_ENCODER),
    }
    for source, (origin, part) in sources.items():
        reading = dataclasses.replace(stage, trainable=FROZEN_ENCODER, final_lr_ratio=0.5)
        first = dataclasses.replace(
            reading,
            steps=blank,
            objectives={"blank_copy": 1.0, "next_token": 0.3},
            init_from=str(origin),
            init_part=part,
        )
        stages |= {
            f"{source}_blank": first,
            f"{source}_copy": dataclasses.replace(
                reading, steps=copy, objectives=BOTH, init_from=f"{source}_blank"
            ),
            f"{source}_combined": dataclasses.replace(
                reading,
                steps=combined,
                objectives=BOTH,
                init_from=f"{source}_copy",
                final_lr_ratio=0.0,
            ),
        }
    origin, part = sources["autoencoder"]
    at_once = dataclasses.replace(
        whole, objectives=BOTH, trainable=FROZEN_ENCODER, init_from=str(origin), init_part=part
    )
    return stages | {
        "at_once": at_once,
        "next_token": whole,
        "no_memory": dataclasses.replace(whole, memory=False),
        "full_context": dataclasses.replace(whole, family="causal_lm"),
        "recurrent": dataclasses.replace(whole, family="recurrent_memory"),
    }
