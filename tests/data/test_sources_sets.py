"""TensorFlow Datasets and data sets in the hub's layout, made here and read by the code that reads
real ones."""

import gzip
import json
import pickle
import shutil
import sys

import numpy as np
import pytest

from memjax.data.sources import CorpusError, open_source

TALES = [f"tale {i} é " + "word " * (i % 7) for i in range(60)]


def agreed(source) -> list:
    """The documents of a source, which must be the same in every way of asking for them."""
    documents = list(source)
    blocks = source.blocks(300)
    assert len(blocks) > 2
    copy = pickle.loads(pickle.dumps(source))
    assert [document for block in blocks for document in copy.read(block)] == documents
    assert copy.blocks(300) == blocks
    assert (
        json.loads(json.dumps(source.mtime_signature()))
        == source.mtime_signature()
        == copy.mtime_signature()
    )
    return documents


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as `tfds build --file_format=array_record` leaves it: tiny_tales/en/1.0.0 of 60
    tales and a blank one."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("prepared")

    class TinyTales(tfds.core.GeneratorBasedBuilder):
        code_path = None  # Of this class; there are no checksums beside it.
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="en", version="1.0.0"),)

        def _info(self):
            features = {"text": tfds.features.Text(), "n": np.int64}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n, text in enumerate([*TALES, " "]):
                yield n, {"text": text, "n": n}

    TinyTales(data_dir=folder, config="en", file_format="array_record").download_and_prepare(
        file_format="array_record"
    )
    return folder


def test_a_prepared_data_set_is_read_without_tensorflow(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    loaded = "tensorflow" in sys.modules
    source = open_source("tfds:tiny_tales/en")
    documents = agreed(source)
    # The data set's own order is shuffled.
    assert sorted(document.text for document in documents) == sorted(TALES)
    assert documents[0].id.startswith("tfds:tiny_tales/en/1.0.0#")
    assert source.blocks(1 << 62)[-1].stop == 61
    for corpus in (
        "tfds:tiny_tales/en:1.0.0",
        f"tfds:tiny_tales/en?data_dir={prepared}&split=train",
        f"tfds:{prepared}/tiny_tales/en/1.0.0",
    ):
        assert list(open_source(corpus)) == documents
    assert ("tensorflow" in sys.modules) == loaded
    part = open_source("tfds:tiny_tales/en?split=train[10:]")
    assert part.blocks(1 << 62)[-1].stop == 51
    last = [document.text for document in documents if int(document.id.split("#")[1]) >= 10]
    assert [document.text for document in part] == last
    assert part.mtime_signature() != source.mtime_signature()


@pytest.mark.parametrize(
    ("corpus", "field", "message"),
    [
        (
            "tfds:tiny_fables",
            "text",
            r"tfds:tiny_fables: not prepared in .*`tfds build tiny_fables"
            r" --file_format=array_record",
        ),
        ("tfds:tiny_tales/en:2.0.0", "text", r"not prepared in .*set TFDS_DATA_DIR"),
        (
            "tfds:tiny_tales/en?split=test",
            "text",
            r"split=test: Unknown split 'test'. Should be one of \['train'\]",
        ),
        (
            "tfds:tiny_tales/en",
            "body",
            r"tiny_tales/en: no feature 'body', only n, text\. Set config\.data\.text_field",
        ),
        ("tfds:tiny_tales/en", "n", r"tiny_tales/en: feature 'n' is .*int64.*, expected text"),
    ],
)
def test_what_is_not_prepared_is_said(prepared, monkeypatch, corpus, field, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(CorpusError, match=message):
        open_source(corpus, field)


def test_tfrecord_and_damage_are_said(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    version = tmp_path / "tiny_tales" / "en" / "1.0.0"
    shutil.copytree(prepared / "tiny_tales", tmp_path / "tiny_tales")
    [shard] = version.glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        CorpusError, match=r"tfds:tiny_tales/en/1\.0\.0#0: the file is absent, truncated or damaged"
    ):
        list(open_source("tfds:tiny_tales/en", skip_damaged=True))
    shard.rename(str(shard).replace("array_record", "tfrecord"))
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        CorpusError,
        match=r"as tfrecord, expected array_record.*`tfds build tiny_tales/en"
        r" --file_format=array_record",
    ):
        open_source("tfds:tiny_tales/en")


CARD = """---
license: cc0-1.0
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# Tiny tales
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set in the hub's layout, with two configs; the hub itself is out of reach."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub
    import pyarrow as pa
    import pyarrow.parquet as parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "tiny-tales"
    for name, texts in (
        ("data/a", TALES),
        ("sample/10BT/000_00000", TALES[:20]),
        ("sample/10BT/001_00000", [" ", *TALES[20:40]]),
    ):
        file = folder / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(
            pa.table({"text": texts, "id": list(range(len(texts)))}), file, row_group_size=8
        )
    (folder / "README.md").write_text(CARD)
    return folder


def test_a_folder_in_the_hubs_layout(hub):
    assert [document.text for document in agreed(open_source(f"hf:{hub}"))] == TALES
    source = open_source(f"hf:{hub}:sample-10BT")
    documents = agreed(source)
    assert [document.text for document in documents] == TALES[:40]
    assert documents[20].id == f"{hub}/sample/10BT/001_00000.parquet#1", (
        "the blank row has a number too"
    )
    # A process that reads a part of it needs neither the hub nor an index.
    assert len(pickle.dumps(source)) < 2000


def test_json_lines_in_the_hubs_layout(tmp_path, hub):
    for name, texts in (("train-0.json.gz", TALES[:30]), ("validation.json.gz", TALES[30:])):
        lines = "".join(json.dumps({"content": text}) + "\n" for text in texts)
        (tmp_path / "json" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "json" / name).write_bytes(gzip.compress(lines.encode()))
    for split, texts in (("train", TALES[:30]), ("validation", TALES[30:])):
        source = open_source(f"hf:{tmp_path / 'json'}?split={split}", "content")
        assert [document.text for document in source] == texts


def test_other_text_gives_another_stamp(hub):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    before = open_source(f"hf:{hub}").mtime_signature()
    assert open_source(f"hf:{hub}").mtime_signature() == before
    parquet.write_table(
        pa.table({"text": TALES[::-1], "id": list(range(60))}), hub / "data" / "a.parquet"
    )
    source = open_source(f"hf:{hub}")
    assert source.mtime_signature() != before
    assert next(iter(source)).text == TALES[-1]


def test_rows_without_text(hub):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"text": ["one", None, "three"]}), hub / "data" / "a.parquet")
    source = open_source(f"hf:{hub}", skip_damaged=True)
    assert [document.text for document in source] == ["one", "three"]
    assert source.skipped == {"not text": 1}
    with pytest.raises(CorpusError, match=r"#1: field 'text' holds null"):
        list(open_source(f"hf:{hub}"))


def test_data_sets_that_are_not_there(hub, monkeypatch):
    for corpus, field, message in (
        (
            f"hf:{hub}",
            "content",
            r"no column 'content', only text, id\. Set config\.data\.text_field",
        ),
        (
            f"hf:{hub}:nope",
            "text",
            r"BuilderConfig 'nope' not found. Available: \['default', 'sample-10BT'\]",
        ),
        (
            f"hf:{hub}?split=test",
            "text",
            r"no split 'test', only train\. Choose one by \?split=NAME",
        ),
        (
            "hf:nobody/tiny-tales:a",
            "text",
            r"hf:nobody/tiny-tales:a: the hub is not reachable \(.*hf:FOLDER",
        ),
    ):
        with pytest.raises(CorpusError, match=message):
            list(open_source(corpus, field))
    (hub / "data" / "a.parquet").write_bytes(b"not Parquet")
    with pytest.raises(CorpusError, match=r"data/a\.parquet: damaged or not a Parquet file"):
        list(open_source(f"hf:{hub}"))
    (hub / "data" / "a.parquet").rename(hub / "data" / "a.csv")
    with pytest.raises(
        CorpusError,
        match=r"holds files such as .*a\.csv, expected \.txt.*\."
        r" .*\?revision=refs/convert/parquet",
    ):
        open_source(f"hf:{hub}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        CorpusError,
        match=r"needs the package datasets\. Run `pip install datasets`",
    ):
        open_source(f"hf:{hub}")
