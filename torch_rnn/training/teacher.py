"""Teachers: classifiers of texts whose probabilities become the labels of unlabelled texts.

A teacher has `classes` and `probabilities(texts)`. It is an `NGramTeacher`, a trained `TextClassifier`, or
the `Mixture` of several.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torch_rnn.data.corpus import Corpus
from torch_rnn.data.documents import Document
from torch_rnn.data.ngrams import NGrams
from torch_rnn.data.teaching import Source, fitted, words
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.errors import RunError
from torch_rnn.files import check_writable, write_atomically
from torch_rnn.training.text_classifier import TextClassifier

BATCH = 1024
"""Texts in memory at a time."""


class Teacher(Protocol):
    classes: tuple[str, ...]

    def probabilities(self, texts: Sequence[str]) -> Any:
        """Returns the probability of each class for each text, (len(texts), len(classes))."""


class NGramTeacher:
    """The `NGrams` that are fitted on labelled and unlabelled texts.

    It is the teacher of a training with `data.teacher` ngrams or vectors: it is taken from the same cache,
    and what validation holds out is held out of it, too.

    Args:
        name: "ngrams" or "vectors".
        data: The labelled texts.
        unlabelled: The unlabelled texts.
    """

    def __init__(self, name: str, data: Corpus, unlabelled: Source):
        data.prepare_tokens()
        self.classes = tuple(data.classes)
        more = data.prepare_unlabelled(unlabelled)
        folder = fitted(data.cache, data.tokens, data.validation, more, name)
        self.model = NGrams.load(folder / "ngrams.npz")
        self.vocabulary = Vocabulary(words(data.tokens))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the probability of each class for each text, (len(texts), len(classes))."""
        rows = [self.vocabulary.encode(tokenize(text)) for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return self.model.probabilities(np.concatenate([np.empty(0, np.int32), *rows]), offsets)


class Mixture:
    """The mean of several teachers' probabilities.

    Raises:
        RunError: They do not have the same classes.
    """

    def __init__(self, teachers: Sequence[Teacher]):
        self.teachers, self.classes = teachers, tuple(teachers[0].classes)
        for teacher in teachers:
            if tuple(teacher.classes) != self.classes:
                raise RunError(
                    f"the teachers have different classes, {', '.join(self.classes)} and "
                    f"{', '.join(teacher.classes)}; name teachers that were trained on the same data"
                )

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the probability of each class for each text, (len(texts), len(classes))."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
        in_order = [texts[i] for i in order]
        found = [np.asarray(teacher.probabilities(in_order), dtype=np.float64) for teacher in self.teachers]
        p = np.empty_like(found[0])
        p[order] = np.mean(found, axis=0)
        return p


def load_run(path: Path) -> TextClassifier:
    """Returns the model of a run's folder. Raises RunError where there is none for texts."""
    try:
        return TextClassifier.load(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{error}; a teacher is ngrams, vectors or the folder of a run on texts") from error


def labelled(teacher: Teacher, documents: Iterable[Document]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields BATCH texts at a time, with their probabilities (n, C)."""
    texts = (document.text for document in documents)
    while batch := list(islice(texts, BATCH)):
        yield batch, teacher.probabilities(batch)


def write_labels(path: Path, classes: Sequence[str], batches: Iterable[tuple[list[str], np.ndarray]]) -> int:
    """Writes texts and probabilities to a .jsonl or .parquet file, atomically; returns their number.

    The columns are `text`, and `p_` and the name for each class.

    Raises:
        RunError: The path ends in something else, its folder or pyarrow is missing.
    """
    columns = [f"p_{name}" for name in classes]
    write, written = writer(path), []
    write_atomically(path, lambda part: written.append(write(part, columns, batches)))
    return written[0]


def writer(path: Path) -> Callable[..., int]:
    """Returns the function that writes such a file. Raises RunError where `write_labels` would."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise RunError(f"{path} ends in {path.suffix or 'nothing'}; it must be .jsonl or .parquet")
    check_writable("--out", path)
    return _write_lines if path.suffix == ".jsonl" else _parquet_writer(path)


def _write_lines(path: Path, columns: Sequence[str], batches: Iterable[tuple[list[str], np.ndarray]]) -> int:
    n = 0
    with open(path, "w", encoding="utf-8") as file:
        for texts, p in batches:
            n += len(texts)
            for text, row in zip(texts, p.round(6).tolist(), strict=True):
                file.write(json.dumps({"text": text, **dict(zip(columns, row, strict=True))}) + "\n")
    return n


def _parquet_writer(path: Path) -> Callable[..., int]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise RunError(f"{path} cannot be written without pyarrow: pip install pyarrow") from error

    def write(part: Path, columns: Sequence[str], batches: Iterable[tuple[list[str], np.ndarray]]) -> int:
        kinds = [("text", pyarrow.string()), *((name, pyarrow.float64()) for name in columns)]
        schema, n = pyarrow.schema(kinds), 0
        with ParquetWriter(part, schema) as writer:
            for texts, p in batches:
                n += len(texts)
                writer.write_batch(pyarrow.record_batch([texts, *p.round(6).T], schema=schema))
        return n

    return write
