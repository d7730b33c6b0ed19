"""Data sets of the Hugging Face hub, or of a folder in the hub's layout.

The package `datasets` (an extra) finds the files of a config and split and downloads those that are not in its cache (HF_HOME). They
are then read as any other files are: in any order, with constant memory, and without a second copy on disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memjax.data.sources.base import CorpusError
from memjax.data.sources.files import FORMATS, FilesSource, suffix_of
from memjax.data.sources.lines import JsonLinesPart
from memjax.data.sources.streams import missing

PREFIX = "hf:"
OPTIONS = ("split", "revision")
_FORMATS = FORMATS | dict.fromkeys((".json", ".json.gz", ".json.zst"), JsonLinesPart)
"""On the hub, JSON lines are often called .json."""
_CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps its own conversion of a data set to Parquet."""


class HubSource(FilesSource):
    """The files of one config and split, in the order of the hub."""

    def __init__(self, corpus: str, data_set: str, options: dict[str, str], text_field: str, skip_damaged: bool):
        """Opens `data_set`, and downloads it where that has not been done.

        Args:
          corpus: as the config has it.
          data_set: `OWNER/NAME[:CONFIG]` on the hub, or a folder with the same files: `FOLDER[:CONFIG]`.
          options: `split` (default: train); `revision`, a commit or branch.
          text_field: the column with the text.
          skip_damaged: as for `open_source`.

        Raises:
          CorpusError: it cannot be reached, has no such config or split, has files of other formats, or `datasets` is not installed.
        """
        name, config = _name_and_config(data_set)
        split = options.get("split", "train")
        with _named(corpus, Path(name).is_dir()):
            import datasets

            builder = datasets.load_dataset_builder(name, config, revision=options.get("revision"))
            found: dict[str, list[str]] = {str(key): list(files) for key, files in (builder.config.data_files or {}).items()}
            if split not in found:
                raise CorpusError(f"{corpus}: has no split {split!r}, only {', '.join(found)}; choose one by ?split=NAME")
            addresses = found[split]
            for address in addresses:
                if not suffix_of(Path(address), _FORMATS):
                    raise CorpusError(
                        f"{corpus}: its files are such as {address}; {', '.join(_FORMATS)} are read; the hub's own conversion to Parquet is"
                        f" read with ?revision={_CONVERTED} where there is one"
                    )
            # Sums of files would be worked out over all bytes.
            files = datasets.DownloadManager(record_checksums=False).download(addresses)
        super().__init__(corpus, [Path(file) for file in files], text_field, skip_damaged, _FORMATS)
        self._remote = [address for address, file in zip(addresses, files, strict=True) if address != file]
        self._addresses = addresses

    def stamp(self) -> list[list[Any]]:
        """Address (with the commit) and bytes of each file; of files in a folder: name, bytes and time."""
        stamp = super().stamp()
        return [[address, state[1]] for address, state in zip(self._addresses, stamp, strict=True)] if self._remote else stamp


def _name_and_config(data_set: str) -> tuple[str, str | None]:
    """A folder's or data set's name, and the config after the last colon."""
    folder = Path(data_set).expanduser()
    if folder.is_dir():
        return str(folder), None
    name, colon, config = data_set.rpartition(":")
    if not colon:
        return data_set, None
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name, config


@contextlib.contextmanager
def _named(corpus: str, local: bool) -> Iterator[None]:
    """Turns what `datasets` raises into one error that names the corpus."""
    try:
        import datasets
        import huggingface_hub.errors as hub
    except ImportError as error:
        raise missing(corpus, "datasets", "hf") from error
    try:
        yield
    except CorpusError:
        raise
    except (datasets.exceptions.DatasetNotFoundError, hub.GatedRepoError) as error:
        remedy = "" if local else "; ask for access on its page and log in with `hf auth login`, or check OWNER/NAME"
        raise CorpusError(f"{corpus}: {_first_line(error)}{remedy}") from error
    except (ConnectionError, hub.HfHubHTTPError, hub.LocalEntryNotFoundError) as error:
        raise CorpusError(
            f"{corpus}: the hub cannot be reached ({_first_line(error)}); where there is a network, `hf download --repo-type dataset"
            " OWNER/NAME --local-dir FOLDER` fetches all files, and config.data.corpus=hf:FOLDER[:CONFIG] reads them"
        ) from error
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(f"{corpus}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
