"""Spans of text files: which bytes are the training text, and a source that reads them in pieces."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torch_rnn.data.documents import START, Document, Position, reading
from torch_rnn.errors import RunError

PIECE = 1 << 20
"""Bytes of text in memory at a time."""
BOM = b"\xef\xbb\xbf"


class Span(NamedTuple):
    """The bytes of a file from `begin` up to `end`, which are a boundary between two characters."""

    path: Path
    begin: int
    end: int


def spans_of(paths: Sequence[Path]) -> list[Span]:
    """Returns the whole files, without the byte order mark that some begin with.

    Raises:
        RunError: A file is missing or empty. The message names it.
    """
    spans = []
    for path in paths:
        if path.is_dir():
            raise RunError(f"{path} is a folder; name its text files")
        with reading(path), open(path, "rb") as file:
            begin = len(BOM) if file.read(len(BOM)) == BOM else 0
            end = path.stat().st_size
        if begin == end:
            raise RunError(f"{path} is empty; it must have text")
        spans.append(Span(path, begin, end))
    return spans


def divided(spans: Sequence[Span], part: float, at_space: bool) -> tuple[list[Span], list[Span]]:
    """Returns the spans of the first `part` of the characters, rounded down, and those of the rest.

    Args:
        at_space: Moves the boundary on to the next ASCII white space, so that no word is cut.
    """
    counts = [sum(_starts(block).sum() for _, block in _blocks(span)) for span in spans]
    wanted, number = int(part * sum(counts)), 0
    while wanted > counts[number]:
        wanted -= counts[number]
        number += 1
    span = spans[number]
    cut = _offset(span, wanted)
    cut = _next_space(span, cut) if at_space else cut
    before, after = span._replace(end=cut), span._replace(begin=cut)
    first = [*spans[:number], *([before] if before.begin < before.end else [])]
    return first, [*([after] if after.begin < after.end else []), *spans[number + 1 :]]


class TextPieces:
    """Spans of text as documents of at most PIECE bytes, which end after a line where they can.

    Otherwise they end after white space, or, in a text without any, between two characters.
    """

    def __init__(self, spans: Sequence[Span]):
        self.spans = list(spans)
        self.size = sum(span.end - span.begin for span in spans)

    def bytes_before(self, position: Position) -> int:
        return position[0]

    def read(self, start: Position = START) -> Iterator[tuple[Document, Position]]:
        """Yields the pieces from `start` on, each with the position after it.

        Raises:
            RunError: A file is not UTF-8, or cannot be read. The message names it.
        """
        before, place = 0, start[0]
        for span in self.spans:
            begin = span.begin + max(place - before, 0)
            before += span.end - span.begin
            while begin < span.end:
                with reading(span.path):
                    piece = _piece(span, begin)
                    text = piece.decode("utf-8")
                begin += len(piece)
                yield Document(text, "", ""), (before - (span.end - begin), 0)


def _piece(span: Span, begin: int) -> bytes:
    with open(span.path, "rb") as file:
        file.seek(begin)
        block = file.read(min(PIECE, span.end - begin))
    if begin + len(block) >= span.end or not block:
        return block
    for separator in (b"\n", b" "):
        if (end := block.rfind(separator)) >= 0:
            return block[: end + 1]
    start_of_last = max(np.flatnonzero(_starts(block[-4:])), default=0)
    return block[: len(block) - len(block[-4:]) + int(start_of_last)] or block


def _blocks(span: Span) -> Iterator[tuple[int, bytes]]:
    """Yields the bytes of a span in blocks, each with its offset in the file."""
    with reading(span.path), open(span.path, "rb") as file:
        file.seek(span.begin)
        offset = span.begin
        while block := file.read(min(PIECE, span.end - offset)):
            yield offset, block
            offset += len(block)


def _starts(block: bytes) -> np.ndarray:
    """Returns for each byte whether a UTF-8 character begins there."""
    return np.frombuffer(block, np.uint8) & 0xC0 != 0x80


def _offset(span: Span, characters: int) -> int:
    """Returns the offset in the file after so many characters of the span."""
    for offset, block in _blocks(span):
        starts = np.flatnonzero(_starts(block))
        if characters < len(starts):
            return offset + int(starts[characters])
        characters -= len(starts)
    return span.end


def _next_space(span: Span, offset: int) -> int:
    """Returns the offset after the first white space at or after `offset`; the span's end without any."""
    for at, block in _blocks(span._replace(begin=offset)):
        found = [place for space in b" \n\t\r" if (place := block.find(space)) >= 0]
        if found:
            return at + min(found) + 1
    return span.end
