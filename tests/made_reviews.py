"""A few reviews in the published layout of IMDB, as a folder or as an archive."""

import io
import random
import tarfile
from pathlib import Path

from torch_rnn.data.grammar import corpus


def _made() -> dict[str, bytes]:
    texts, _ = corpus(36, seed=7)
    files = {}
    for split, n in (("train", 12), ("test", 6)):
        for kind in ("neg", "pos"):
            for number in range(n):
                files[f"{split}/{kind}/{number}_{number % 10}.txt"] = texts.pop().encode()
            films = "\n".join(f"film{number // 3}" for number in range(n))
            files[f"{split}/urls_{kind}.txt"] = f"{films}\n".encode()
    files["train/unsup/0_0.txt"] = b"never read"
    return files


_ALL = _made()
FILES = {name: contents for name, contents in _ALL.items() if "unsup" not in name}


def write_folder(root: Path, files: dict[str, bytes | None] = FILES) -> None:
    """The files as root/aclImdb; one that is None is left out."""
    for name, contents in files.items():
        if contents is not None:
            path = root / "aclImdb" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)


def write_archive(path: Path, shuffle: bool = False) -> None:
    """The files, the unlabelled ones too, as a compressed archive with the one top folder aclImdb/."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = list(_ALL.items())
    if shuffle:
        random.Random(0).shuffle(members)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for name, contents in members:
            info = tarfile.TarInfo(f"aclImdb/{name}")
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
