"""Readers and mutants of what they read: a mutant is an error of ours, or loads what was written.

A reader is one entry of READERS. Mutants are drawn by a seed, so that each is found again by its
number. Nothing beside the file that changes is touched; memory and time stay bounded.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

import memjax
from memjax.checkpoints import Checkpoints
from memjax.checkpoints.reading import load_sound, read_params
from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import EncoderProvenance, StoredDocument
from memjax.config import from_json, to_json
from memjax.data import load_tokenizer, prepare, train_tokenizer
from memjax.data.pipeline import TrainBatches
from memjax.data.rows import open_rows
from memjax.errors import MemjaxError
from memjax.experiment.export import export
from memjax.experiment.report import write_report
from memjax.experiment.report.run import read_run
from memjax.experiment.run import check_workdir
from memjax.files import sealed
from memjax.interop.huggingface.weights import tensor_names
from memjax.interop.stage import open_stage
from memjax.models.memory import bank
from memjax.objectives import load_config
from memjax.testing import WORDS
from memjax.testing.settings import tree_with
from memjax.testing.workdir import write_stage

# A restore that fails leaves coroutines of Orbax behind; they complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MEMORY, SECONDS = 2**17, 20
"""KiB that the process may grow by for a mutant, and seconds that it may take."""
OVERRIDES = """seed=3
data.corpus=runs/text.jsonl
data.vocab_size=2000
data.validation_share=0.25
model.chunk_length=16
model.encoder.width=64
model.encoder.mlp_ratio=2.0
model.decoder.rope_scaling=8.0,1.0,4.0,8192
optimizer.clip_norm=0.5
optimizer.decay_rules=(('kernel$', 0.1), ('.*', 0.0))
stages.main.learning_rate=1e-4
stages.main.objectives.copy=0.5
stages.main.trainable=(('^encoder/', 2), ('.*', True))
evaluators.recall.examples=5
curriculum=auto,main
"""
GOLDEN = Path(__file__).parents[2] / "golden" / "hf" / "llama32_gqa_tied"
Mutant = Callable[[bytes, random.Random], bytes]
PARAMS = {"kernel": np.arange(12, dtype=np.float32), "norm": {"scale": np.zeros(4, np.float32)}}
EARLIER = "the checkpoint before, reported in one line"


@dataclasses.dataclass(frozen=True)
class Reader:
    """Files of one kind, and what reads them."""

    files: str
    """Patterns of their paths in a folder."""
    load: Callable[[Path], Any]
    """Reads that folder; returns values to compare."""
    make: Callable[[Path, Path], Any] = shutil.copytree
    """Makes it, from a workdir and its path."""
    otherwise: str = ""
    """Why a mutant may load other values; by default none does."""
    accepted: Any = ...
    """Other values that a mutant may load."""
    lenient: bool = False
    """Whether it reads past what is damaged."""
    written: tuple[str, ...] = ()
    """Files that `load` writes."""
    counts: tuple[int, int, int] = (50, 1_000, 10_000)
    """Mutants in `make test`, `make slow` and `make night`."""


def tree_values(params: Any) -> dict[str, tuple[Any, ...]]:
    flat = flatten_dict(jax.device_get(params), sep="/")
    return {name: (x.shape, x.dtype, x.tobytes()) for name, x in flat.items()}


def unsealed(
    make: Callable[[Path, Path], Any] = shutil.copytree,
) -> Callable[[Path, Path], None]:
    """As earlier versions wrote it."""

    def make_old(made: Path, folder: Path) -> None:
        make(made, folder)
        for file in (*folder.rglob("*.json"), *folder.rglob("metadata")):
            value = json.loads(file.read_text())
            left = {key: value[key] for key in value if key not in ("sha256", "sealed")}
            file.write_text(json.dumps(left))
            if not left:
                file.unlink()

    return make_old


def write_overrides(made: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "overrides.txt").write_text(OVERRIDES)


def load_overrides(folder: Path) -> Any:
    """A config that loads is whole: it survives its JSON."""
    text = (folder / "overrides.txt").read_bytes().decode(errors="surrogateescape")
    pairs = [line.partition("=")[::2] for line in text.splitlines()]
    config = load_config(tree_with({}), pairs)
    assert load_config(to_json(config)) == config
    return config


def copy_with_config(made: Path, folder: Path) -> None:
    shutil.copytree(made, folder)
    shutil.copyfile(folder / "config.json", folder / "config.json.kept")


def load_resumed(folder: Path) -> Any:
    """Another run's config is an error; the same one has equal values."""
    check_workdir(from_json((folder / "config.json.kept").read_text()), folder)


def load_prepared(folder: Path) -> Any:
    data = prepare(from_json((folder / "config.json").read_text()).data, folder / "data")
    rows = [
        (len(rows), rows.info["tokens"], rows[0].tolist()) for rows in (data.train, data.validation)
    ]
    return data.tokenizer.fingerprint, rows, data.info["bytes_per_token"], data.info["documents"]


def load_rows(folder: Path) -> Any:
    """All rows, and a batch."""
    fingerprint = json.loads((folder / "data" / "prepared.json").read_text())["tokenizer"]
    found = []
    for split in ("train", "validation"):
        rows = open_rows(folder / "data" / "rows-32", split, fingerprint)
        found.append(rows.read(range(len(rows))).tolist())
        found.append(TrainBatches(rows, 8, 0).batch(0)["tokens"].tolist())
    return found


def write_store(made: Path, folder: Path) -> None:
    settings = {"encoder": {"width": 4, "mlp_ratio": 2.0, "kind": "mixer"}, "compat": []}
    store = MemoryStore(
        EncoderProvenance(
            *("autoencoder", "ae", 7, settings, "ab" * 32, "0" * 16, 300, 8, {"vectors": (2, 4)})
        ),
        "int8",
    )
    for name, chunks in (("a.txt#0", 3), ("日本", 1)):
        spans = np.array([[8 * i, 8, 16 * i, 16 * i + 16] for i in range(chunks)])
        vectors = np.random.default_rng(chunks).normal(size=(chunks, 2, 4)).astype(np.float32)
        store.append(StoredDocument(name, 8 * chunks, 16 * chunks), bank(vectors), spans)
    folder.mkdir()
    store.save(folder / "memories")


def load_store(folder: Path) -> Any:
    store = memjax.open_store(folder / "memories")
    texts = store.tokens, store.text_bytes, store.spans.tolist(), store.documents
    return store.provenance, store.dtype, texts, tree_values(store.memories.leaves)


def write_export(made: Path, folder: Path) -> None:
    export(made, folder, shard_bytes=20_000)


def load_model(folder: Path) -> Any:
    model = memjax.load(folder)
    tokenizer = model.required_tokenizer.fingerprint
    return to_json(model.config), model.stage, model.step, tokenizer, tree_values(model.params)


def load_sealed(folder: Path) -> Any:
    """The checksum of the manifest is made right first, so that all behind it is tried."""
    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
        value = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(sealed(value)))
    return load_model(folder)


def write_huggingface(made: Path, folder: Path) -> None:
    """A model with an index and settings of a tokenizer."""
    shutil.copytree(GOLDEN, folder)
    shutil.copyfile(made / "data" / "tokenizer.model", folder / "tokenizer.model")
    names = open_stage(f"hf:{folder}").pretrained.files.tensors
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "model_max_length": 8}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def load_huggingface(folder: Path) -> Any:
    """Settings, and the values of all tensors; not read onto devices, which compiles."""
    stage = open_stage(f"hf:{folder}")
    pretrained = stage.pretrained
    leaves = flatten_dict(pretrained.parameters(), sep="/").values()
    names = [name for leaf in leaves for name in tensor_names(pretrained.stack, leaf.path)]
    return (
        to_json(stage.config),
        stage.fingerprint,
        [pretrained.files.read(name, (slice(None),)).tobytes() for name in names],
    )


def write_byte_level(made: Path, folder: Path) -> None:
    folder.mkdir()
    train_tokenizer([" ".join(WORDS)] * 9, 560, "byte_level").save(folder / "tokenizer.json")
    for name, key in (("tokenizer", "eos_token"), ("generation", "bos_token_id")):
        (folder / f"{name}_config.json").write_text(json.dumps({key: 0, "pad_token": None}))


def load_vocabulary(folder: Path) -> Any:
    """A vocabulary that loads gives texts back, or is not exact; all ids have a name."""
    tokenizer = load_tokenizer(folder / "data" if (folder / "data").exists() else folder)
    pieces = tokenizer.pieces(range(tokenizer.vocabulary))
    text = " a memory\tholds \u4e2d what\n the chunk\0<s> "
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text or not tokenizer.exact
    assert len(tokenizer.ends(text, ids)) == len(ids)
    borders = tokenizer.bos_id, tokenizer.eos_id, tokenizer.content
    return tokenizer.fingerprint, pieces, borders, tokenizer.byte_lengths.tolist(), ids.tolist()


def write_checkpoints(made: Path, folder: Path) -> None:
    """Two steps of a stage of a few numbers."""
    config = from_json((made / "config.json").read_text())
    for step in (2, 4):
        params = jax.tree.map(lambda x, step=step: x + step, PARAMS)
        write_stage(folder, config, "autoencoder", "0" * 16, params, step)


@functools.cache
def params_of(path: epath.Path, contents: frozenset[tuple[Path, str]]) -> dict[str, Any]:
    """Parameters of a step, read once for the same contents: every mutant leaves the files of one
    step alone."""
    return tree_values(read_params(path))


def load_checkpoint(folder: Path) -> Any:
    with mock.patch("memjax.checkpoints.reading._LOG.warning") as warning:
        path, meta, config = load_sound(folder / "stages" / "autoencoder" / "checkpoints")
        params = params_of(path, frozenset(state(Path(path), set()).items()))
    if path.name == "2" and warning.call_count == 1:
        assert np.frombuffer(params["kernel"][2], np.float32)[0] == 2
        return EARLIER
    return path.name, meta, to_json(config), params


def load_resumed_checkpoint(folder: Path) -> Any:
    """As training resumes, in a copy, as it sets damaged ones aside."""
    said: list[str] = []
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
        (PARAMS, {"step": np.int32()}),
    )
    copy = shutil.copytree(folder / "stages" / "autoencoder" / "checkpoints", folder / "copy")
    try:
        with Checkpoints(copy, report=said.append) as checkpoints:
            found = checkpoints.restore_latest(*wanted)
    finally:
        shutil.rmtree(copy)
    assert found is not None
    number, params, optimizer, meta = found
    if number == 2 and len(said) == 1:
        assert float(params["kernel"][0]) == int(optimizer["step"]) == 2
        return EARLIER
    return number, tree_values(params), int(optimizer["step"]), meta


VOCABULARY = "A vocabulary has no checksum; what was made with it has its fingerprint"
OLD = "Earlier versions wrote no checksums"
STEPS = "stages/*/*/*/**/*"
READERS = {
    "overrides": Reader(
        "overrides.txt", load_overrides, write_overrides, "Any valid setting is one"
    ),
    "results": Reader(
        "results.json", write_report, otherwise="It has no checksum", written=("report.html",)
    ),
    "metrics": Reader(
        "stages/autoencoder/metrics.jsonl",
        read_run,
        otherwise="A kill may leave half a line, which is left out",
        lenient=True,
    ),
    "prepared": Reader("data/*.json data/rows-32/*.json data/*.model", load_prepared),
    "old data": Reader("data/*.json data/rows-32/*.json", load_prepared, unsealed(), OLD),
    "rows": Reader("data/rows-32/*", load_rows),
    "config": Reader("config.json", load_resumed, copy_with_config),
    "store": Reader("memories", load_store, write_store),
    "export": Reader("*.json *.safetensors tokenizer.model", load_model, write_export),
    "sealed export": Reader(
        "config.json",
        load_sealed,
        write_export,
        "Whoever changes an export can seal it",
        written=("config.json",),
    ),
    "huggingface": Reader(
        "*.json *.safetensors",
        load_huggingface,
        write_huggingface,
        "Folders of Hugging Face have no checksums",
    ),
    "tokenizer.model": Reader("data/tokenizer.model", load_vocabulary, otherwise=VOCABULARY),
    "tokenizer.json": Reader("*", load_vocabulary, write_byte_level, VOCABULARY),
    "checkpoint": Reader(STEPS, load_checkpoint, write_checkpoints, accepted=EARLIER, lenient=True),
    "old checkpoint": Reader(
        STEPS, load_checkpoint, unsealed(write_checkpoints), OLD, lenient=True
    ),
    "resumed": Reader(
        STEPS,
        load_resumed_checkpoint,
        write_checkpoints,
        accepted=EARLIER,
        lenient=True,
        counts=(20, 400, 10_000),  # An Orbax manager is opened for each.
    ),
}


def state(folder: Path, without: set[Path]) -> dict[Path, str]:
    """What lies in a folder, beside some files."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if path not in without
    }


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_mutants(
    name: str, size: int, mutant: Mutant, made: Path, tmp_path: Path
) -> collections.Counter[str]:
    reader, folder = READERS[name], tmp_path / "run"
    reader.make(made, folder)
    files = sorted({x for y in reader.files.split() for x in folder.glob(y) if x.is_file()})
    whole = reader.load(folder)
    written = {folder / path for path in reader.written}
    before, peak = state(tmp_path, written), peak_memory()
    count: collections.Counter[str] = collections.Counter()
    for number in range(reader.counts[size]):
        draw = random.Random(f"{name} {number}")
        file = draw.choice(files)
        contents = file.read_bytes()
        changed = mutant(contents, draw)
        file.write_bytes(changed)
        at = f"mutant {number} of {file.relative_to(folder)}"
        try:
            with limited_time():
                found = reader.load(folder)
        except MemjaxError as error:
            count["refused"] += 1
            said = str(error)
            assert said.isprintable() and len(said) < 2000, f"{at}: {said[:200]!r}"
        except Exception as error:
            raise AssertionError(f"{at}: {changed[:2000]!r}") from error
        else:
            equal = found == whole
            count["equal" if equal else "otherwise"] += 1
            assert equal or reader.otherwise or found == reader.accepted, f"{at}: other values"
        file.write_bytes(contents)
        peak, past = peak_memory(), peak
        assert peak - past < MEMORY, f"{at}: {peak - past} KiB"
    assert reader.lenient or count["refused"] >= count.total() // 10
    assert state(tmp_path, written) == before
    assert reader.load(folder) == whole
    return count


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take a hundred times as long as all that is read."""
    monkeypatch.setattr("memjax.experiment.report.plots.draw_all", lambda *_: ([], []))


@pytest.mark.usefixtures("no_plots", "quick_collection")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "size",
    [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.night)],
    ids=["test", "slow", "night"],
)
def test_a_mutant_is_refused_or_loads_what_was_written(
    name: str,
    size: int,
    mutant: Mutant,
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    count = try_mutants(name, size, mutant, made, tmp_path)
    # Orbax's own threads print where a read was abandoned.
    assert name == "old checkpoint" or not capfd.readouterr().err
    print(name, dict(count))
