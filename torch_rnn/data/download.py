"""A file from the network: whole, verified and in its place, or not there at all."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from itertools import chain
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically

CHUNK = 1 << 20
TIMEOUT = 30


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Fetches url to path, with a progress bar; nothing stands at path before size and SHA-256 are right.

    Raises RunError where the network, the server or the contents fail, OSError where the disk does.
    """
    write_atomically(path, lambda part: _fetch(url, part, size, sha256))


def _fetch(url: str, part: Path, size: int, sha256: str) -> None:
    digest, received = hashlib.sha256(), 0
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    chunks = _chunks(url)
    first = next(chunks, b"")  # the folder is made only where there is something to put into it
    part.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns) as progress, open(part, "wb") as file:
        task = progress.add_task(url, total=size)
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


def _chunks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise RunError(f"{url} cannot be read: {getattr(error, 'reason', None) or error}") from error
