"""`memjax probe hf:MODEL`: its vectors are the model's own, files and errors are clear."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import setuptools

from memjax.cli import probe
from memjax.cli.arguments import UsageError, parse
from memjax.cli.main import main
from memjax.config import ConfigError
from memjax.data import CorpusError, open_source
from memjax.evaluation.huggingface_encoder import cut, embed, open_model
from memjax.evaluation.instruments.vectors import VectorsError, open_vectors
from memjax.testing import WORDS, write_corpus

LENGTH, WIDTH = 8, 32
with_extra = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="needs pip install torch transformers",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return str(write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Saves a tiny random model of a kind, with its tokenizer, and returns its folder; each kind is
    made once."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    small = {"vocab_size": 320, "dropout_rate": 0.5}
    bert = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    gpt2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 24}
    t5 = {
        "d_model": WIDTH,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    kinds = {
        "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(**small, **gpt2)),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**small, **bert)),
        "masked": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**small, **bert)),
        "t5": lambda: transformers.T5Model(transformers.T5Config(**small, **t5)),
    }
    root, made = tmp_path_factory.mktemp("models"), {}

    def make(kind: str) -> str:
        if kind not in made:
            torch.manual_seed(len(made))
            kinds[kind]().save_pretrained(root / kind)
            bpe = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
            bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
            alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
            special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=320,
                special_tokens=special,
                initial_alphabet=alphabet,
                show_progress=False,
            )
            bpe.train_from_iterator([" ".join(WORDS)] * 3, trainer)
            # As BERT's: were special tokens added, every document would begin with [CLS] and end
            # with [SEP].
            bpe.post_processor = tokenizers.processors.TemplateProcessing(
                "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
            )
            names = {
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
            }
            wrapped = transformers.PreTrainedTokenizerFast(
                tokenizer_object=bpe, model_max_length=24, **names
            )
            wrapped.save_pretrained(root / kind)
            made[kind] = str(root / kind)
        return made[kind]

    return make


def by_hand(folder: str, ids: list[int]) -> np.ndarray:
    """Hidden states [layers + 1, L, E] of one text, by a model loaded anew."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    module = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    module = module.encoder if module.config.is_encoder_decoder else module
    with torch.no_grad():
        states = module(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([state[0].numpy() for state in states])


def ids_of(folder: str, corpus: str) -> list[int]:
    """The corpus as one line of ids, by the tokenizers library alone."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    documents = (
        tokenizer.encode(document.text, add_special_tokens=False).ids
        for document in open_source(corpus)
    )
    return [number for ids in documents for number in ids]


def test_documents_are_joined_and_cut_and_the_tail_is_dropped() -> None:
    documents = [
        np.arange(5),
        np.zeros(0, int),
        np.arange(5, 6),
        np.arange(6, 14),
        np.arange(14, 17),
    ]
    assert [text.tolist() for text in cut(documents, 4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 14, 15],
    ]
    assert list(cut([np.arange(3)], 4)) == []


@with_extra
@pytest.mark.parametrize("kind", ["gpt2", "bert", "masked", "t5"])
@pytest.mark.parametrize("suffix", [".npz", ".arrayrecord"])
def test_vectors_are_hidden_states_computed_by_hand(
    kind, suffix, model, corpus, tmp_path, capsys
) -> None:
    folder, out = model(kind), tmp_path / f"vectors{suffix}"
    own = [f"hf:{folder}", f"--corpus={corpus}", f"--save={out}", f"--sequence_length={LENGTH}"]
    assert main(["probe", *own, "--limit=70", "--protocol=steps=0"]) == 0
    vectors = open_vectors(out)
    rows, tokens = vectors.take(np.arange(len(vectors)))
    assert tokens.ravel().tolist() == ids_of(folder, corpus)[: 70 * LENGTH]
    assert (len(vectors), vectors.length, vectors.shape) == (70, LENGTH, (1, WIDTH))
    # The last text stands in a batch of other size, behind two full ones.
    for text in (0, 31, 69):
        np.testing.assert_allclose(
            rows[text, 0], by_hand(folder, tokens[text].tolist())[-1, -1], rtol=1e-4, atol=1e-5
        )
    assert np.std(rows, axis=0).min() > 1e-4, "texts differ"
    info = vectors.info
    assert (info.vocabulary, info.pad_id, info.first_content, info.encoder) == (
        320,
        -1,
        0,
        f"{folder} layer -1 read out -1",
    )
    assert info.tokenizer.startswith("hf:") and len(info.tokenizer) == 19
    said = "".join(capsys.readouterr().out.split())
    assert "70textsof8tokens" in said and "random" not in said


@with_extra
def test_layer_and_read_out_say_where_a_vector_is_read(model, corpus, tmp_path) -> None:
    folder, rows = model("gpt2"), {}
    for readout, layer in (("-1", -1), ("-2", -1), ("mean", -1), ("-1", 0), ("mean", 1)):
        path = tmp_path / "vectors.npz"
        embed(folder, corpus, path, LENGTH, limit=3, readout=readout, layer=layer, batch=2)
        rows[readout, layer], tokens = open_vectors(path).take(np.arange(3))
    for text in range(3):
        states = by_hand(folder, tokens[text].tolist())
        wanted = {
            ("-1", -1): states[2, 7],
            ("-2", -1): states[2, 6],
            ("mean", -1): states[2].mean(0),
            ("-1", 0): states[0, 7],
            ("mean", 1): states[1].mean(0),
        }
        for key, vector in wanted.items():
            np.testing.assert_allclose(
                rows[key][text, 0], vector, rtol=1e-4, atol=1e-5, err_msg=str(key)
            )
    assert np.abs(rows["-1", -1] - rows["-2", -1]).max() > 0.1


@with_extra
def test_the_probe_reads_the_file(model, corpus, tmp_path) -> None:
    vectors, out = tmp_path / "gpt2.arrayrecord", tmp_path / "probe.json"
    embed(model("gpt2"), corpus, vectors, LENGTH)
    protocol = "--protocol=width=16,layers=1,heads=2,batch=16,steps=2"
    small = ("--seeds=0", protocol, "--limit=60")
    assert main(["probe", str(vectors), f"--out={out}", *small]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["vocabulary"], result["length"], result["shape"], result["train_texts"]) == (
        320,
        LENGTH,
        [1, WIDTH],
        60,
    )
    assert 0 < result["own"]["nats"]["value"] < 20
    # The model itself as the encoder: its first 60 texts, of which the last tenth is held out.
    own = (f"hf:{model('gpt2')}", f"--corpus={corpus}", f"--sequence_length={LENGTH}")
    saved = tmp_path / "saved.npz"
    assert main(["probe", *own, f"--save={saved}", f"--out={out}", *small]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["encoder"], result["train_texts"]) == (own[0], 54)
    first = open_vectors(vectors).part(0, 60)
    np.testing.assert_array_equal(open_vectors(saved).tokens, first.tokens)
    saved.unlink()
    alone = (f"--save={saved}", "--protocol=steps=0", "--limit=60")
    assert main(["probe", *own, *alone]) == 0
    np.testing.assert_array_equal(open_vectors(saved).tokens, first.tokens)
    assert main(["probe", *own, f"--out={out}", *small]) == 0, "nothing need be saved"
    (unsaved,) = json.loads(out.read_text())["results"]
    assert unsaved["own"]["nats"] == result["own"]["nats"]


@with_extra
def test_a_fingerprint_is_of_the_vocabulary(model) -> None:
    gpt2, bert = open_model(model("gpt2")), open_model(model("bert"))
    assert gpt2.fingerprint == bert.fingerprint, "one tokenizer"
    bert.tokenizer.add_tokens(["another"])
    assert gpt2.fingerprint != bert.fingerprint


@with_extra
def test_weights_that_are_not_in_the_files_are_told(model, tmp_path) -> None:
    """A pooler is not read and not told of; a layer is."""
    from safetensors.numpy import load_file, save_file

    said: list[str] = []
    open_model(model("masked"), warn=said.append)
    assert said == [], "BertForMaskedLM has no pooler"
    for file in Path(model("t5")).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    decoder = next(
        name for name in weights if name.startswith("decoder.") and name.endswith("q.weight")
    )
    encoder = next(
        name for name in weights if name.startswith("encoder.") and name.endswith("q.weight")
    )
    del weights[decoder], weights[encoder]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    open_model(str(tmp_path), warn=said.append)
    assert said == [
        f"{tmp_path}: 1 tensors that are read are not in its files, and are random: {encoder}"
    ]


@with_extra
def test_what_a_model_cannot_do_is_named(model, corpus, tmp_path) -> None:
    folder, out = model("gpt2"), tmp_path / "vectors.npz"
    with pytest.raises(
        ConfigError, match=r"--layer=3: .*gpt2 has hidden states 0 to 2, or -3 to -1"
    ):
        embed(folder, corpus, out, LENGTH, layer=3)
    with pytest.raises(ConfigError, match=r"--length=25: .*gpt2 reads up to 24 tokens"):
        embed(folder, corpus, out, 25)
    with pytest.raises(ConfigError, match="--device=abacus: cannot be used"):
        embed(folder, corpus, out, LENGTH, device="abacus")
    (tmp_path / "short.txt").write_text("a memory")
    with pytest.raises(CorpusError, match=r"short\.txt: holds less than one text of 8 tokens"):
        embed(folder, str(tmp_path / "short.txt"), out, LENGTH)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ConfigError, match="empty: cannot be loaded as a Hugging Face encoder with its tokenizer"
    ):
        embed(str(tmp_path / "empty"), corpus, out, LENGTH)
    assert not out.exists()


@with_extra
def test_a_tokenizer_of_another_model_is_refused(model, corpus, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=WIDTH, n_layer=1, n_head=2)
    for file in Path(model("gpt2")).glob("tok*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"its tokenizer has ids .* and its table 50 rows"):
        embed(str(tmp_path), corpus, tmp_path / "vectors.npz", LENGTH)


@with_extra
def test_vectors_that_are_not_finite_are_refused(model, corpus, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    module = open_model(model("gpt2")).model
    with torch.no_grad():
        module.ln_f.bias[0] = float("nan")
    for file in Path(model("gpt2")).glob("tok*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    module.save_pretrained(tmp_path)
    out = tmp_path / "vectors.arrayrecord"
    with pytest.raises(VectorsError, match="the vector of text 0 holds NaN or infinity"):
        embed(str(tmp_path), corpus, out, LENGTH, limit=5)
    with pytest.raises(VectorsError, match="not written to its end"):
        open_vectors(out)


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_without_the_extra_one_line_says_what_to_install(
    absent, corpus, tmp_path, monkeypatch, capsys
) -> None:
    # What Python itself does with a module that cannot be had. Without the extra torch is looked
    # for first.
    monkeypatch.setitem(sys.modules, "torch", None if absent == "torch" else sys)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["probe", "hf:models/bert", f"--corpus={corpus}"]) == 2
    said = capsys.readouterr().err
    assert (
        f"Hugging Face encoders need {absent}" in said
        and "pip install torch transformers" in said
        and said.count("\n") == 1
    )


def test_the_extra_names_what_is_imported(monkeypatch) -> None:
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "setup.py"))
    assert {"torch>=2.4", "transformers>=4.50"} <= set(given["extras_require"]["embed"])


ARGUMENTS = {
    "a file of another kind": (
        {"out": "vectors.npy"},
        VectorsError,
        r"--save=vectors\.npy: .* \.npz or \.arrayrecord",
    ),
    "no tokens": ({"length": 0}, ConfigError, "--length=0: must be at least 1"),
    "no texts": ({"limit": 0}, ConfigError, "--limit=0"),
    "no batch": ({"batch": 0}, ConfigError, "--batch=0"),
    "a read-out that is none": (
        {"readout": "first"},
        ConfigError,
        "--readout=first: vectors are read at -1, -2, mean",
    ),
    "no last token but one": (
        {"readout": "-2", "length": 1},
        ConfigError,
        "--sequence_length=1 has no last token but one",
    ),
}


@pytest.mark.parametrize(("given", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_wrong_arguments_are_named_before_anything_is_imported(
    given, error, message, monkeypatch
) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(error, match=message):
        embed("models/bert", **({"corpus": "python-docs", "out": "vectors.npz"} | given))


COMMAND_LINES = {
    "two to save": (["hf:a", "hf:b", "--corpus=a", "--save=b.npz"], "--save: given with 2"),
    "no corpus": (["hf:a", "--save=b.npz"], "--corpus: missing, expected text for hf:a"),
    "no file": (["hf:a", "--corpus=a", "--protocol=steps=0"], "--protocol: steps=0, expected"),
    "a read-out that is none": (
        ["hf:a", "--corpus=a", "--readout=-3"],
        "--readout: '-3', expected",
    ),
    "no tokens": (["hf:a", "--corpus=a", "--sequence_length=0"], "--sequence_length: 0, expected"),
    "no layer": (["hf:a", "--transformers=layer=top"], "--transformers: layer='top', expected"),
}


@pytest.mark.parametrize(("args", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_a_wrong_command_line_is_explained(args, message) -> None:
    with pytest.raises(UsageError, match=message):
        probe.run(parse(probe.ARGUMENTS, args))
