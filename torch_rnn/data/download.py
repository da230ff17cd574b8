"""Download of a file, which appears at its path only when it is complete and verified."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from itertools import chain
from pathlib import Path

from torch_rnn.data.progress import progress_of_bytes
from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically

CHUNK = 1 << 20
TIMEOUT = 30


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Downloads a file with a progress bar, and removes what killed downloads of it have left.

    Raises:
        RunError: The network or the server fails, or the size or the SHA-256 is wrong.
        OSError: The file cannot be written.
    """
    for part in path.parent.glob(f".{path.name}.*.part"):
        if not _is_running(int(part.name.split(".")[-2])):
            part.unlink(missing_ok=True)
    write_atomically(path, lambda part: _fetch(url, part, size, sha256))


def _fetch(url: str, part: Path, size: int, sha256: str) -> None:
    digest, received = hashlib.sha256(), 0
    chunks = _chunks(url)
    first = next(chunks, b"")  # before the folder is made: a failure leaves no empty folder
    part.parent.mkdir(parents=True, exist_ok=True)
    with progress_of_bytes() as progress, open(part, "wb") as file:
        task = progress.add_task("", total=size)
        for chunk in chain([first], chunks):
            received += len(chunk)
            if received > size:
                raise RunError(f"{url} sent more than its {size:,} bytes; it is not the published file")
            file.write(chunk)
            digest.update(chunk)
            progress.update(task, completed=received)
    if received < size:
        raise RunError(f"{url} sent {received:,} of {size:,} bytes; try again")
    if digest.hexdigest() != sha256:
        raise RunError(f"{url} has SHA-256 {digest.hexdigest()}, not {sha256}; it is not the published file")


def _is_running(pid: int) -> bool:
    """Returns whether the process may be running; always true on Windows, where os.kill would end it."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _chunks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise RunError(f"{url} cannot be read: {getattr(error, 'reason', None) or error}") from error
