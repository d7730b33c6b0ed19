"""Every kind of source, from the flag that names it: `memjax prepare`, then `memjax train`."""

import gzip
import json
from pathlib import Path

import pytest

from memjax.cli.main import main
from memjax.data import train_tokenizer
from memjax.testing import write_corpus

CONFIG = """
import dataclasses
from memjax import config as c
from memjax.testing import tiny_config

def get_config(argument=""):
    config = tiny_config("", steps=2)
    stage = dataclasses.replace(config.stages["causal_control"], family="causal_lm")
    data = dataclasses.replace(config.data, validation_share=0.2)
    config = dataclasses.replace(
        config, data=data, stages={"train": stage}, curriculum=("train",), controls=(),
        evaluators=c.usual_evaluators(examples=8),
    )
    return c.to_config_dict(config)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the config, and the text as JSON lines."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "config.py").write_text(CONFIG)
    write_corpus(folder / "corpus.jsonl")
    return folder


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]


def plain(folder: Path) -> str:
    (folder / "corpus.txt").write_text("\n<|endoftext|>\n".join(texts(folder)))
    return str(folder / "corpus.txt")


def packed(folder: Path) -> str:
    arrow = pytest.importorskip("pyarrow")
    (folder / "packed").mkdir()
    half, raw = (
        len(texts(folder)) // 2,
        (folder / "corpus.jsonl").read_bytes().splitlines(keepends=True),
    )
    (folder / "packed/one.jsonl.gz").write_bytes(gzip.compress(b"".join(raw[:half])))
    zstd = arrow.compress(b"".join(raw[half:]), codec="zstd", asbytes=True)
    (folder / "packed/two.jsonl.zst").write_bytes(zstd)
    return str(folder / "packed")


def parquet(folder: Path) -> str:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        arrow.table({"text": texts(folder)}), folder / "corpus.parquet", row_group_size=16
    )
    return str(folder / "corpus.parquet")


def records(folder: Path) -> str:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "corpus.arrayrecord"), "group_size:1")
    for text in texts(folder):
        writer.write(text.encode())
    writer.close()
    return str(folder / "corpus.arrayrecord")


def hub(folder: Path) -> str:
    """As a data set lies on the hub: a card that says which files are which config, and Parquet."""
    pytest.importorskip("datasets")
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (folder / "hub/sample").mkdir(parents=True)
    card = (
        "configs:\n- config_name: sample\n  data_files:\n  - split: train\n    path:"
        " sample/*.parquet\n"
    )
    (folder / "hub/README.md").write_text(f"---\n{card}---\nText.\n")
    for number in range(2):
        half = texts(folder)[number::2]
        pyarrow.parquet.write_table(
            arrow.table({"text": half}), folder / f"hub/sample/{number}.parquet"
        )
    return f"hf:{folder / 'hub'}:sample"


def tfds_texts(folder: Path) -> str:
    import tensorflow_datasets as tfds

    class SmallTales(tfds.core.GeneratorBasedBuilder):
        code_path = None
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((number, {"text": text}) for number, text in enumerate(texts(folder)))

    SmallTales(data_dir=folder / "tfds", file_format="array_record").download_and_prepare(
        file_format="array_record"
    )
    return f"tfds:small_tales?data_dir={folder / 'tfds'}"


def mixture(folder: Path) -> str:
    write_corpus(folder / "other.jsonl", seed=1)
    return f"0.7*{folder / 'corpus.jsonl'} + 0.3*{folder / 'other.jsonl'}"


SOURCES = (plain, packed, parquet, records, hub, tfds_texts, mixture)


def run(folder: Path, name: str, corpus: str, *more: str) -> dict:
    flags = [
        f"--config={folder / 'config.py'}",
        f"--workdir={folder / 'runs' / name}",
        f"--config.data.corpus={corpus}",
        *more,
    ]
    assert main(["prepare", *flags]) == 0
    data = folder / "runs" / name / "data"
    before = {file: file.stat().st_mtime_ns for file in data.rglob("*") if file.is_file()}
    assert main(["train", *flags]) == 0
    assert {file: file.stat().st_mtime_ns for file in data.rglob("*") if file.is_file()} == before
    return json.loads((folder / "runs" / name / "results.json").read_text())


@pytest.mark.quick_cases(slow=("plain", "hub", "tfds_texts"))
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_prepare_and_train(folder, source):
    results = run(folder, source.__name__, source(folder))
    assert results["models"]["train"]["next_token_nats"] > 0
    assert results["data"]["documents"] >= 60


@pytest.mark.slow
def test_rows_that_tfds_prepared(folder):
    from memjax.data.tfds_text import MemjaxText, TextConfig

    train_tokenizer(texts(folder), 320).save(folder / "tokenizer.model")
    own = {"corpus": str(folder / "corpus.jsonl"), "tokenizer": str(folder / "tokenizer.model")}
    config = TextConfig(name="rows", row_tokens=32, validation_share=0.2, **own)
    MemjaxText(
        config=config, data_dir=str(folder / "tfds"), file_format="array_record"
    ).download_and_prepare()
    corpus = f"tfds:memjax_text/rows?data_dir={folder / 'tfds'}"
    assert (
        main(
            [
                "train",
                f"--config={folder / 'config.py'}",
                f"--workdir={folder / 'none'}",
                f"--config.data.corpus={corpus}",
            ]
        )
        == 2
    )
    flags = [
        f"--config={folder / 'config.py'}",
        f"--workdir={folder / 'rows'}",
        f"--config.data.corpus={corpus}",
    ]
    flags.append(f"--config.data.tokenizer={folder / 'tokenizer.model'}")
    assert main(["prepare", *flags]) == 0
    assert main(["train", *flags]) == 0
    assert (
        json.loads((folder / "rows/results.json").read_text())["models"]["train"]["next_token_nats"]
        > 0
    )
