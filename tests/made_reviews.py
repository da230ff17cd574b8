"""A few reviews in the published layout of IMDB, as a folder or as an archive."""

import io
import random
import tarfile
from pathlib import Path

from torch_rnn.data.grammar import corpus


def reviews(train: int, test: int) -> dict[str, bytes]:
    """Returns the files of a data set, with so many reviews in each of a split's two classes.

    Three reviews are about each film. The ratings in the names of the files mean nothing.
    """
    texts, _ = corpus(2 * (train + test), seed=7)
    files = {}
    for split, n in (("train", train), ("test", test)):
        for label in ("neg", "pos"):
            for i in range(n):
                files[f"{split}/{label}/{i}_{i % 10}.txt"] = texts.pop().encode()
            films = "\n".join(f"film{i // 3}" for i in range(n))
            files[f"{split}/urls_{label}.txt"] = f"{films}\n".encode()
    return files


FILES = reviews(12, 6)


def write_folder(root: Path, files: dict[str, bytes | None] = FILES) -> None:
    """Writes the files into root/aclImdb, without those that are None."""
    for name, contents in files.items():
        if contents is not None:
            path = root / "aclImdb" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)


def write_archive(path: Path, files: dict[str, bytes] = FILES, shuffle: bool = False) -> None:
    """Writes the files, and an unlabelled review, into a compressed archive with the top folder aclImdb/."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [*files.items(), ("train/unsup/0_0.txt", b"never read")]
    if shuffle:
        random.Random(0).shuffle(members)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, contents in members:
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
