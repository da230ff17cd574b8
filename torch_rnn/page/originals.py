"""The texts that the tokens of a test split were made from, as people wrote them.

A cache of tokens has no texts, so the source is read again.
"""

import io
from collections.abc import Collection
from contextlib import redirect_stdout

from torch_rnn.data.corpus import Corpus
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.data.text import UNKNOWN, tokenize
from torch_rnn.errors import RunError

MAX_BYTES = 1 << 27
"""Limit on the bytes of a source file: an archive is read from its beginning to its end."""


def original_texts(data: SequenceData, tokens: dict[int, list[str]]) -> dict[int, str]:
    """Returns the original texts of some test texts, by their numbers, as far as they can be had.

    A source that is gone or too large gives none, and a text that has other tokens than the model was tested
    on is left out. A line break, which is "<br />" in IMDB's reviews, becomes the end of a line.

    Args:
        data: The data, set up.
        tokens: The tokens of each of these texts, of which those before the last `maxlen` may be missing.
    """
    found = {}
    for i, text in _documents(data, tokens.keys()).items():
        text = text.replace("<br />", "\n")
        if _has_tokens(text, tokens[i], data.maxlen):
            found[i] = text
    return found


def _has_tokens(text: str, tokens: list[str], maxlen: int) -> bool:
    """Returns whether these are the last tokens of a text; UNKNOWN stands for any one."""
    own = tokenize(text)[-maxlen:]
    return len(own) == len(tokens) and all(b in (a, UNKNOWN) for a, b in zip(own, tokens, strict=True))


def _documents(data: SequenceData, numbers: Collection[int]) -> dict[int, str]:
    """Returns the texts of the test documents with these numbers."""
    found: dict[int, str] = {}
    if not isinstance(data, Corpus) or not numbers:
        return found
    try:
        paths, _, open_splits = data.source()
        if sum(path.stat().st_size for path in paths if path.is_file()) > MAX_BYTES:
            return found
        with redirect_stdout(io.StringIO()):  # the progress of reading an archive
            for i, (document, _) in enumerate(open_splits()["test"].read()):
                if i in numbers:
                    found[i] = document.text
                if len(found) == len(numbers):
                    break
    except (RunError, OSError):
        return {}
    return found
