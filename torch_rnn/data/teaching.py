"""unlabelled texts -> the teacher's labels: which texts are left out, what the teacher says of the others.

Each stage is a folder of the cache: the tokens of the unlabelled texts, the teacher, its labels.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_rnn.data.cache import cached
from torch_rnn.data.documents import Documents
from torch_rnn.data.ngrams import INVERSE_PENALTY, MIN_DOCUMENTS, ROUNDS, SURE, NGrams
from torch_rnn.data.text import TOKENIZER, TORCHTEXT, Vocabulary
from torch_rnn.data.tokenizing import write_unlabelled
from torch_rnn.data.tokens import (
    PROBABILITIES,
    UNLABELLED,
    Tokens,
    cut,
    group_key,
    grouped_split,
    parts_of_groups,
    read_tokens,
)
from torch_rnn.data.vectors import RECIPE

log = logging.getLogger(__name__)
FORMAT = 2
"""Version of the contents of these folders."""
NGRAMS, VECTORS = FITTED = ("ngrams", "vectors")
"""The teachers that are fitted on the training texts."""
PARTS = 5
"""The number of teachers that label the training texts, each the texts of another part."""


class Source(NamedTuple):
    """Unlabelled texts."""

    path: Path
    fingerprint: dict[str, Any]
    open: Callable[[], Documents]
    has_films: bool
    """Whether the groups of the texts are films."""


class Unlabelled(NamedTuple):
    """Tokens of unlabelled texts."""

    tokens: Path
    """Their folder."""
    film: str | None
    """Whether the films of the texts are "known" or "unknown"; None where there are none."""


class Labels(NamedTuple):
    """The unlabelled texts to train on and what the teacher says of them."""

    index: np.ndarray
    """(n,) their numbers."""
    probabilities: np.ndarray
    """(n, C)"""
    left_out: dict[str, int | None]
    """The number of texts that were left out, by reason; None where it cannot be known."""
    texts: int
    """The number of texts that there were."""


class Pieces(NamedTuple):
    """Pieces of texts to train on and what a teacher says of them."""

    offsets: np.ndarray
    """(m + 1,): piece i has the tokens offsets[i] : offsets[i + 1]."""
    index: np.ndarray
    """(n,) the numbers of the pieces."""
    probabilities: np.ndarray
    """(n, C)"""


def tokenized(cache: Path, name: str, tokens: Path, source: Source) -> Path:
    """Returns the folder with the ids of the unlabelled texts, in the vocabulary of the training texts."""
    recipe = {"source": source.fingerprint, "words": tokens.name, "tokenizer": TOKENIZER}

    def make(folder: Path, work: Path) -> None:
        write_unlabelled(source.open(), Vocabulary(words(tokens)), folder, work)

    recipe |= {"torchtext": TORCHTEXT, "format": FORMAT}
    return cached(cache, f"unlabelled-{name}", recipe, make, origin=str(source.path.resolve()))


def fitted(
    cache: Path, tokens: Path, validation: float, more: Unlabelled | None = None, name: str = NGRAMS
) -> Path:
    """Returns the folder with the teacher, which is fitted on the training texts that are not held out.

    With unlabelled texts it learns from its own labels of them, too (`NGrams.taught`); as the teacher
    "vectors" also from their vectors (`NGrams.taught_with_vectors`).
    """
    recipe = _recipe(tokens, validation, more)
    if name == VECTORS:
        recipe |= {"vectors": RECIPE}

    def make(folder: Path, work: Path) -> None:
        log.info("the teacher %s is fitted on the training texts", name)
        train, chosen = read_tokens(tokens, "train"), _chosen(tokens, validation, more)
        rows, held_out = grouped_split(train.keys, validation)
        teacher = _teacher(train, rows, tokens, chosen, name)
        teacher.save(folder / "ngrams.npz")
        found = {"validation": _accuracy(folder, tokens, held_out)}
        (folder / "scores.json").write_text(json.dumps(found))

    return cached(cache, name, recipe, make)


def cross_fitted(
    cache: Path, tokens: Path, validation: float, size: int, more: Unlabelled | None = None
) -> tuple[np.ndarray, Pieces | None]:
    """Returns what teachers say of the training texts that are not held out, (n, C), and of their pieces.

    The texts are divided into PARTS parts, group by group. A teacher that is fitted on the other parts labels
    the texts of a part, so no teacher has seen a label of the group that it labels. It may have read
    unlabelled texts of the group, but none that is equal to a labelled one.

    Args:
        size: The length of the pieces in tokens; 0 for none.
        more: As in `fitted`.
    """
    recipe = _recipe(tokens, validation, more)

    def make(folder: Path, work: Path) -> None:
        log.info("%s teachers %s are fitted on the training texts", PARTS, NGRAMS)
        train, chosen = read_tokens(tokens, "train"), _chosen(tokens, validation, more)
        rows, _ = grouped_split(train.keys, validation)
        parts = parts_of_groups(np.asarray(train.keys)[rows], PARTS)
        probabilities = np.empty((len(train.labels), len(classes(tokens))), np.float32)
        if size:
            pieces, document = cut(train, size)
            index = _parts_of_texts(document, rows)
            of_pieces = np.empty((len(document), len(classes(tokens))), np.float32)
        for part in range(PARTS):
            teacher = _teacher(train, rows[parts != part], tokens, chosen)
            texts = rows[parts == part]
            probabilities[texts] = teacher.label(train)[texts]
            if size:
                unseen = np.isin(document, texts)
                of_pieces[unseen] = teacher.label(pieces)[unseen]
        np.save(folder / f"{PROBABILITIES}.npy", probabilities[rows])
        if size:
            _save_pieces(folder, Pieces(pieces.offsets, index, of_pieces[index]))

    recipe |= {"parts": PARTS, "pieces": size}
    folder = cached(cache, "cross-fitted", recipe, make)
    return np.load(folder / f"{PROBABILITIES}.npy"), _load_pieces(folder) if size else None


def _recipe(tokens: Path, validation: float, more: Unlabelled | None) -> dict[str, Any]:
    recipe = {
        "tokens": tokens.name,
        "validation": validation,
        "C": INVERSE_PENALTY,
        "documents": MIN_DOCUMENTS,
    }
    if more is not None:
        recipe |= {"unlabelled": more.tokens.name, "film": more.film, "rounds": ROUNDS, "sure": SURE}
    return recipe | {"format": FORMAT}


def _chosen(tokens: Path, validation: float, more: Unlabelled | None) -> tuple[Tokens, np.ndarray] | None:
    """Returns the unlabelled texts, and the numbers of those that are not left out."""
    if more is None:
        return None
    return read_tokens(more.tokens, UNLABELLED), choose(tokens, validation, more)[0]


def _teacher(
    train: Tokens,
    rows: np.ndarray,
    tokens: Path,
    unlabelled: tuple[Tokens, np.ndarray] | None,
    name: str = NGRAMS,
) -> NGrams:
    """Returns the teacher that is fitted on these rows of the training texts, and on unlabelled texts."""
    teacher = NGrams.fit(train, rows, len(words(tokens)), len(classes(tokens)))
    if unlabelled is None:
        return teacher
    taught = teacher.taught_with_vectors if name == VECTORS else teacher.taught
    return taught(train, rows, *unlabelled)


def labelled_pieces(cache: Path, unlabelled: Path, index: np.ndarray, teacher: Path, size: int) -> Pieces:
    """Returns what the teacher says of the pieces of the unlabelled texts with the numbers `index` (n,)."""
    recipe = {"unlabelled": unlabelled.name, "teacher": teacher.name, "pieces": size, "format": FORMAT}
    recipe["index"] = hashlib.sha256(index.astype(np.int64).data).hexdigest()

    def make(folder: Path, work: Path) -> None:
        pieces, document = cut(read_tokens(unlabelled, UNLABELLED), size)
        chosen = _parts_of_texts(document, index)
        probabilities = _label(teacher, pieces)[chosen]
        _save_pieces(folder, Pieces(pieces.offsets, chosen, probabilities.astype(np.float32)))

    return _load_pieces(cached(cache, "pieces", recipe, make))


def labelled(
    cache: Path, tokens: Path, validation: float, unlabelled: Unlabelled, teacher: Path | None
) -> Labels:
    """Returns the labels of the unlabelled texts; those of the texts themselves where teacher is None.

    Texts about a held-out film, or equal to a held-out or a labelled text, are left out. Texts with the same
    tokens are equal.
    """
    recipe = {"tokens": tokens.name, "validation": validation, "unlabelled": unlabelled.tokens.name}
    recipe["film"] = unlabelled.film

    def make(folder: Path, work: Path) -> None:
        more = read_tokens(unlabelled.tokens, UNLABELLED)
        index, left_out = choose(tokens, validation, unlabelled)
        if teacher is None:
            probabilities = np.load(unlabelled.tokens / f"{UNLABELLED}_{PROBABILITIES}.npy", mmap_mode="r")
        else:
            probabilities = _label(teacher, more)
        np.save(folder / "index.npy", index)
        np.save(folder / f"{PROBABILITIES}.npy", probabilities[index].astype(np.float32))
        about = {"left_out": left_out, "texts": len(more.labels)}
        (folder / "about.json").write_text(json.dumps(about))

    recipe |= {"teacher": teacher and teacher.name, "format": FORMAT}
    folder = cached(cache, "labels", recipe, make)
    arrays = [np.load(folder / f"{name}.npy") for name in ("index", PROBABILITIES)]
    return Labels(*arrays, **json.loads((folder / "about.json").read_text()))


def scores(teacher: Path, tokens: Path) -> dict[str, float]:
    """Returns the accuracy on validation and test of the teacher in the folder."""
    known = json.loads((teacher / "scores.json").read_text())
    return {**known, "test": _accuracy(teacher, tokens, None)}


def targets(
    probabilities: np.ndarray, temperature: float, confidence: float, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which texts (n,) the teacher is sure enough of, and their labels (m, C) to train on.

    Args:
        probabilities: (n, C)
        temperature: p becomes p ** (1 / temperature), divided by the sum; 0 leaves the most probable class.
        confidence: The lowest probability of the most probable class.
        weight: The sum of a label.
    """
    chosen = np.flatnonzero(probabilities.max(axis=1) >= confidence)
    return chosen, (weight * softened(probabilities[chosen], temperature)).astype(np.float32)


def mixed(labels: np.ndarray, probabilities: np.ndarray, temperature: float, weight: float) -> np.ndarray:
    """Returns distributions (n, C) with `weight` from the teacher and the rest from the label.

    This is the target of distillation (Hinton et al., 2015, section 2) with one temperature for the teacher
    alone.

    Args:
        labels: (n,) the classes.
        probabilities: (n, C) of the teacher.
        temperature: As in `targets`.
        weight: In 0..1.
    """
    gold = np.eye(probabilities.shape[1])[labels]
    return ((1 - weight) * gold + weight * softened(probabilities, temperature)).astype(np.float32)


def softened(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns p ** (1 / temperature), divided by the sum (n, C) float64; as in `targets`."""
    p = probabilities.astype(np.float64)
    if temperature == 0:
        return np.eye(p.shape[1])[p.argmax(axis=1)]
    p = (p / p.max(axis=1, keepdims=True)) ** (1 / temperature)
    return p / p.sum(axis=1, keepdims=True)


def words(tokens: Path) -> list[str]:
    return json.loads((tokens / "words.json").read_text(encoding="utf-8"))


def classes(tokens: Path) -> list[str]:
    return json.loads((tokens / "classes.json").read_text(encoding="utf-8"))


def _parts_of_texts(document: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the numbers of the pieces of these texts that are not a whole text."""
    return np.flatnonzero(np.isin(document, texts) & (np.bincount(document)[document] > 1))


def _save_pieces(folder: Path, pieces: Pieces) -> None:
    for name, array in zip(Pieces._fields, pieces, strict=True):
        np.save(folder / f"pieces_{name}.npy", array)


def _load_pieces(folder: Path) -> Pieces:
    return Pieces(*(np.load(folder / f"pieces_{name}.npy") for name in Pieces._fields))


def choose(
    tokens: Path, validation: float, unlabelled: Unlabelled
) -> tuple[np.ndarray, dict[str, int | None]]:
    """Returns the numbers of the texts that are not left out, and how many are, by reason."""
    train, more = read_tokens(tokens, "train"), read_tokens(unlabelled.tokens, UNLABELLED)
    film = unlabelled.film
    rows, held_out = grouped_split(train.keys, validation)
    keys, more_keys = train.text_keys(), more.text_keys()
    same_film = np.isin(more.keys, train.keys[held_out]) & (film == "known")
    same_text = np.isin(more_keys, keys[held_out]) & ~same_film
    same_label = np.isin(more_keys, keys[rows]) & ~same_film & ~same_text
    left_out: dict[str, int | None] = {
        "held-out text": int(same_text.sum()), "labelled text": int(same_label.sum())
    }  # fmt: skip
    if film is not None:
        known = film == "known" and (more.keys != np.uint64(group_key(""))).any()
        left_out["held-out film"] = int(same_film.sum()) if known else None
    return np.flatnonzero(~(same_film | same_text | same_label)), left_out


def _label(teacher: Path, tokens: Tokens) -> np.ndarray:
    """Returns the teacher's probabilities (n, C) of all documents."""
    return NGrams.load(teacher / "ngrams.npz").label(tokens)


def _accuracy(teacher: Path, tokens: Path, rows: np.ndarray | None) -> float:
    """Returns the accuracy of `scores` on these training texts, or on all test texts where rows is None."""
    split = read_tokens(tokens, "test" if rows is None else "train")
    rows = slice(None) if rows is None else rows
    hits = _label(teacher, split).argmax(axis=1) == np.asarray(split.labels)
    return float(hits[rows].mean())
