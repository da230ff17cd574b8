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
from torch_rnn.data.lessons import Lessons
from torch_rnn.data.ngrams import logistic_regression
from torch_rnn.data.teaching import Source
from torch_rnn.data.text import TOKENIZER, TORCHTEXT, Vocabulary
from torch_rnn.data.tokenizing import write_tokens
from torch_rnn.data.tokens import grouped_split, read_tokens
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
        cache: str | None = None,
        max_features: int = 10000,
        maxlen: int = 500,
        validation: float = 0.1,
        batch_size: int = 64,
        seed: int = 0,
        word_dropout: float = 0.0,
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
        self.lessons = Lessons(
            teacher, unlabelled, temperature, confidence, teacher_weight, distillation, pieces, evidence
        )
        self.evidence = evidence
        self.more_tokens: Path | None = None
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
        if self.lessons.unlabelled is None:
            raise RunError(
                f"the teacher {self.lessons.teacher} has no texts to label; name some with --data.unlabelled"
            )
        return self.unlabelled_documents(self.lessons.unlabelled, "unlabelled")

    def unlabelled_documents(self, path: Path, split: str, probabilities: Sequence[str] = ()) -> Source:
        """Returns the unlabelled texts of a file in one of the formats of `documents`."""
        source = documents(path, self.text_column, None, split, probabilities)
        return Source(path, source.fingerprint(), lambda: source, has_films=False)

    def prepare_data(self) -> None:
        """Finds the documents, and tokenizes and labels what is not in the cache."""
        if self.is_prepared:
            return
        self.prepare_tokens()
        more = self.prepare_unlabelled() if self.lessons.teacher is not None else None
        self.lessons.prepare(self.cache, self.tokens, self.validation, more)
        self.is_prepared = True

    def _check_teacher_exists(self) -> None:
        """Raises RunError if the teacher, or the texts that it is to label, are missing."""
        teacher = self.lessons.teacher
        if self.lessons.is_fitted:
            self.unlabelled_source()
        elif teacher is not None and not Path(teacher).exists():
            raise RunError(f"teacher is {teacher}; it must be ngrams, vectors or a file that exists")

    def prepare_tokens(self) -> None:
        """Finds the labelled documents, and tokenizes them if they are not in the cache."""
        if self.tokens is not None:
            return
        self._check_teacher_exists()
        paths, fingerprint, open_splits = self.source()
        recipe = {"source": fingerprint, "tokenizer": TOKENIZER, "torchtext": TORCHTEXT, "format": FORMAT}

        def make(folder: Path, work: Path) -> None:
            if self.lessons.need_ngrams:
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
        if self.lessons.is_fitted:
            return self.unlabelled_source()
        columns = [f"p_{name}" for name in self.classes]
        return self.unlabelled_documents(Path(self.lessons.teacher), "teacher", columns)

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
            "train": self.lessons.texts(train, fitted, self.more_tokens, len(self.classes)),
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
        return self.lessons.evidence_of_steps() if split == "train" else None

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of texts, what was left out, and the accuracy of teachers."""
        return {"labelled": self.labelled, **self.lessons.facts(self.tokens)}
