"""The Large Movie Review Dataset (Maas et al., 2011) as published: a folder or an archive -> reviews."""

import hashlib
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from rich.progress import Progress

from torch_rnn.data.download import download
from torch_rnn.errors import RunError
from torch_rnn.files import file_sha256

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SIZE = 84_125_825
SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
LARGEST = 1 << 24
"""No file of it that is read has more bytes; one that has is not what it says."""
LARGEST_ARCHIVE = 1 << 32
"""Nor has all that is in it."""

COMPRESSED = (".gz", ".xz", ".bz2")
REVIEW = re.compile(r"(train|test)/(neg|pos)/(\d+)_\d+\.txt")
FILMS = re.compile(r"(train|test)/urls_(neg|pos)\.txt")


T = TypeVar("T")


class Review(NamedTuple):
    name: str
    """Its path below aclImdb/."""
    split: str
    """"train" or "test"."""
    label: int
    """0 negative, 1 positive."""
    film: str
    """The address of the film that it is about."""
    text: str


def find(root: Path) -> Path:
    """The extracted folder or the archive that root is or has in it, downloaded where there is neither.

    Raises RunError, which names the ways on, where it cannot be downloaded.
    """
    if root.is_file() or (root.name == "aclImdb" and root.is_dir()):
        return root
    if (root / "aclImdb").is_dir():
        return root / "aclImdb"
    found = [*root.glob("aclImdb.tar.*"), *root.glob("aclImdb_v1.tar.*")]
    if archives := [path for path in found if path.suffix in COMPRESSED]:
        return min(archives)
    try:
        download(URL, root / "aclImdb_v1.tar.gz", SIZE, SHA256)
    except (RunError, OSError) as error:
        raise RunError(
            f"IMDB is not under {root}, and {error}. Put aclImdb_v1.tar.gz or the extracted aclImdb folder "
            f"into a folder and name it with --data.root, or train without: --config configs/quickstart.yaml"
        ) from error
    return root / "aclImdb_v1.tar.gz"


def fingerprint(source: Path) -> dict[str, Any]:
    """What tells one source from another: an archive's SHA-256, or its files' names, sizes and times."""
    if source.is_file():
        return {"archive": file_sha256(source)}
    listing = hashlib.sha256()
    for path, name in _listed(source):
        status = _read(path, Path.stat)
        listing.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return {"folder": listing.hexdigest()}


def read(source: Path) -> list[Review]:
    """All labelled reviews, ordered by name. Raises RunError naming the file that is damaged or missing."""
    files = dict(_files_of_folder(source) if source.is_dir() else _files_of_archive(source))
    films = {match.groups(): text.split() for name, text in files.items() if (match := FILMS.fullmatch(name))}
    reviews = []
    for name in sorted(files):
        if match := REVIEW.fullmatch(name):
            split, kind, number = match.groups()
            try:
                film = films[split, kind][int(number)]
            except (KeyError, IndexError):
                raise RunError(
                    f"{source}: {split}/urls_{kind}.txt does not name the film of {name}"
                ) from None
            reviews.append(Review(name, split, int(kind == "pos"), film, files[name]))
    missing = {"train", "test"} - {review.split for review in reviews}
    if missing:
        raise RunError(f"{source} holds no reviews under {' or '.join(sorted(missing))}/{{neg,pos}}/")
    return reviews


def _listed(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted([*folder.glob("t*/*/*.txt"), *folder.glob("t*/urls_*.txt")]):
        name = path.relative_to(folder).as_posix()
        if REVIEW.fullmatch(name) or FILMS.fullmatch(name):
            yield path, name


def _files_of_folder(folder: Path) -> Iterator[tuple[str, str]]:
    for path, name in _listed(folder):
        yield name, _decoded(_read(path, Path.read_bytes), str(path))


def _files_of_archive(archive: Path) -> Iterator[tuple[str, str]]:
    """Read where they are: nothing is extracted, so no name in the archive can reach the file system."""
    try:
        with (
            Progress() as progress,
            progress.open(archive, "rb", description=f"reading {archive.name}") as raw,
            tarfile.open(fileobj=io.BufferedReader(raw), mode="r:*") as tar,
        ):
            for member in tar:
                _refuse_hostile(member, archive)
                name = member.name.removeprefix("./").removeprefix("aclImdb/")
                if not (REVIEW.fullmatch(name) or FILMS.fullmatch(name)):
                    continue
                if member.size > LARGEST:
                    raise RunError(
                        f"{archive}: {member.name} has {member.size:,} bytes; no review is so long"
                    )
                yield name, _decoded(tar.extractfile(member).read(), f"{archive}: {member.name}")
            for chunk in iter(lambda: tar.fileobj.read(1 << 20), b""):  # to its end, where its checksum is
                if chunk.strip(b"\0"):
                    raise tarfile.ReadError("data behind its end")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise RunError(
            f"{archive} is damaged or not an archive ({error}); delete it and start again"
        ) from error


def _refuse_hostile(member: tarfile.TarInfo, archive: Path) -> None:
    """Raises RunError for what no published data set holds, and what would do harm if it were extracted."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        why = "leaves its folder"
    elif not (member.isreg() or member.isdir()):
        why = "is a link or a device, not a plain file"
    elif member.offset_data + member.size > LARGEST_ARCHIVE:
        why = f"lies {member.offset_data + member.size:,} bytes into it, further than any data set goes"
    else:
        return
    raise RunError(f"{archive}: {member.name} {why}; this is not the published archive, do not extract it")


def _read(path: Path, how: Callable[[Path], T]) -> T:
    try:
        return how(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error


def _decoded(contents: bytes, name: str) -> str:
    try:
        return contents.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{name} is not UTF-8: {error}") from error
