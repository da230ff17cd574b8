"""Checkpoint files: signed, written whole or not at all, read without running pickled code.

The file is what torch.save writes. Its zip comment is "sha256 " and the digest of all bytes before it, since
torch.load itself does not notice a flipped bit. A new file is written beside the last one and flushed to the
disk before it takes its name; the last one then becomes the previous one.
"""

import hashlib
import io
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from torch_rnn.errors import RunError
from torch_rnn.files import write_atomically

log = logging.getLogger(__name__)
FOLDER, LAST, PREVIOUS = "checkpoints", "last.ckpt", "previous.ckpt"
MARK = b"sha256 "
COMMENT = len(MARK) + 64


def write_checkpoint(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> None:
    """Writes a signed checkpoint at `path`; a valid one that stood there is kept beside it as previous.ckpt.

    Raises RunError where the disk refuses it: then both files are as they were.
    """
    path, buffer = Path(path), io.BytesIO()
    torch.save(checkpoint, buffer)
    blob = buffer.getvalue()[:-2] + COMMENT.to_bytes(2, "little")  # the comment's length ends a zip file
    signed = blob + MARK + hashlib.sha256(blob).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        keep = path.with_name(PREVIOUS) if _is_valid(path) else None
        write_atomically(path, lambda part: part.write_bytes(signed), keep=keep)
    except OSError as error:
        is_first = not path.exists() and not path.with_name(PREVIOUS).exists()
        before = "none was written before it" if is_first else "the checkpoint before it is untouched"
        raise RunError(
            f"{path} cannot be written ({error.strerror}); {before}: make room, then go on with --resume auto"
        ) from error


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_checkpoint` wrote, onto the CPU. Pickled code in a file is refused, never run.

    Raises RunError naming the file where it cannot be read, is no checkpoint, or one bit of it has changed.
    """
    contents = _verified(Path(path))
    try:
        return torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise RunError(
            f"{path} is not a checkpoint of torch_rnn: it holds more than tensors and numbers"
        ) from error


def newest(folder: Path) -> Path | None:
    """Returns the newest valid checkpoint of a run's folder, None where it has none; logs the refused ones.

    Raises RunError where it has checkpoints and none of them is valid.
    """
    refused = []
    for path in checkpoints_in(folder):
        try:
            read_checkpoint(path)
        except RunError as error:
            refused.append(str(error))
            log.warning("refused: %s", error)
        else:
            return path
    if refused:
        raise RunError(f"{'; '.join(refused)}; no other is left: to start anew, delete {folder}")
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run's folder, valid or not, the newest first."""
    return [path for name in (LAST, PREVIOUS) if (path := folder / FOLDER / name).exists()]


def _verified(path: Path) -> bytes:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); name a checkpoint that a run has left"
        ) from error
    blob, comment = contents[:-COMMENT], contents[-COMMENT:]
    if comment != MARK + hashlib.sha256(blob).hexdigest().encode():
        raise RunError(f"{path} is damaged, cut short or no checkpoint: its SHA-256 is not the one it names")
    return contents


def _is_valid(path: Path) -> bool:
    try:
        return bool(_verified(path))
    except RunError:
        return False


class SignedIO(CheckpointIO):
    """Makes Lightning's Trainer write and read checkpoints by the functions above."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        write_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        Path(path).unlink(missing_ok=True)
