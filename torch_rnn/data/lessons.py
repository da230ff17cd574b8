"""Lessons: what training texts teach beside their classes, from teachers that read more than the RNN."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from torch_rnn.data import teaching
from torch_rnn.data.ngrams import NGrams
from torch_rnn.data.tokens import UNLABELLED, Tokens, joined, read_tokens

log = logging.getLogger(__name__)


class Lessons:
    """Labels of unlabelled texts and of pieces, softer labels of labelled texts, and evidence of each step.

    `prepare` makes them, or finds them in the cache; `texts` adds them to the training texts.

    Args: As in `Corpus`.

    Raises:
        ValueError: A setting is out of range or would be ignored.
    """

    def __init__(
        self,
        teacher: str | None,
        unlabelled: str | None,
        temperature: float,
        confidence: float,
        teacher_weight: float,
        distillation: float,
        pieces: int,
        evidence: float,
    ):
        self.teacher, self.unlabelled = teacher, unlabelled and Path(unlabelled)
        self.temperature, self.confidence, self.weight = temperature, confidence, teacher_weight
        self.distillation, self.pieces, self.evidence = distillation, pieces, evidence
        self._check()
        self.ngrams: Path | None = None
        """The folder of the fitted teacher."""
        self.labels: teaching.Labels | None = None
        """What the teacher says of the unlabelled texts."""
        self.cross_fitted: np.ndarray | None = None
        """What teachers say of labelled texts that they have not seen."""
        self.accuracy: float | None = None
        """That of `cross_fitted`."""
        self.pieces_labels: list[teaching.Pieces] = []
        """What teachers say of the pieces of labelled and of unlabelled texts."""
        self.n_labels, self.n_pieces = 0, 0

    def _check(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0")
        if not 0 <= self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must be at least 0 and below 1")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"teacher_weight is {self.weight}; it must be above 0")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation is {self.distillation}; it must be in 0..1")
        if self.pieces < 0:
            raise ValueError(f"pieces is {self.pieces}; it must be at least 0")
        if not 0 <= self.evidence < float("inf"):
            raise ValueError(f"evidence is {self.evidence}; it must be at least 0")
        if self.teacher is None:
            for name, value, default, used in (
                ("unlabelled", self.unlabelled, None, False),
                ("temperature", self.temperature, 1, self.distillation or self.pieces),
                ("confidence", self.confidence, 0, self.pieces),
                ("teacher_weight", self.weight, 1, self.pieces),
            ):
                if value != default and not used:
                    allowed = "ngrams, vectors or a file"
                    raise ValueError(f"{name} is {value}, and there is no teacher; set teacher to {allowed}")
        elif not self.is_fitted and self.unlabelled is not None:
            raise ValueError(
                f"unlabelled is {self.unlabelled}; the texts of the teacher {self.teacher} are in its file"
            )

    @property
    def is_fitted(self) -> bool:
        """Whether the teacher of unlabelled texts is fitted here; else it is a file of labels, or None."""
        return self.teacher in teaching.FITTED

    @property
    def need_ngrams(self) -> bool:
        """Whether any teacher is fitted here."""
        return bool(self.is_fitted or self.distillation or self.pieces or self.evidence)

    @property
    def fitted_name(self) -> str:
        """The name of the fitted teacher, which gives the evidence, too."""
        return self.teacher if self.is_fitted else teaching.NGRAMS

    def prepare(self, cache: Path, tokens: Path, validation: float, more: teaching.Unlabelled | None) -> None:
        """Fits the teachers and keeps what they say, unless it is in the cache.

        Args:
            cache: The folder of the cache.
            tokens: The folder of the labelled texts' tokens.
            validation: The part of the training texts that is held out.
            more: The unlabelled texts; None without a teacher for them.
        """
        to_learn_from = more if self.is_fitted else None
        if self.distillation or self.pieces:
            self.cross_fitted, pieces = teaching.cross_fitted(
                cache, tokens, validation, self.pieces, to_learn_from
            )
            self.pieces_labels = [pieces] if self.pieces else []
        if to_learn_from is not None or self.evidence:
            self.ngrams = teaching.fitted(cache, tokens, validation, to_learn_from, self.fitted_name)
        if more is not None:
            teacher = None if to_learn_from is None else self.ngrams
            self.labels = teaching.labelled(cache, tokens, validation, more, teacher)
        if self.pieces and to_learn_from is not None:
            self.pieces_labels.append(
                teaching.labelled_pieces(cache, more.tokens, self.labels.index, self.ngrams, self.pieces)
            )

    def texts(
        self, train: Tokens, rows: np.ndarray, more: Path | None, n_classes: int
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        """Returns tokens, the numbers of the texts in them to train on, and their labels.

        The labels are classes (n,), or where a teacher has a say distributions (n, C).

        Args:
            train: The labelled texts.
            rows: The numbers of those that are not held out.
            more: The folder of the unlabelled texts' tokens.
            n_classes: C.
        """
        labels = self._softer(np.asarray(train.labels)[rows])
        texts = train, rows, labels
        if self.labels is not None:
            texts = self._with_unlabelled(*texts, read_tokens(more, UNLABELLED), n_classes)
        return self._with_pieces(train.offsets[-1], *texts)

    def _softer(self, labels: np.ndarray) -> np.ndarray:
        """Mixes into the labels (n,) what the cross-fitted teachers say, if there are any."""
        if self.cross_fitted is None:
            return labels
        self.accuracy = float((self.cross_fitted.argmax(axis=1) == labels).mean())
        log.info(
            "the teachers %s are right on %.1f %% of the labelled texts that they have not seen",
            teaching.NGRAMS, 100 * self.accuracy,
        )  # fmt: skip
        return teaching.mixed(labels, self.cross_fitted, self.temperature, self.distillation)

    def _with_unlabelled(
        self, train: Tokens, rows: np.ndarray, labels: np.ndarray, more: Tokens, n_classes: int
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        """Adds the unlabelled texts of which the teacher is sure enough."""
        found = self.labels
        chosen, targets = teaching.targets(
            found.probabilities, self.temperature, self.confidence, self.weight
        )
        self.n_labels = len(chosen)
        counts = ", ".join(
            f"{'an unknown number' if n is None else f'{n:,}'} for a {reason}"
            for reason, n in found.left_out.items()
        )
        log.info(
            "the teacher %s labels %s of %s unlabelled texts; left out: %s, and %s below the confidence %s",
            self.teacher, f"{len(chosen):,}", f"{found.texts:,}", counts,
            f"{len(found.index) - len(chosen):,}", self.confidence,
        )  # fmt: skip
        index = np.concatenate([rows, len(train.labels) + found.index[chosen]])
        gold = np.eye(n_classes, dtype=np.float32)[labels] if labels.ndim == 1 else labels
        return joined(train, more), index, np.concatenate([gold, targets])

    def _with_pieces(
        self, more: int, tokens: Tokens, index: np.ndarray, labels: np.ndarray
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        """Adds the pieces; the ids of unlabelled texts begin at `more`."""
        for pieces, start in zip(self.pieces_labels, (0, more), strict=False):
            chosen, targets = teaching.targets(
                pieces.probabilities, self.temperature, self.confidence, self.weight
            )
            index = np.concatenate([index, len(tokens.offsets) + pieces.index[chosen]])
            tokens = tokens._replace(offsets=np.concatenate([tokens.offsets, start + pieces.offsets]))
            labels = np.concatenate([labels, targets])
            self.n_pieces += len(chosen)
        if self.pieces:
            log.info(
                "%s pieces of about %s tokens of these texts have labels of a teacher, too",
                f"{self.n_pieces:,}", self.pieces,
            )  # fmt: skip
        return tokens, index, labels

    def evidence_of_steps(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """Returns the `evidence` of `Sequences`."""
        return NGrams.load(self.ngrams / "ngrams.npz").evidence if self.evidence else None

    def facts(self, tokens: Path) -> dict[str, Any]:
        """Returns the numbers of unlabelled texts, what was left out, and the accuracy of teachers."""
        scores = {} if self.ngrams is None else teaching.scores(self.ngrams, tokens)
        facts = {"unlabelled": 0, "left_out": {}, "teacher": None}
        if self.labels is not None:
            known = scores if self.is_fitted else {"validation": None, "test": None}
            facts = {
                "unlabelled": self.labels.texts,
                "left_out": self.labels.left_out,
                "teacher": {"name": self.teacher, **known, "labels": self.n_labels},
            }
        if self.cross_fitted is not None:
            pieces = {"pieces": self.n_pieces} if self.pieces else {}
            facts["distillation"] = {"name": teaching.NGRAMS, "accuracy": self.accuracy, **pieces}
        if self.evidence:
            facts["evidence"] = {"name": self.fitted_name, **scores}
        return facts
