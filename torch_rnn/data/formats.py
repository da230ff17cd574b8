"""Opens the documents of a file or a folder, by its form.

The forms are CSV and TSV with a header, JSON lines, Parquet files or a folder of them, and a folder with one
folder of .txt files for each class. All text is in UTF-8.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch_rnn.data.columns import ColumnFile, Columns, JsonLines, Table
from torch_rnn.data.documents import START, Document, Position, reading
from torch_rnn.data.parquet import ParquetFiles
from torch_rnn.errors import RunError

SUFFIXES = ".csv, .tsv, .jsonl or .parquet"


def documents(
    path: Path,
    text: str = "text",
    label: str | None = "label",
    split: str = "train",
    probabilities: Sequence[str] = (),
) -> "ColumnFile | ParquetFiles | TextFolders":
    """Opens a file with a column of texts, a folder of Parquet files, or folders of .txt files.

    Args:
        path: The file or folder.
        text: The column of the texts.
        label: The column of the labels; None for texts without.
        split: The split to take from a folder with the Parquet files of several splits.
        probabilities: The columns with the probability of each class.
    """
    columns = Columns(text, label, tuple(probabilities))
    if path.is_dir():
        shards = sorted(path.glob("[!.]*.parquet"))
        if shards and not any(path.glob("[!.]*/*.txt")):
            return ParquetFiles(_shards_of_split(path, shards, split), columns)
        if probabilities:
            raise RunError(f"{path} is a folder, which has no probabilities; it must be a {SUFFIXES} file")
        return TextFolders(path, labelled=label is not None)
    if not path.is_file():
        raise RunError(f"{path} does not exist; name a {SUFFIXES} file, or a folder of classes or shards")
    if path.suffix in (".csv", ".tsv"):
        return Table(path, columns)
    if path.suffix == ".jsonl":
        return JsonLines(path, columns)
    if path.suffix == ".parquet":
        return ParquetFiles([path], columns)
    raise RunError(f"{path} ends in {path.suffix or 'nothing'}; it must be {SUFFIXES}, or a folder")


def _shards_of_split(folder: Path, shards: list[Path], split: str) -> list[Path]:
    """Returns the shards whose name begins with the split, or all if their names tell no splits apart."""
    prefixes = {shard: re.match("[A-Za-z]*", shard.name)[0].lower() for shard in shards}
    names = set(prefixes.values())
    if split in names:
        return [shard for shard in shards if prefixes[shard] == split]
    if len(names) > 1 or names & {"train", "test"}:
        raise RunError(
            f"{folder} has .parquet files named {', '.join(sorted(f'{name}*' for name in names))}, and none "
            f"named {split}*; name a file or a folder of the {split} data alone with --data.{split}"
        )
    return shards


class TextFolders:
    """A folder whose folders are the classes; each .txt file in them is a document.

    If the texts are not labelled, the files may be in the folder itself, too.
    """

    def __init__(self, path: Path, labelled: bool = True):
        self.path, self.labelled = path, labelled
        files = [*path.glob("*/*.txt"), *([] if labelled else path.glob("*.txt"))]
        self.files = sorted(f for f in files if f.parent == path or not f.parent.name.startswith("."))
        if not self.files and labelled:
            raise RunError(f"{path} has no folder with .txt files in it; it must have one for each class")
        if not self.files:
            raise RunError(f"{path} has no .txt files and no .parquet files")
        self.sizes = [file.stat().st_size for file in self.files]
        self.offsets = [0, *accumulate(self.sizes)]
        self.size = self.offsets[-1]

    def bytes_before(self, position: Position) -> int:
        return self.offsets[position[0]]

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file, size in zip(self.files, self.sizes, strict=True):
            name = file.relative_to(self.path).as_posix()
            digest.update(f"{name} {size} {file.stat().st_mtime_ns}\n".encode())
        return {"folder": digest.hexdigest()}

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        for i in range(start[0], len(self.files)):
            file = self.files[i]
            with reading(file):
                text = file.read_bytes().decode("utf-8")
            yield Document(text, file.parent.name if self.labelled else "", text), (i + 1, 0)
