"""A probe tells what vectors hold: much of a trained encoder's, little of a fresh one's, nothing of
zeros."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Config, Data, Stage
from memjax.evaluation.instruments.encoders import VectorReader, vector_reader, vectors_of
from memjax.evaluation.instruments.information import entropy_ratio
from memjax.evaluation.instruments.probe import (
    ProbeError,
    Protocol,
    others,
    probe,
    score_texts,
    train_reader,
)
from memjax.evaluation.instruments.probe_decoders import (
    fit,
    has_converged,
    make_decoder,
    score_sums,
)
from memjax.evaluation.instruments.vectors import Vectors, VectorsError, VectorsInfo
from memjax.inference import TrainedModel
from memjax.objectives.uncertainty import to_json
from memjax.testing.progress import Recorder

VOCABULARY, LENGTH, WIDTH = 40, 8, 32
INFO = VectorsInfo("here", VOCABULARY, "", 0, 2, 6)
PROTOCOL = Protocol(
    width=32, layers=1, heads=2, steps=100, batch=64, evaluate_every=20, warmup_steps=10
)


@pytest.fixture(scope="module")
def encoder(trained_autoencoder) -> VectorReader:
    system, params, *_ = trained_autoencoder
    config = Config(
        data=Data(corpus="", vocab_size=VOCABULARY),
        model=system.module.config,
        stages={"tiny": Stage(family="autoencoder")},
    )
    return vector_reader(TrainedModel(system.module, params, config, None, "tiny", path="tiny"))


@pytest.fixture(scope="module")
def sets(encoder, trained_autoencoder) -> tuple[Vectors, Vectors]:
    *_, train, held_out = trained_autoencoder
    return vectors_of(encoder, train), vectors_of(encoder, held_out)


@pytest.fixture(scope="module")
def result(encoder, sets):
    recorder = Recorder()
    controls = ("random_tokens", "shuffled", "untrained", "constant")
    with recorder.active():
        found = probe(*sets, PROTOCOL, (0, 1), controls, encoder)
    trained = [name for name in recorder.bars if name.endswith(("seed 0", "seed 1"))]
    assert len(trained) == 6
    assert {sum(recorder.bars[name]) for name in trained} == {PROTOCOL.steps}
    return found


@pytest.fixture(scope="module")
def reader(sets):
    return train_reader(sets[0], PROTOCOL, seed=1)


@pytest.mark.slow
def test_a_trained_encoder_holds_more_than_its_controls(result):
    own, controls = result.own, result.controls
    assert list(controls) == ["constant", "untrained", "shuffled", "random_tokens"]
    assert own.accuracy.low > 0.6
    assert own.nats.high < 0.5 * controls["constant"].nats.low
    # Eight tokens leave traces in a random mixture of 32 numbers too.
    assert (
        own.nats.high
        < controls["untrained"].nats.low
        < controls["untrained"].nats.high
        < controls["constant"].nats.low
    )
    assert result.gains["constant"].low > 2 and result.gains["untrained"].low > 0.25
    # Whoever trusts another text's vectors is worse off than whoever has none.
    assert controls["shuffled"].nats.low > controls["constant"].nats.high
    assert controls["random_tokens"].nats.low > own.nats.high, (
        "the encoder knows this text, not just any"
    )
    assert "random_tokens" not in result.gains, "those are other texts"
    assert result.information_over_constant.low > 0.3


@pytest.mark.slow
def test_numbers_follow_from_each_other(result):
    assert (result.vocabulary, result.length, result.shape) == (VOCABULARY, LENGTH, (1, WIDTH))
    assert (result.train_texts, result.held_out_texts) == (512, 96)
    for reading in (result.own, *result.controls.values()):
        assert reading.information.value == pytest.approx(
            entropy_ratio(reading.nats.value, VOCABULARY)
        )
        one, two = reading.runs
        assert reading.nats.value == pytest.approx((one.nats.value + two.nats.value) / 2)
        assert (
            reading.nats_spread == pytest.approx(abs(one.nats.value - two.nats.value))
            and reading.nats_spread > 0
        )
        assert reading.accuracy.value == pytest.approx(
            (one.accuracy.value + two.accuracy.value) / 2
        )
        assert (one.seed, two.seed) == (0, 1) and one.curve != two.curve
        assert one.steps % PROTOCOL.call == 0 and 0 < one.steps <= PROTOCOL.steps
        assert [step for step, _ in one.curve] == list(range(0, 20 * len(one.curve), 20))
    gain = result.controls["constant"].nats.value - result.own.nats.value
    assert result.gains["constant"].value == pytest.approx(gain)
    assert result.bits_a_dimension.value == pytest.approx(gain * LENGTH / (WIDTH * math.log(2)))
    assert result.information_over_constant.value == pytest.approx(
        gain / result.controls["constant"].nats.value
    )
    # Paired over texts: much surer than two intervals apart.
    paired = result.gains["shuffled"]
    apart = result.controls["shuffled"].nats
    assert (
        paired.low < result.gains["shuffled"].value < paired.high
        and apart.texts == paired.texts == 96
    )
    assert to_json(result)["own"]["runs"][0]["converged"] in (True, False)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_decoder(result, reader, sets):
    assert reader.fitted.curve == result.own.runs[1].curve
    sums = score_texts(reader, sets[1])
    assert sums.nats.sum() / sums.tokens.sum() == result.own.runs[1].nats.value
    np.testing.assert_array_equal(sums.tokens, np.full(96, LENGTH))


@pytest.mark.slow
def test_shuffled_texts_are_read_from_the_vectors_of_others(result, reader, sets):
    other = others(96, seed=0)
    np.testing.assert_array_equal(np.sort(other), np.arange(96))
    assert (other != np.arange(96)).all()
    assert (others(96, seed=1) != other).any()
    np.testing.assert_array_equal(others(2), [1, 0])
    _, held_out = sets
    swapped = Vectors(np.asarray(held_out.vectors)[other], held_out.tokens, held_out.info)
    by_hand, found = score_texts(reader, swapped), score_texts(reader, held_out, other)
    np.testing.assert_allclose(found.nats, by_hand.nats, rtol=1e-6)
    run = result.controls["shuffled"].runs[1]
    assert found.nats.sum() / found.tokens.sum() == run.nats.value
    assert run.steps == result.own.runs[1].steps, "no decoder was trained for it"


@pytest.mark.slow
def test_a_fit_keeps_the_best_it_saw(reader, sets):
    train, _ = sets
    aside = score_texts(reader, train.part(461, 512))
    assert (
        aside.nats.sum() / aside.tokens.sum() <= min(loss for _, loss in reader.fitted.curve) + 1e-6
    )


@pytest.mark.slow
def test_scale_and_origin_of_vectors_do_not_matter(reader, sets):
    train, held_out = (
        dataclasses.replace(x, vectors=np.asarray(x.vectors) * 1000 + 7) for x in sets
    )
    moved = train_reader(train, PROTOCOL, seed=1)
    ours, theirs = (
        one.nats.sum() / one.tokens.sum()
        for one in (score_texts(reader, sets[1]), score_texts(moved, held_out))
    )
    assert theirs == pytest.approx(ours, rel=0.05)


@pytest.mark.slow
def test_a_constant_memory_learns_the_unigram_of_each_position():
    generator = np.random.default_rng(0)
    # Position t says one of two tokens of its own, the first with probability 0.9: nothing of a
    # text tells which.
    second = generator.random((2000, LENGTH)) < 0.1
    tokens = (6 + 2 * np.arange(LENGTH) + second).astype(np.int32)
    # The vectors would tell; a decoder that is given zeros must not see them.
    vectors = np.pad(second, ((0, 0), (0, WIDTH - LENGTH)))[:, None].astype(np.float32)
    both = Vectors(vectors, tokens, INFO)
    train, held_out = both.part(0, 1500), both.part(1500, 2000)
    found = score_texts(train_reader(train, PROTOCOL, constant=True), held_out)
    share = second[:1500].mean(axis=0)
    unigram = np.where(second[1500:], -np.log(share), -np.log(1 - share)).mean()
    assert found.nats.sum() / found.tokens.sum() == pytest.approx(unigram, abs=0.02)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert unigram == pytest.approx(entropy, abs=0.03)
    # Correct is who always says the likelier one.
    np.testing.assert_array_equal(found.correct, LENGTH - second[1500:].sum(axis=1))


@pytest.mark.slow
def test_a_uniform_predictor_has_the_nats_of_the_vocabulary(sets):
    decoder = make_decoder(PROTOCOL, VOCABULARY, LENGTH, (1, WIDTH), INFO.ids)
    params = decoder.start(jax.random.key(0)).params
    params = {**params, "head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}
    padded = np.array(sets[1].tokens)
    padded[:, 5:] = INFO.pad_id
    nats, _, count = score_sums(decoder, params, Vectors(sets[1].vectors, padded, INFO).take, 96)
    np.testing.assert_array_equal(count, np.full(96, 5.0))
    np.testing.assert_allclose(nats, 5 * math.log(VOCABULARY), rtol=1e-5)
    zero = math.log(VOCABULARY) + math.log(math.e - 1) - 0.5
    assert entropy_ratio(nats.sum() / count.sum(), VOCABULARY) == pytest.approx(
        1 - math.log(VOCABULARY) / zero, rel=1e-4
    )


@pytest.mark.quick_cases("transformer")
@pytest.mark.parametrize("backbone", ["mixer", "transformer"])
def test_an_autoregressive_decoder_sees_earlier_tokens_and_no_later_ones(
    sets, draw, quick, backbone
):
    protocol = dataclasses.replace(PROTOCOL, kind="autoregressive", backbone=backbone)
    decoder = make_decoder(protocol, VOCABULARY, LENGTH, (1, WIDTH), INFO.ids)
    vectors, tokens = sets[1].take(np.arange(4))
    params = draw(decoder.system.module, tokens, vectors, method="decode")["params"]
    shapes = jax.eval_shape(decoder.start, jax.random.key(0)).params
    assert set(shapes) == set(params) == {"backbone", "bridge", "embed", "head"}, (
        "a bridge at equal width, and no encoder"
    )
    changed = tokens.copy()
    changed[:, 4] = (changed[:, 4] - 6 + 1) % 30 + 6
    score = quick(lambda vectors, tokens: decoder.system.score(params, vectors, tokens).nats[:, 0])
    before, after, other = (
        score(vectors, tokens),
        score(vectors, changed),
        score(vectors[::-1], tokens),
    )
    np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=1e-5)
    assert (np.abs(before - after)[:, 4:] > 1e-4).all()
    assert (np.abs(before - other) > 1e-6).all(), "every token is said from the vectors"


def test_a_decoder_has_converged_when_its_loss_stays():
    falling = [4.0, 3.0, 2.0, 1.5]
    assert not has_converged(falling, 2, 0.005)
    assert not has_converged([4.0, 3.0], 2, 0.005), "too few looks to tell"
    assert has_converged([4.0, 2.0, 1.995, 1.9905], 2, 0.005), "by half a per cent in two looks"
    assert not has_converged([4.0, 2.0, 1.995, 1.98], 2, 0.005)
    assert has_converged([4.0, 1.0, 1.2, 1.1], 2, 0.005)
    assert has_converged([4.0, 0.004, 0.0035, 0.0031], 2, 0.005), "nothing is left to fall"


@pytest.mark.slow
def test_a_decoder_stops_when_it_has_converged(sets):
    """Texts that never differ are learned in no time."""
    one = Vectors(
        np.zeros((200, 1, WIDTH), np.float32),
        np.tile(np.arange(6, 14, dtype=np.int32), (200, 1)),
        INFO,
    )
    decoder = make_decoder(PROTOCOL, VOCABULARY, LENGTH, (1, WIDTH), INFO.ids)
    long = dataclasses.replace(
        decoder, protocol=dataclasses.replace(PROTOCOL, steps=1000, patience=2)
    )
    recorder = Recorder()
    with recorder.active():
        fitted = fit(long, one.part(0, 150).take, 150, one.part(150, 200).take, 50, 0)
    assert sum(recorder.bars["decoder"]) == 1000, "a bar comes to its end"
    assert fitted.converged and fitted.steps < 400
    assert fitted.curve[-1][1] < 0.01


def test_steps_add_up_to_what_is_allowed():
    assert (PROTOCOL.call, PROTOCOL.constant_steps, PROTOCOL.annealing(80)) == (20, 80, 20)
    assert Protocol().constant_steps + Protocol().annealing(Protocol().constant_steps) == 2000
    few = dataclasses.replace(PROTOCOL, steps=10)
    assert few.constant_steps == 20, "one look at least"


def test_what_cannot_be_probed_is_refused(encoder, sets):
    train, held_out = sets
    with pytest.raises(ProbeError, match="controls: 'noise', expected one of constant, untrained"):
        probe(train, held_out, PROTOCOL, controls=("noise",))
    with pytest.raises(
        ProbeError, match="'untrained' needs the encoder, expected a checkpoint and not vectors"
    ):
        probe(train, held_out, PROTOCOL, controls=("untrained",))
    with pytest.raises(ProbeError, match="seeds: none, expected at least one"):
        probe(train, held_out, PROTOCOL, seeds=())
    with pytest.raises(VectorsError, match="one held-out text, expected two"):
        probe(train, held_out.part(0, 1), PROTOCOL)
    with pytest.raises(VectorsError, match="1 texts to train on, expected two"):
        probe(train.part(0, 1), held_out, PROTOCOL)
    with pytest.raises(
        VectorsError, match=r"vectors and width \(K, E\) \(1, 31\), expected \(1, 32\) as in tiny"
    ):
        probe(
            train,
            dataclasses.replace(held_out, vectors=np.asarray(held_out.vectors)[:, :, 1:]),
            PROTOCOL,
        )
    of = [
        dataclasses.replace(x, info=dataclasses.replace(x.info, tokenizer=name))
        for x, name in zip(sets, "ab", strict=True)
    ]
    with pytest.raises(VectorsError, match="tokenizer b, expected a as in tiny"):
        probe(*of, PROTOCOL)
    with pytest.raises(
        ProbeError, match="encoder: tiny, expected the encoder of the vectors of tiny"
    ):
        probe(train, held_out, PROTOCOL, encoder=dataclasses.replace(encoder, shape=(1, 16)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "both"}, "kind: 'both', expected one of one_shot, autoregressive"),
        ({"heads": 5}, "heads=5, expected a divisor of width=32\\."),
        (
            {"heads": 32, "backbone": "transformer"},
            "heads=32, expected a divisor of width=32 into heads of even width",
        ),
        ({"steps": 0}, "steps=0, expected 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate=0.0, expected more than 0"),
        ({"stop_share": 1.0}, "stop_share=1.0, expected a share"),
        ({"anneal": -0.1}, "anneal=-0.1"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(change, message):
    with pytest.raises(ProbeError, match=message):
        dataclasses.replace(PROTOCOL, **change)
