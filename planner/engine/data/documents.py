"""Documents of a corpus: folders, text files, JSONL and Parquet tables, saved data sets.

Documents are UTF-8; what becomes of others is a setting.
"""

from __future__ import annotations

import json
import os
import platform
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner.engine.data.extras import need
from planner.errors import ConfigError, did_you_mean
from planner.trial import DataConfig, SourceConfig

__all__ = ["STDLIB", "Documents", "existing_path", "list_documents", "stamps", "walk"]

STDLIB: Final = "python-stdlib"
_NOT_STDLIB: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS: Final = frozenset({"test", "tests", "idle_test", "testing"})
_TABLES: Final = frozenset({".jsonl", ".ndjson", ".parquet"})
"""Endings of files that hold one document per row."""
_PART_BYTES: Final = 1 << 20
"""Text is checked in parts of this size, since its characters take up to four times as much."""
_DATASET_MARKS: Final = ("dataset_dict.json", "state.json")
"""Files that `datasets` writes into a folder, of several splits and of one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """Where a source's documents are; nothing has been read."""

    kind: str
    """`folder`, `table`, `dataset` or `text`; a text is one document."""
    path: Path
    files: tuple[Path, ...]
    column: str
    split: str
    rule: str
    """`data.invalid_text`."""

    def key(self) -> tuple[object, ...]:
        """Return what a kept copy depends on."""
        seen = stamps(self.files)
        version = platform.python_version()
        return (self.kind, version, str(self.path), self.column, self.split, self.rule, seen)

    def read(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield the name of every document and its UTF-8 text; None where it is to be left out.

        Raises:
            ConfigError: A file cannot be read, or a document has no text or is not UTF-8.
        """
        if self.kind in ("folder", "text"):
            for file in self.files:
                name = file.relative_to(self.path).as_posix() if self.kind == "folder" else ""
                yield name, self._checked(_read_file(file), str(file))
            return
        rows = self._dataset() if self.kind == "dataset" else self._table()
        for number, content in enumerate(rows):
            yield f"row {number}", content

    def _checked(self, content: bytes, place: str) -> bytes | None:
        """Return a document as UTF-8 under the rule for what is not."""
        wrong = None if self.rule == "keep" else _first_wrong_byte(content)
        if wrong is None:
            return content
        if self.rule == "refuse":
            raise _not_utf8(place, wrong, content[wrong])
        return content.decode(errors="replace").encode() if self.rule == "replace" else None

    def _encoded(self, text: object, place: str) -> bytes | None:
        """Return a row's text as UTF-8: JSON may hold halves of characters, which have none."""
        if not isinstance(text, str):
            return None
        return self._checked(text.encode(errors="surrogatepass"), place)

    def _table(self) -> Iterator[bytes | None]:
        path = self.files[0]
        if path.suffix == ".parquet":
            yield from self._parquet(path)
            return
        for number, line in enumerate(_read_file(path).split(b"\n"), start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            checked = self._checked(line, place)
            if checked is None:
                yield None
                continue
            row = _parse(checked, place)
            text = row.get(self.column) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise _no_column(
                    f"{place}: every row", self.column, row if isinstance(row, dict) else ()
                )
            yield self._encoded(text, place)

    def _parquet(self, path: Path) -> Iterator[bytes | None]:
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise ConfigError(f"{path} is no readable Parquet file: {error}.") from error
        schema = file.schema_arrow
        if self.column not in schema.names or not _is_text(schema.field(self.column).type):
            raise _no_column(str(path), self.column, schema.names)
        rows = 0
        for batch in file.iter_batches(columns=[self.column]):
            for value in batch.column(0).cast(pyarrow.large_binary()):
                if value.is_valid:
                    yield self._checked(value.as_py(), f"{path}, row {rows}")
                rows += 1

    def _dataset(self) -> Iterator[bytes | None]:
        datasets = need("datasets", f"the Hugging Face data set {self.path}")
        try:
            found = datasets.load_from_disk(str(self.path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} is no readable data set: {error!r}.") from error
        if isinstance(found, datasets.DatasetDict):
            if self.split not in found:
                raise ConfigError(
                    f"{self.path} must have the split data.dataset_split={self.split!r}. "
                    + did_you_mean(self.split, found)
                )
            found = found[self.split]
        if self.column not in found.column_names:
            raise _no_column(str(self.path), self.column, found.column_names)
        for number, row in enumerate(found.select_columns([self.column])):
            text = row[self.column]
            if text is not None and not isinstance(text, str):
                raise _no_column(str(self.path), self.column, found.column_names)
            yield self._encoded(text, f"{self.path}, row {number}")


def list_documents(data: DataConfig, source: SourceConfig) -> Documents:
    """Return where the documents of a source are.

    Raises:
        ConfigError: There is nothing at the path.
    """
    column = source.text_column or data.text_column
    rest: dict[str, Any] = {
        "column": column,
        "split": data.dataset_split,
        "rule": data.invalid_text,
    }
    if source.corpus == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        sources = (path for path in walk(root, _NOT_STDLIB | _TESTS) if path.suffix == ".py")
        if rest["rule"] == "refuse":
            rest["rule"] = "drop"
        return Documents(kind="folder", path=root, files=tuple(sources), **rest)
    path = existing_path(source.corpus)
    if path.is_dir():
        files = tuple(walk(path, frozenset({"__pycache__"})))
        is_dataset = any((path / mark).is_file() for mark in _DATASET_MARKS)
        return Documents(kind="dataset" if is_dataset else "folder", path=path, files=files, **rest)
    if path.stat().st_size == 0:
        raise ConfigError(f"a corpus must hold text: {path} is empty.")
    kind = "table" if path.suffix in _TABLES else "text"
    return Documents(kind=kind, path=path, files=(path,), **rest)


def existing_path(corpus: str) -> Path:
    """Return the path that a corpus names.

    Raises:
        ConfigError: There is nothing.
    """
    path = Path(corpus).expanduser()
    if not path.exists():
        raise ConfigError(
            f"data.corpus must be {STDLIB!r} or an existing path: {corpus!r} does not exist.",
            hint="Give a text file, a folder of text files, a table, a saved data set, or a .bin "
            "file of tokens.",
        )
    return path


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of files: a kept copy of them goes by it.

    Raises:
        ConfigError: One is a link to nowhere, or cannot be looked at.
    """
    try:
        return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except OSError as error:
        raise _unreadable(error) from error


def walk(root: Path, left_out: frozenset[str]) -> Iterator[Path]:
    """Yield the files below a folder in a fixed order, without hidden ones, pipes and sockets."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(n for n in subfolders if n not in left_out and n[0] != ".")
        paths = (Path(folder, name) for name in sorted(files) if name[0] != ".")
        yield from (path for path in paths if path.is_file() or path.is_symlink())


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> ConfigError:
    return ConfigError(
        f"every file of the corpus must be readable: {error.filename}: {error.strerror}.",
        hint="Repair it, or move it out of the folder.",
    )


def _first_wrong_byte(content: bytes) -> int | None:
    """Return where a text stops being UTF-8, looking at a part of it at a time; None if nowhere."""
    start = 0
    while start < len(content):
        end = min(start + _PART_BYTES, len(content))
        while end < len(content) and content[end] & 0xC0 == 0x80 and end > start + _PART_BYTES - 4:
            end -= 1
        try:
            content[start:end].decode()
        except UnicodeDecodeError as error:
            return start + error.start
        start = end
    return None


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place}: every line must be JSON: {error}.") from error


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _no_column(what: str, column: str, known: Collection[str]) -> ConfigError:
    return ConfigError(
        f"{what} must hold text in data.text_column={column!r}. "
        + (did_you_mean(column, known) if known else "It has no columns.")
    )


def _not_utf8(place: str, offset: int, byte: int) -> ConfigError:
    return ConfigError(
        f"text must be UTF-8: {place} is not, at byte {offset} (0x{byte:02x}).",
        hint="Convert it (iconv -f LATIN1 -t UTF-8 FILE), or set data.invalid_text to drop, replace, "
        "or keep (which tokenizer: bytes allows).",
    )
