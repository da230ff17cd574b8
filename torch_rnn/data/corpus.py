"""Corpus: the base class of data sets of texts on disk, IMDB and a user's own files."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch_rnn.data import teaching
from torch_rnn.data.batches import RaggedSequences
from torch_rnn.data.cache import cached, digest_of_ids
from torch_rnn.data.datamodule import SequenceData, check_positive
from torch_rnn.data.documents import Documents
from torch_rnn.data.formats import documents
from torch_rnn.data.ngrams import NGrams, logistic_regression
from torch_rnn.data.teaching import Source
from torch_rnn.data.text import TOKENIZER, TORCHTEXT, Vocabulary
from torch_rnn.data.tokenizing import write_tokens
from torch_rnn.data.tokens import UNLABELLED, Tokens, grouped_split, joined, read_tokens
from torch_rnn.errors import RunError

log = logging.getLogger(__name__)
FORMAT = 2
"""Version of the cache's contents. A new version makes new folders and keeps those of an older one."""


class Corpus(SequenceData):
    """Tokenizes documents once, and then reads the tokens from a cache that may be larger than memory.

    A subclass implements `source`.

    With a teacher, training uses unlabelled texts, too: their label is the teacher's distribution over the
    classes, and the loss is the cross-entropy with it. A text that has a label of its own keeps it. An
    unlabelled text of a held-out group, or equal to a held-out text, is left out.

    Args:
        cache: The folder for the tokens; None is data/cache.
        max_features: The number of ids: `<unk>` and the most frequent words of the training texts.
        maxlen: Only the last maxlen tokens of a text are used.
        validation: The part of the training texts that is held out, group by group.
        batch_size: Sequences in a batch.
        seed: The seed of the order of the batches and of word dropout.
        word_dropout: The probability with which a training text loses each of its tokens in a step.
        unlabelled: The file or folder of the texts for the teacher "ngrams" or "vectors" to label, in the
            formats of `documents`.
        teacher: "ngrams" for the `NGrams` that are fitted on the training texts; "vectors" for those that
            learn from the n-grams' vectors, too (`NGrams.taught_with_vectors`), which takes minutes; a file
            that scripts/label.py has written, with texts and their probabilities; or None.
        temperature: The teacher's probabilities p become p ** (1 / temperature), divided by their sum. They
            are less certain above 1; 0 leaves the most probable class alone.
        confidence: Unlabelled texts, and pieces, whose most probable class has a lower probability than this
            are not trained on.
        teacher_weight: The weight in the loss of an unlabelled text or a piece; a labelled text has 1.
        distillation: The weight, in 0..1, of a teacher's distribution in the label of a labelled training
            text; the class of the text has the rest. The teacher is the `NGrams` that are fitted on the
            training texts of other groups (`teaching.cross_fitted`). It needs no unlabelled texts.
        pieces: The length in tokens of the pieces that training texts are cut into; 0 for none. Pieces are
            trained on beside the whole texts, with the label of a teacher: for a labelled text that of
            `distillation`, for an unlabelled one that of `teacher`. The texts of a file of labels
            are not cut.
        evidence: The weight in the loss of a teacher's evidence of each step of a training text; 0 for none.
            At each step, a teacher says how much the n-grams that end there add to its logit; for the second
            direction, those that begin there. It is that of `teacher` if this is "ngrams" or "vectors", and
            otherwise an `NGrams` that is fitted on the training texts. An RNN is trained to give each step a
            share in its logit that is proportional to it (`evidence.disagreement`), which teaches it n-grams
            that few texts have. Needs the readout last or mean.
    """

    labels: tuple[str, ...] = ()
    """The labels in the documents, in the order of the classes."""
    films = False
    """Whether a group of documents is a film; else it is the text itself."""
    text_column = "text"
    """The column of the texts in files of unlabelled texts."""

    def __init__(
        self,
        cache: str | None,
        max_features: int,
        maxlen: int,
        validation: float,
        batch_size: int,
        seed: int,
        word_dropout: float,
        unlabelled: str | None = None,
        teacher: str | None = None,
        temperature: float = 1.0,
        confidence: float = 0.0,
        teacher_weight: float = 1.0,
        distillation: float = 0.0,
        pieces: int = 0,
        evidence: float = 0.0,
    ):
        super().__init__(batch_size, seed, word_dropout)
        _check_teacher(teacher, unlabelled, temperature, confidence, teacher_weight, distillation, pieces)
        if not 0 <= evidence < float("inf"):
            raise ValueError(f"evidence is {evidence}; it must be at least 0")
        self.evidence = evidence
        self.distillation, self.pieces = distillation, pieces
        self.cross_fitted: np.ndarray | None = None
        self.cross_fitted_accuracy: float | None = None
        self.pieces_labels: list[teaching.Pieces] = []
        self.n_pieces: list[int] = []
        self.unlabelled, self.teacher = unlabelled and Path(unlabelled), teacher
        self.temperature, self.confidence, self.teacher_weight = temperature, confidence, teacher_weight
        self.ngrams: Path | None = None
        self.more_tokens: Path | None = None
        self.teachers_labels: teaching.Labels | None = None
        check_positive(max_features=max_features, maxlen=maxlen)
        if not 0 < validation < 1:
            raise ValueError(f"validation is {validation}; it must be between 0 and 1")
        self.cache = Path(cache or Path("data", "cache"))
        self.input_size = self.max_features = max_features
        self.maxlen, self.validation = maxlen, validation
        self.tokens: Path | None = None
        self.is_prepared = False

    def source(self) -> tuple[list[Path], dict[str, Any], Callable[[], Mapping[str, Documents]]]:
        """Returns the paths of the source, its fingerprint and a function that opens "train" and "test"."""
        raise NotImplementedError

    def unlabelled_source(self) -> Source:
        """Returns the unlabelled texts that the settings name."""
        if self.unlabelled is None:
            raise RunError(
                f"the teacher {self.teacher} has no texts to label; name some with --data.unlabelled"
            )
        return self.unlabelled_documents(self.unlabelled, "unlabelled")

    def unlabelled_documents(self, path: Path, split: str, probabilities: Sequence[str] = ()) -> Source:
        """Returns the unlabelled texts of a file in one of the formats of `documents`."""
        source = documents(path, self.text_column, None, split, probabilities)
        return Source(path, source.fingerprint(), lambda: source, has_films=False)

    def prepare_data(self) -> None:
        """Finds the documents, and tokenizes and labels what is not in the cache."""
        if self.is_prepared:
            return
        self.prepare_tokens()
        more = self.prepare_unlabelled() if self.teacher is not None else None
        to_learn_from = more if self.teacher in teaching.FITTED else None
        if self.distillation or self.pieces:
            self.cross_fitted, pieces = teaching.cross_fitted(
                self.cache, self.tokens, self.validation, self.pieces, to_learn_from
            )
            self.pieces_labels = [pieces] if self.pieces else []
        if to_learn_from is not None or self.evidence:
            self.ngrams = teaching.fitted(
                self.cache, self.tokens, self.validation, to_learn_from, self._fitted_name()
            )
        if more is not None:
            teacher = None if to_learn_from is None else self.ngrams
            labels = teaching.labelled(self.cache, self.tokens, self.validation, more, teacher)
            self.teachers_labels = labels
        if self.pieces and to_learn_from is not None:
            self.pieces_labels.append(
                teaching.labelled_pieces(
                    self.cache, self.more_tokens, self.teachers_labels.index, self.ngrams, self.pieces
                )
            )
        self.is_prepared = True

    def _check_teacher_exists(self) -> None:
        """Raises RunError if the teacher, or the texts that it is to label, are missing."""
        if self.teacher in teaching.FITTED:
            self.unlabelled_source()
        elif self.teacher is not None and not Path(self.teacher).exists():
            raise RunError(f"teacher is {self.teacher}; it must be ngrams, vectors or a file that exists")

    def prepare_tokens(self) -> None:
        """Finds the labelled documents, and tokenizes them if they are not in the cache."""
        if self.tokens is not None:
            return
        self._check_teacher_exists()
        paths, fingerprint, open_splits = self.source()
        recipe = {"source": fingerprint, "tokenizer": TOKENIZER, "torchtext": TORCHTEXT, "format": FORMAT}

        def make(folder: Path, work: Path) -> None:
            if self.teacher in teaching.FITTED or self.distillation or self.pieces or self.evidence:
                logistic_regression()  # which a teacher will need; this may take long
            write_tokens(open_splits(), folder, work)

        origin = "\n".join(str(path.resolve()) for path in paths)
        self.tokens = cached(self.cache, self.name, recipe, make, origin)
        self.labels = tuple(json.loads((self.tokens / "classes.json").read_text(encoding="utf-8")))

    def prepare_unlabelled(self, source: Source | None = None) -> teaching.Unlabelled:
        """Tokenizes unlabelled texts if they are not in the cache: by default those of the settings."""
        source = source or self._teachers_texts()
        self.more_tokens = teaching.tokenized(self.cache, self.name, self.tokens, source)
        film = ("known" if source.has_films else "unknown") if self.films else None
        return teaching.Unlabelled(self.more_tokens, film)

    def _teachers_texts(self) -> Source:
        """Returns the unlabelled texts, or those of the file of labels."""
        if self.teacher in teaching.FITTED:
            return self.unlabelled_source()
        columns = [f"p_{name}" for name in self.classes]
        return self.unlabelled_documents(Path(self.teacher), "teacher", columns)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.prepare_data()
        words = json.loads((self.tokens / "words.json").read_text(encoding="utf-8"))
        self.vocabulary = Vocabulary(words).first(self.max_features)
        train, test = (read_tokens(self.tokens, split) for split in ("train", "test"))
        fitted, held_out = grouped_split(train.keys, self.validation)
        if len(fitted) == 0:
            raise RunError(f"validation is {self.validation}; that leaves no data for training")
        self.labelled = len(fitted)
        for split, (tokens, index, labels) in {
            "train": self._with_pieces(train.offsets[-1], *self._with_teacher(train, fitted)),
            "validation": (train, held_out, np.asarray(train.labels)[held_out]),
            "test": (test, np.arange(len(test.labels)), np.array(test.labels)),
        }.items():
            sequences = RaggedSequences(tokens.ids, tokens.offsets, index, self.maxlen, self.max_features)
            self.add_split(split, sequences, labels)
        if not self.films and (n := int(np.isin(test.keys, train.keys).sum())):
            log.warning("%s of %s test texts are in the training data, too", f"{n:,}", f"{len(test.keys):,}")
        sizes = ", ".join(f"{split} {len(labels):,}" for split, (_, labels) in self.splits.items())
        log.info("%s: %s texts; %s words", self.name, sizes, f"{len(self.vocabulary):,}")

    def fingerprint(self) -> dict[str, str]:
        """Returns digests of the vocabulary, of all lengths and labels, and of all tokens."""
        folders = [folder for folder in (self.tokens, self.more_tokens) if folder is not None]
        return super().fingerprint() | {"tokens": digest_of_ids(*folders)}

    def _evidence(self, split: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        if not self.evidence or split != "train":
            return None
        return NGrams.load(self.ngrams / "ngrams.npz").evidence

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of texts, what was left out, and the accuracy of teachers."""
        scores = {} if self.ngrams is None else teaching.scores(self.ngrams, self.tokens)
        facts = {"labelled": self.labelled, "unlabelled": 0, "left_out": {}, "teacher": None}
        if (found := self.teachers_labels) is not None:
            known = scores if self.teacher in teaching.FITTED else {"validation": None, "test": None}
            labels = len(self.splits["train"][1]) - self.labelled - sum(self.n_pieces)
            facts |= {
                "unlabelled": found.texts,
                "left_out": found.left_out,
                "teacher": {"name": self.teacher, **known, "labels": labels},
            }
        evidence = {"evidence": {"name": self._fitted_name(), **scores}} if self.evidence else {}
        return facts | self._distillation() | evidence

    def _fitted_name(self) -> str:
        """Returns the name of the fitted teacher, which gives the evidence, too."""
        return self.teacher if self.teacher in teaching.FITTED else teaching.NGRAMS

    def _distillation(self) -> dict[str, Any]:
        """Returns the accuracy of the teachers of the labelled training texts, where there are any."""
        if self.cross_fitted is None:
            return {}
        facts = {"name": teaching.NGRAMS, "accuracy": self.cross_fitted_accuracy}
        return {"distillation": facts | ({"pieces": sum(self.n_pieces)} if self.pieces else {})}

    def _with_teacher(self, train: Tokens, fitted: np.ndarray) -> tuple[Tokens, np.ndarray, np.ndarray]:
        """Returns tokens, the numbers of the training texts in them, and their labels."""
        labels, found = np.asarray(train.labels)[fitted], self.teachers_labels
        if self.cross_fitted is not None:
            p = self.cross_fitted
            self.cross_fitted_accuracy = float((p.argmax(axis=1) == labels).mean())
            log.info(
                "the teachers %s are right on %.1f %% of the labelled texts that they have not seen",
                teaching.NGRAMS, 100 * self.cross_fitted_accuracy,
            )  # fmt: skip
            labels = teaching.mixed(labels, p, self.temperature, self.distillation)
        if found is None:
            return train, fitted, labels
        chosen, targets = teaching.targets(
            found.probabilities, self.temperature, self.confidence, self.teacher_weight
        )
        counts = ", ".join(
            f"{'an unknown number' if n is None else f'{n:,}'} for a {reason}"
            for reason, n in found.left_out.items()
        )
        log.info(
            "the teacher %s labels %s of %s unlabelled texts; left out: %s, and %s below the confidence %s",
            self.teacher, f"{len(chosen):,}", f"{found.texts:,}", counts,
            f"{len(found.index) - len(chosen):,}", self.confidence,
        )  # fmt: skip
        more = read_tokens(self.more_tokens, UNLABELLED)
        index = np.concatenate([fitted, len(train.labels) + found.index[chosen]])
        gold = np.eye(len(self.classes), dtype=np.float32)[labels] if labels.ndim == 1 else labels
        return joined(train, more), index, np.concatenate([gold, targets])

    def _with_pieces(
        self, more: int, tokens: Tokens, index: np.ndarray, labels: np.ndarray
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        """Adds pieces to the result of `_with_teacher`; the ids of unlabelled texts begin at `more`."""
        for pieces, start in zip(self.pieces_labels, (0, more), strict=False):
            chosen, targets = teaching.targets(
                pieces.probabilities, self.temperature, self.confidence, self.teacher_weight
            )
            index = np.concatenate([index, len(tokens.offsets) + pieces.index[chosen]])
            tokens = tokens._replace(offsets=np.concatenate([tokens.offsets, start + pieces.offsets]))
            labels = np.concatenate([labels, targets])
            self.n_pieces.append(len(chosen))
        if self.pieces:
            log.info(
                "%s pieces of about %s tokens of these texts have labels of a teacher, too",
                f"{sum(self.n_pieces):,}", self.pieces,
            )  # fmt: skip
        return tokens, index, labels


def _check_teacher(
    teacher: str | None,
    unlabelled: str | None,
    temperature: float,
    confidence: float,
    teacher_weight: float,
    distillation: float,
    pieces: int,
) -> None:
    """Raises ValueError for a setting that is out of range or would be ignored."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be at least 0")
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be at least 0 and below 1")
    if not 0 < teacher_weight < float("inf"):
        raise ValueError(f"teacher_weight is {teacher_weight}; it must be above 0")
    if not 0 <= distillation <= 1:
        raise ValueError(f"distillation is {distillation}; it must be in 0..1")
    if pieces < 0:
        raise ValueError(f"pieces is {pieces}; it must be at least 0")
    if teacher is None:
        for name, value, default, used in (
            ("unlabelled", unlabelled, None, False),
            ("temperature", temperature, 1, distillation or pieces),
            ("confidence", confidence, 0, pieces),
            ("teacher_weight", teacher_weight, 1, pieces),
        ):
            if value != default and not used:
                raise ValueError(
                    f"{name} is {value}, and there is no teacher; set teacher to ngrams, vectors or a file"
                )
    elif teacher not in teaching.FITTED and unlabelled is not None:
        raise ValueError(f"unlabelled is {unlabelled}; the texts of the teacher {teacher} are in its file")
