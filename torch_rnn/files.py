"""Writes files atomically: after a crash, either the old or the new file is there, complete."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from torch_rnn.errors import RunError


def write_atomically(
    path: str | os.PathLike, write: Callable[[Path], None], *, keep: Path | None = None
) -> None:
    """Calls write(temporary path) and renames the result to `path`.

    The temporary file is in the same folder and is flushed to disk before the atomic rename (POSIX). If
    `keep` is given, the old file is first renamed to it; a kill between the two renames leaves only `keep`.
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
        if error.filename is None or os.fspath(error.filename) == os.fspath(part):  # write() gives no name
            error.filename = str(path)
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
    """Removes temporary files of killed processes. No other process may be writing to the folder."""
    for part in folder.glob(".*.part"):
        if re.search(r"\.\d+\.part$", part.name):  # as `write_atomically` names them
            part.unlink(missing_ok=True)


def check_writable(name: str, path: Path) -> None:
    """Raises RunError where no file can be written at `path`, the value of the argument `name`."""
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        reason = f"the folder {path.parent} is read-only"
    else:
        return
    raise RunError(f"{name} {path} cannot be written, since {reason}")


def file_sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's contents in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
