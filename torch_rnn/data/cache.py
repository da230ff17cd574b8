"""A cache of folders of files: made once, under a lock, whole or not at all, and verified."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from torch_rnn.errors import RunError
from torch_rnn.files import file_sha256

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
ORIGIN = "origin"


def cached(
    parent: Path,
    name: str,
    made_from: dict[str, Any],
    make: Callable[[Path, Path], None],
    origin: str | None = None,
) -> Path:
    """Returns a folder of the cache, and makes it if it is missing or damaged.

    The manifest in the folder has `made_from` and the SHA-256 of every file. If two processes start at once,
    one makes the folder and the other waits.

    Args:
        parent: The cache.
        name: The beginning of the folder's name, which ends in a digest of `made_from`.
        made_from: The source and the settings, which determine the contents.
        make: Called as make(folder, work). What it writes to `work` is kept until the folder is complete, so
            that a start after a kill finds it.
        origin: The paths of the source. Work of the same origin and another `made_from` is removed, because
            its source has changed since.

    Raises:
        RunError: The cache cannot be written to.
    """
    recipe = json.dumps(made_from, sort_keys=True)
    folder = parent / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if _is_whole(folder):
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if origin is not None:
            _remove_outdated_work(folder, name, origin)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                _make(folder, made_from, make, origin)
    except OSError as error:
        raise RunError(
            f"{parent} cannot be written to ({error}); name another folder with --data.cache"
        ) from error
    return folder


def digest_of_ids(*folders: Path) -> str:
    """Returns one digest of all ids in folders of the cache, from their manifests."""
    manifests = [json.loads((folder / MANIFEST).read_text(encoding="utf-8")) for folder in folders]
    ids = [
        {name: digest for name, digest in manifest["sha256"].items() if name.endswith("_ids.npy")}
        for manifest in manifests
    ]
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


def _remove_outdated_work(folder: Path, name: str, origin: str) -> None:
    """Removes the work of other folders with this origin, unless a process is at it.

    Lock files stay: another process may hold or await a lock, and removing its file would let two in.
    """
    for work in folder.parent.glob(f"{name}-*.work"):
        other = work.with_suffix("")
        try:
            if other != folder and (work / ORIGIN).read_text(encoding="utf-8") == origin:
                with FileLock(f"{other}.lock", timeout=0):
                    shutil.rmtree(work, ignore_errors=True)
                    shutil.rmtree(other.with_suffix(".part"), ignore_errors=True)
        except (Timeout, FileNotFoundError):
            continue


def _make(
    folder: Path, made_from: dict[str, Any], make: Callable[[Path, Path], None], origin: str | None
) -> None:
    work = folder.with_name(f"{folder.name}.work")
    part = folder.with_name(f"{folder.name}.part")
    for leftover in (part, folder):  # left by a killed start, or damaged
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir()
    if origin is not None:
        work.mkdir(exist_ok=True)
        (work / ORIGIN).write_text(origin, encoding="utf-8")
    try:
        make(part, work)
        digests = {file.name: file_sha256(file) for file in sorted(part.iterdir())}
        (part / MANIFEST).write_text(_manifest(made_from, digests), encoding="utf-8")
        os.replace(part, folder)
        shutil.rmtree(work, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if work.is_dir() and {path.name for path in work.iterdir()} <= {ORIGIN}:
            shutil.rmtree(work, ignore_errors=True)


def _manifest(made_from: dict[str, Any], digests: dict[str, str]) -> str:
    """Returns the text of a manifest, whose last entry is the SHA-256 of the others."""
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
