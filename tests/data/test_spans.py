"""Spans of text files: what is the training text, and pieces that join to the whole text."""

import pytest

from torch_rnn.data import spans
from torch_rnn.data.documents import START
from torch_rnn.data.spans import TextPieces, divided, spans_of
from torch_rnn.data.text import tokenize
from torch_rnn.errors import RunError

TEXT = "To be, or not to be:\nÄ que stión — of 🎭 ends.\r\n\n" * 7 + "The rest is silence."


def text_of(parts) -> str:
    return "".join(document.text for document, _ in TextPieces(parts).read())


@pytest.fixture
def files(tmp_path):
    """The text in three files, the second with a byte order mark."""
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path, part, mark in zip(
        paths, (TEXT[:100], TEXT[100:101], TEXT[101:]), ("", "\ufeff", ""), strict=True
    ):
        path.write_bytes((mark + part).encode())
    return paths


@pytest.mark.parametrize("piece", [4, 5, 7, 64, 1 << 20])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.71, 0.9, 1.0])
def test_the_first_part_is_counted_in_characters(files, piece, part, monkeypatch):
    monkeypatch.setattr(spans, "PIECE", piece)
    first, rest = divided(spans_of(files), part, at_space=False)
    assert text_of(first) == TEXT[: int(part * len(TEXT))]
    assert text_of(first) + text_of(rest) == TEXT


@pytest.mark.parametrize("piece", [4, 64, 1 << 20])
def test_a_boundary_at_white_space_cuts_no_word(files, piece, monkeypatch):
    monkeypatch.setattr(spans, "PIECE", piece)
    for part in (0.1, 0.5, 0.503, 0.9):
        first, rest = divided(spans_of(files), part, at_space=True)
        assert text_of(first) + text_of(rest) == TEXT
        assert text_of(first)[-1].isspace()
        assert len(text_of(first)) >= int(part * len(TEXT))
        assert tokenize(text_of(first)) + tokenize(text_of(rest)) == tokenize(TEXT)


def test_pieces_can_be_read_from_each_position(files, monkeypatch):
    monkeypatch.setattr(spans, "PIECE", 32)
    source = TextPieces(spans_of(files))
    everything = list(source.read())
    assert len(everything) > 10
    position = START
    for number, (document, after) in enumerate(everything):
        assert next(source.read(position)) == (document, after)
        assert [d.text for d, _ in source.read(position)] == [d.text for d, _ in everything[number:]]
        position = after
    assert source.bytes_before(position) == source.size
    assert list(source.read(position)) == []


def test_pieces_end_after_lines_or_words(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "PIECE", 10)
    path = tmp_path / "text.txt"
    for text, ends in (("ab cd\nefgh ijkl mnop", "\n"), ("ab cd efgh ijkl mnop", " "), ("é" * 20, "é")):
        path.write_text(text, encoding="utf-8")
        pieces = [document.text for document, _ in TextPieces(spans_of([path])).read()]
        assert "".join(pieces) == text
        assert pieces[0][-1] == ends


@pytest.mark.bad_input
def test_files_that_cannot_be_text(tmp_path):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_bytes(b"\xef\xbb\xbf")
    latin.write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(RunError, match=r"empty\.txt is empty; it must have text"):
        spans_of([empty])
    with pytest.raises(RunError, match="is a folder; name its text files"):
        spans_of([tmp_path])
    with pytest.raises(RunError, match=r"nothing\.txt cannot be read: No such file"):
        spans_of([tmp_path / "nothing.txt"])
    with pytest.raises(RunError, match=r"latin\.txt is not UTF-8"):
        list(TextPieces(spans_of([latin])).read())
