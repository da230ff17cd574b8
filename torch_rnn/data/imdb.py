"""The Large Movie Review Dataset (Maas et al., 2011), from its folder or archive, in batches of token ids."""

import hashlib
import io
import logging
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from torch_rnn.data.corpus import Corpus
from torch_rnn.data.documents import Document, DocumentList, Documents, reading
from torch_rnn.data.download import download
from torch_rnn.data.progress import progress_of_bytes
from torch_rnn.data.teaching import Source
from torch_rnn.errors import RunError
from torch_rnn.files import file_sha256

log = logging.getLogger(__name__)

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SIZE = 84_125_825
SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
MAX_FILE_SIZE = 1 << 24
"""Limit on the bytes of a review."""
MAX_TOTAL_SIZE = 1 << 32
"""Limit on the total uncompressed size of an archive."""

COMPRESSED = (".gz", ".xz", ".bz2")
REVIEW = re.compile(r"(train|test)/(neg|pos)/(\d+)_\d+\.txt")
FILMS = re.compile(r"(train|test)/urls_(neg|pos)\.txt")
LABELLED = re.compile(f"{REVIEW.pattern}|{FILMS.pattern}")
UNSUP = re.compile(r"train/unsup/(\d+)_\d+\.txt|train/urls_unsup\.txt")


class IMDB(Corpus):
    """The reviews of Maas et al. (2011) with two classes, negative and positive.

    Args:
        root: The folder with `aclImdb/` or its archive; None is $TORCH_RNN_DATA, else data/. A folder with
            neither gets the archive by download.
        unlabelled: The same as `root`, with the unlabelled reviews (`train/unsup`); or a file in one of the
            formats of `documents`. None is what `root` has: beside its archive, they may be in an archive
            aclImdb-unsup.tar.xz of their own.
        settings: Those of `Corpus`. What `validation` says is held out film by film: a random part would
            share films with the rest, and its accuracy would be 2 to 3 points too high.
    """

    name = "imdb"
    classes = ("negative", "positive")
    films = True

    def __init__(self, root: str | None = None, *, unlabelled: str | None = None, **settings: Any):
        super().__init__(unlabelled=unlabelled, **settings)
        self.root = Path(root or os.environ.get("TORCH_RNN_DATA") or "data")

    def source(self) -> tuple[list[Path], dict[str, Any], Callable[[], dict[str, Documents]]]:
        path = find_reviews(self.root)
        return [path], fingerprint(path), partial(read_reviews, path)

    def unlabelled_source(self) -> Source:
        more = self.lessons.unlabelled
        if more is not None and not is_imdb(more):
            return self.unlabelled_documents(more, "unlabelled")
        return unlabelled_reviews(find_unlabelled(self.root) if more is None else unlabelled_in(more))

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        super().setup(stage)
        test = len(self.splits["test"][1])
        train = self.labelled + len(self.splits["validation"][1])
        if (train, test) != (25_000, 25_000):
            log.warning(
                "This is not the whole data set: %s training and %s test reviews, 25,000 and 25,000 are "
                "published. Accuracy here is not accuracy on the published test set.",
                f"{train:,}", f"{test:,}",
            )  # fmt: skip


def find_reviews(root: Path) -> Path:
    """Returns the extracted folder or the archive that is at or in `root`; downloads the archive if need be.

    Raises:
        RunError: The download failed. The message names the alternatives.
    """
    if root.is_file() or (root.name == "aclImdb" and root.is_dir()):
        return root
    if (root / "aclImdb").is_dir():
        return root / "aclImdb"
    files = [*root.glob("aclImdb.tar.*"), *root.glob("aclImdb_v1.tar.*")]
    if archives := [path for path in files if path.suffix in COMPRESSED]:
        return min(archives)
    try:
        download(URL, root / "aclImdb_v1.tar.gz", SIZE, SHA256)
    except (RunError, OSError) as error:
        raise RunError(
            f"IMDB is not under {root}, and {error}. Put aclImdb_v1.tar.gz or the extracted aclImdb folder "
            f"into a folder and name it with --data.root, or train without: --config configs/quickstart.yaml"
        ) from error
    return root / "aclImdb_v1.tar.gz"


def find_unlabelled(root: Path) -> Path:
    """Returns the extracted folder or the archive with the unlabelled reviews that is at or in `root`."""
    folder = root.parent if root.is_file() or root.name == "aclImdb" else root
    archives = [path for path in folder.glob("aclImdb-unsup.tar.*") if path.suffix in COMPRESSED]
    return min(archives) if archives else find_reviews(root)


def unlabelled_in(path: Path) -> Path:
    """Returns an archive as it is, and otherwise the result of `find_unlabelled`."""
    return path if path.is_file() or (path / "train" / "unsup").is_dir() else find_unlabelled(path)


def is_imdb(path: Path) -> bool:
    """Whether a path is IMDB's archive or folder, or a folder with one of them."""
    if not path.is_dir():
        return path.suffix in COMPRESSED
    is_folder = (path / "train" / "unsup").is_dir() or (path / "train" / "pos").is_dir()
    return is_folder or (path / "aclImdb").is_dir() or any(path.glob("aclImdb*.tar.*"))


def fingerprint(path: Path, wanted: re.Pattern = LABELLED) -> dict[str, Any]:
    """Returns an archive's SHA-256, or a digest of the names, sizes and times of a folder's wanted files."""
    if path.is_file():
        return {"archive": file_sha256(path)}
    digest = hashlib.sha256()
    for file, name in _review_files(path, wanted):
        with reading(file):
            status = file.stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return {"folder": digest.hexdigest()}


def read_reviews(path: Path) -> dict[str, Documents]:
    """Returns the labelled reviews of "train" and "test" in the order of their names.

    The labels are "0" (negative) and "1" (positive); the group of a review is the address of its film.

    Raises:
        RunError: A file is damaged or missing. The message names it.
    """
    texts = _read(path, LABELLED)
    films = {match.groups(): text.split() for name, text in texts.items() if (match := FILMS.fullmatch(name))}
    splits: dict[str, list[Document]] = {"train": [], "test": []}
    for name in sorted(texts):
        if match := REVIEW.fullmatch(name):
            split, kind, number = match.groups()
            try:
                film = films[split, kind][int(number)]
            except (KeyError, IndexError):
                raise RunError(f"{path}: {split}/urls_{kind}.txt does not name the film of {name}") from None
            splits[split].append(Document(texts[name], "1" if kind == "pos" else "0", film))
    if missing := sorted(split for split, reviews in splits.items() if not reviews):
        raise RunError(f"{path} holds no reviews under {' or '.join(missing)}/{{neg,pos}}/")
    return {split: DocumentList(reviews) for split, reviews in splits.items()}


def unlabelled_reviews(path: Path) -> Source:
    """Returns the unlabelled reviews of a folder or an archive."""
    return Source(path, fingerprint(path, UNSUP), partial(read_unlabelled, path), has_films=True)


def read_unlabelled(path: Path) -> DocumentList:
    """Returns the unlabelled reviews in the order of their names.

    The group of a review is the address of its film; without train/urls_unsup.txt, as some copies of the
    archive are, it is unknown (""). Raises RunError where there are none.
    """
    texts = _read(path, UNSUP)
    films = texts.pop("train/urls_unsup.txt", "").split()
    reviews = []
    for name in sorted(texts):
        number = int(UNSUP.fullmatch(name)[1])
        reviews.append(Document(texts[name], "", films[number] if number < len(films) else ""))
    if not reviews:
        raise RunError(
            f"{path} holds no reviews under train/unsup/; name unlabelled texts with --data.unlabelled"
        )
    if not films:
        log.warning(
            "%s does not name the films of the unlabelled reviews (train/urls_unsup.txt is missing): only "
            "those equal to a held-out review are left out, and validation may read too high",
            path,
        )
    return DocumentList(reviews)


def _read(path: Path, wanted: re.Pattern) -> dict[str, str]:
    """Returns the text of each wanted file by its name."""
    return dict(_read_folder(path, wanted) if path.is_dir() else _read_archive(path, wanted))


def _review_files(folder: Path, wanted: re.Pattern) -> Iterator[tuple[Path, str]]:
    """Yields the wanted files, each with its name below the folder."""
    for path in sorted([*folder.glob("t*/*/*.txt"), *folder.glob("t*/urls_*.txt")]):
        name = path.relative_to(folder).as_posix()
        if wanted.fullmatch(name):
            yield path, name


def _read_folder(folder: Path, wanted: re.Pattern) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each file of `_review_files`."""
    for path, name in _review_files(folder, wanted):
        with reading(path):
            text = path.read_bytes().decode("utf-8")
        yield name, text


def _read_archive(archive: Path, wanted: re.Pattern) -> Iterator[tuple[str, str]]:
    """Yields the same as `_read_folder`. Nothing is extracted, so no name in the archive is ever a path."""
    try:
        with (
            progress_of_bytes() as progress,
            progress.open(archive, "rb", description=f"reading {archive.name}") as raw,
            tarfile.open(fileobj=io.BufferedReader(raw), mode="r:*") as tar,
        ):
            for member in tar:
                _check_member(member, archive)
                name = member.name.removeprefix("./").removeprefix("aclImdb/")
                if wanted.fullmatch(name):
                    if member.size > MAX_FILE_SIZE:
                        raise RunError(
                            f"{archive}: {member.name} has {member.size:,} bytes; no review is so long"
                        )
                    contents = tar.extractfile(member).read()
                    with reading(f"{archive}: {member.name}"):
                        text = contents.decode("utf-8")
                    yield name, text
            for chunk in iter(lambda: tar.fileobj.read(1 << 20), b""):  # the checksum is at the end
                if chunk.strip(b"\0"):
                    raise tarfile.ReadError("data behind its end")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise RunError(
            f"{archive} is damaged or not an archive ({error}); delete it and start again"
        ) from error


def _check_member(member: tarfile.TarInfo, archive: Path) -> None:
    """Raises RunError for a member that would do harm if it were extracted."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        problem = "leaves its folder"
    elif not (member.isreg() or member.isdir()):
        problem = "is a link or a device, not a plain file"
    elif (end := member.offset_data + member.size) > MAX_TOTAL_SIZE:
        problem = f"ends at byte {end:,}; the whole data set has fewer than {MAX_TOTAL_SIZE:,}"
    else:
        return
    raise RunError(f"{archive}: {member.name} {problem}; it is not the published archive, do not extract it")
