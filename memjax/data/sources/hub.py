"""Data sets of the Hugging Face hub, or of a folder in the layout of the hub.

The package `datasets` (an extra) finds the files of a config and split, and downloads those that
are not in its cache (HF_HOME). They are then read like all other files: in constant memory and
without a second copy on disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from memjax.config import HUGGINGFACE
from memjax.data.sources.base import CorpusError
from memjax.data.sources.files import FORMATS, FilesSource, suffix_of
from memjax.data.sources.lines import JsonLinesPart
from memjax.data.sources.streams import missing
from memjax.errors import few

_FORMATS = FORMATS | dict.fromkeys((".json", ".json.gz", ".json.zst"), JsonLinesPart)
"""On the hub, names of JSON-lines files often end in .json."""
_CONVERTED = "refs/convert/parquet"
"""The branch that holds the conversion of a data set to Parquet by the hub."""


class HubSource(FilesSource):
    """The files of one config and split, in the order of the hub."""

    PREFIX = HUGGINGFACE
    OPTIONS = ("split", "revision")

    def __init__(
        self,
        corpus: str,
        data_set: str,
        options: dict[str, str],
        text_field: str,
        skip_damaged: bool,
    ):
        """Open `data_set`, and download it unless it is in the cache.

        Args:
          corpus: the corpus as the config names it.
          data_set: `OWNER/NAME[:CONFIG]` on the hub, or `FOLDER[:CONFIG]` of the same files.
          options: `split` (default: train); `revision`, a commit or branch.
          text_field: the column that holds the text.
          skip_damaged: as for `open_source`.

        Raises:
          CorpusError: the data set is not reachable, has no such config or split, or has files of
            other formats; or `datasets` is not installed.
        """
        name, config = _name_and_config(data_set)
        split = options.get("split", "train")
        with _named(corpus, Path(name).is_dir()):
            import datasets

            builder = datasets.load_dataset_builder(name, config, revision=options.get("revision"))
            found: dict[str, list[str]] = {
                str(key): list(files) for key, files in (builder.config.data_files or {}).items()
            }
            CorpusError.require(
                split in found,
                f"{corpus}: no split {split!r}, only {few(found)}. Choose one by ?split=NAME",
            )
            addresses = found[split]
            for address in addresses:
                CorpusError.require(
                    suffix_of(Path(address), _FORMATS),
                    f"{corpus}: holds files such as {address}, expected"
                    f" {', '.join(_FORMATS)}. Add ?revision={_CONVERTED} if the hub converted"
                    " the data set to Parquet",
                )
            # Checksums would need a pass over all bytes.
            files = datasets.DownloadManager(record_checksums=False).download(addresses)
        super().__init__(corpus, [Path(file) for file in files], text_field, skip_damaged, _FORMATS)
        if list(files) != addresses:  # They hold the commit.
            self.signature = [
                [address, entry[1]]
                for address, entry in zip(addresses, self.signature, strict=True)
            ]


def _name_and_config(data_set: str) -> tuple[str, str | None]:
    """Return the name of a folder or data set, and the config after the last colon."""
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
    """Raise one error that names the corpus in place of those of `datasets`."""
    try:
        import datasets
        import huggingface_hub.errors as hub
    except ImportError as error:
        raise missing(corpus, "datasets") from error
    try:
        yield
    except CorpusError:
        raise
    except (datasets.exceptions.DatasetNotFoundError, hub.GatedRepoError) as error:
        remedy = (
            ""
            if local
            else ". Request access on its page and run `hf auth login`, or check OWNER/NAME"
        )
        raise CorpusError(f"{corpus}: {_first_line(error)}{remedy}") from error
    except (ConnectionError, hub.HfHubHTTPError, hub.LocalEntryNotFoundError) as error:
        raise CorpusError(
            f"{corpus}: the hub is not reachable ({_first_line(error)}). Run `hf download"
            " --repo-type dataset OWNER/NAME --local-dir FOLDER` on a machine with a network, and"
            " set config.data.corpus=hf:FOLDER[:CONFIG]"
        ) from error
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(f"{corpus}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
