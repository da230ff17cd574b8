"""A folder of files that take long to make: made once, under a lock, whole or not at all, and verified."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from torch_rnn.errors import RunError
from torch_rnn.files import file_sha256

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def cached(parent: Path, name: str, made_from: dict[str, Any], make: Callable[[Path, Path], None]) -> Path:
    """The folder with what `make(folder, work)` writes, made only where it is not there yet or is damaged.

    What make puts into work is still there when a killed start is repeated, and is removed in the end.

    Its name ends in a digest of `made_from`, so that other ingredients have another folder. Its manifest has
    the ingredients and the SHA-256 of every file. Of two starts at once, one makes it and the other waits.
    Raises RunError where the parent folder cannot be written to.
    """
    recipe = json.dumps(made_from, sort_keys=True)
    folder = parent / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if _is_whole(folder):
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                _make(folder, made_from, make)
    except OSError as error:
        raise RunError(
            f"{parent} cannot be written to ({error}); name another folder with --data.cache"
        ) from error
    return folder


def _make(folder: Path, made_from: dict[str, Any], make: Callable[[Path, Path], None]) -> None:
    work = folder.with_name(f"{folder.name}.work")
    part = folder.with_name(f"{folder.name}.part")
    for leftover in (part, folder):  # of a start that was killed, or damaged
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir()
    try:
        make(part, work)
        digests = {file.name: file_sha256(file) for file in sorted(part.iterdir())}
        (part / MANIFEST).write_text(_manifest(made_from, digests), encoding="utf-8")
        os.replace(part, folder)
        shutil.rmtree(work, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _manifest(made_from: dict[str, Any], digests: dict[str, str]) -> str:
    """The manifest's text, whose last entry is the SHA-256 of the others."""
    entries = {"made_from": made_from, "sha256": digests}
    own = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return json.dumps(entries | {"manifest": own}, indent=2)


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        digests = manifest["sha256"]
        if text != _manifest(manifest["made_from"], digests):
            raise ValueError("the manifest's own digest is not that of its entries")
        names = digests.keys() | {path.name for path in folder.iterdir()} - {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names, digests = {MANIFEST}, {}
    damaged = sorted(name for name in names if not _has(folder / name, digests.get(name)))
    if damaged:
        log.warning("%s is damaged (%s) and is made again", folder, ", ".join(damaged))
    return not damaged


def _has(path: Path, digest: str | None) -> bool:
    return path.is_file() and file_sha256(path) == digest
