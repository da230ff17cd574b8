"""TextStream: one long text for a language model, in files of any size."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torch_rnn.data.batches import WHOLE_BATCH, Loader, Shard, StoredIds
from torch_rnn.data.cache import cached, digest_of_ids
from torch_rnn.data.datamodule import Splits, check_positive
from torch_rnn.data.documents import file_fingerprint
from torch_rnn.data.shakespeare import find_shakespeare
from torch_rnn.data.spans import TextPieces, divided, spans_of
from torch_rnn.data.streams import Streams, StreamSampler
from torch_rnn.data.text import TOKENIZER, TORCHTEXT, Vocabulary
from torch_rnn.data.tokenizing import write_stream
from torch_rnn.data.tokens import read_tokens
from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN

log = logging.getLogger(__name__)
FORMAT = 1
"""Version of the cache's contents. A new version makes new folders and keeps those of an older one."""


class TextStream(Splits):
    """A text that B streams read side by side, T steps a batch, with their states carried on.

    The vocabulary is that of the training part; a token that it lacks becomes `<unk>`.

    Args:
        path: The UTF-8 text file or files, which are read one after the other; None for tiny Shakespeare.
        validation: The part at the end of the text that is held out for validation, or a file.
        test: A file for the test, or None.
        tokens: "characters" (Unicode code points) or "words" (of torchtext's basic_english).
        max_features: The largest number of ids: `<unk>` and the most frequent tokens.
        root: The folder with shakespeare/input.txt; None is $TORCH_RNN_DATA, else data/.
        cache: The folder for the tokens; None is data/cache.
        batch_size: B, the number of streams.
        steps: T, the number of steps in a batch, through which the gradient flows.
        seed: The seed of the places where the epochs begin.
    """

    vocabulary: Vocabulary

    def __init__(
        self,
        path: str | list[str] | None = None,
        validation: float | str = 0.1,
        test: str | None = None,
        tokens: Literal["characters", "words"] = "characters",
        max_features: int = 10000,
        root: str | None = None,
        cache: str | None = None,
        batch_size: int = 32,
        steps: int = 64,
        seed: int = 0,
    ):
        super().__init__()
        check_positive(max_features=max_features, batch_size=batch_size, steps=steps)
        if not isinstance(validation, str) and not 0 < validation < 1:
            raise ValueError(f"validation is {validation}; it must be between 0 and 1, or a file")
        if tokens not in ("characters", "words"):
            raise ValueError(f"tokens is {tokens!r}; it must be characters or words")
        if path is not None and root is not None:
            raise ValueError(f"root is {root}, and path is {path}; root is for tiny Shakespeare only")
        self.name = "text" if path is not None else "shakespeare"
        self.paths = [Path(name) for name in ([path] if isinstance(path, str) else path or [])]
        self.validation, self.test_path = validation, test and Path(test)
        self.tokens, self.max_features, self.root = tokens, max_features, root
        self.cache = Path(cache or Path("data", "cache"))
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.folder: Path | None = None
        self._ids: dict[str, np.ndarray | StoredIds] = {}

    @property
    def input_size(self) -> int:
        """The number of different ids."""
        self.prepare_data()
        return len(self.vocabulary)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation") if self.test_path is None else ("train", "validation", "test")

    def prepare_data(self) -> None:
        """Finds the text, and tokenizes it if it is not in the cache."""
        if self.folder is not None:
            return
        self.paths = self.paths or [find_shakespeare(self.root)]
        held_out = [Path(self.validation)] if isinstance(self.validation, str) else []
        tests = [] if self.test_path is None else [self.test_path]
        spans = {"train": spans_of(self.paths), "validation": spans_of(held_out), "test": spans_of(tests)}
        recipe = {
            "files": {name: [file_fingerprint(span.path) for span in of] for name, of in spans.items()},
            "validation": None if held_out else self.validation,
            "tokens": self.tokens if self.tokens == "characters" else [TOKENIZER, TORCHTEXT],
            "format": FORMAT,
        }  # fmt: skip

        def make(folder: Path, work: Path) -> None:
            if not held_out:
                spans["train"], spans["validation"] = divided(
                    spans["train"], 1 - self.validation, at_space=self.tokens == "words"
                )
                for split in ("train", "validation"):
                    if not spans[split]:
                        raise RunError(
                            f"validation is {self.validation}; that leaves no text for {split}: the text is "
                            f"too short"
                        )
            sources = {split: TextPieces(parts) for split, parts in spans.items() if parts}
            write_stream(sources, self.tokens, folder, work)

        origin = "\n".join(str(path.resolve()) for path in [*self.paths, *held_out, *tests])
        self.folder = cached(self.cache, f"stream-{self.name}", recipe, make, origin=origin)
        words = json.loads((self.folder / "words.json").read_text(encoding="utf-8"))
        self.vocabulary = Vocabulary(words).first(self.max_features)

    def setup(self, stage: str | None = None) -> None:
        if self._ids:
            return
        self.prepare_data()
        self._ids = {split: read_tokens(self.folder, split).ids for split in self.splits}
        self._check_sizes()
        for split in self.splits[1:]:
            self._warn_of_unknown(split)

    def _check_sizes(self) -> None:
        """Raises RunError where a split is too short for the streams."""
        for split in self.splits:
            n, needed = self._size(split), self.batch_size + 1
            if split == "train":
                needed = self.batch_size * self.steps + 1
            if n < needed:
                streams = f"{self.batch_size} streams"
                streams += f" of {self.steps} steps" if split == "train" else ""
                raise RunError(
                    f"the {split} text has {n:,} {self.tokens}; {streams} need at least {needed:,}: lower "
                    f"data.batch_size or data.steps"
                )
        sizes = ", ".join(f"{split} {self._size(split):,}" for split in self.splits)
        log.info("%s: %s %s; %s ids", self.name, sizes, self.tokens, f"{len(self.vocabulary):,}")

    def counts(self, split: str = "train") -> np.ndarray:
        """Returns the number of each id in a split, int64 (V,)."""
        counts = np.load(self.folder / f"{split}_counts.npy")
        V = len(self.vocabulary)
        known = counts[:V].copy()
        known[0] += counts[V:].sum()
        return known

    def fingerprint(self) -> dict[str, str]:
        """Returns digests of the vocabulary and of the ids of all splits, which identify these data."""
        words = "\n".join(self.vocabulary.words).encode("utf-8", "surrogatepass")
        return {
            "vocabulary": hashlib.sha256(words).hexdigest(),
            "tokens": digest_of_ids(self.folder),
        }

    def facts(self) -> dict[str, Any]:
        """Returns what results.json says about the text."""
        unknown = {split: int(self.counts(split)[0]) for split in self.splits}
        sizes = {split: self._size(split) for split in self.splits}
        return {"tokens": self.tokens, "vocabulary": len(self.vocabulary), "sizes": sizes, "unknown": unknown}

    def about(self) -> dict[str, Any]:
        """Returns what a model file says about its data, with all that writing text needs."""
        return {
            "dataset": self.name,
            "language": {"tokens": self.tokens, "vocabulary": self.vocabulary.words},
        }

    def check_compatible(self, rnn: RNN) -> None:
        """Raises RunError where the rnn has another number of outputs than there are ids."""
        if rnn.output_size != self.input_size:
            raise RunError(
                f"output_size is {rnn.output_size}; the {self.input_size} ids need as many outputs"
            )

    def loader(self, split: str, shard: Shard = WHOLE_BATCH) -> Loader:
        """Returns the loader of a split's batches, or of the streams of one process.

        Raises RunError where the processes would not have equally many streams.
        """
        if self.batch_size % shard.world:
            raise RunError(
                f"data.batch_size is {self.batch_size}; with {shard.world} processes it must be a multiple "
                f"of {shard.world}"
            )
        streams = Streams(
            self._ids[split],
            self._size(split),
            len(self.vocabulary),
            self.batch_size,
            self.steps,
            self.seed if split == "train" else None,
            shard,
        )
        return Loader(streams, StreamSampler(len(streams)))

    def _size(self, split: str) -> int:
        return self._ids[split].size

    def _warn_of_unknown(self, split: str) -> None:
        """Logs the number of tokens of a split that the training text lacks, and the most frequent ones."""
        unknown, total = int(self.counts(split)[0]), self._size(split)
        if not unknown:
            return
        named = json.loads((self.folder / f"{split}_unknown.json").read_text(encoding="utf-8"))
        examples = ", ".join(f"{token!r} ({n:,})" for token, n in named[:5])
        log.warning(
            "%s of the %s %s of %s are not in the vocabulary, that of the training text, and become <unk>%s",
            f"{unknown:,}", f"{total:,}", self.tokens, split, f", such as {examples}" if named else "",
        )  # fmt: skip
