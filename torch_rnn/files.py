"""Files that cannot be half-written: the old one or the new, whatever dies meanwhile."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: str | os.PathLike, write: Callable[[Path], None], *, keep: Path | None = None
) -> None:
    """Calls write(temporary path) and puts the result at `path`: the old file or the new, never a part.

    The temporary file lies beside the target and is flushed to disk before it is renamed (POSIX rename). What
    stood at `path` is renamed to `keep` before, where that is given; a kill can fall between the two.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None:
            os.replace(path, keep)
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write has none
        raise
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_parts(folder: Path) -> None:
    """Removes the temporary files that killed writers have left; nobody else may be writing there."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
