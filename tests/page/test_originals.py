"""The texts that the page offers are the original ones, where they can be had and have the tested tokens."""

import csv

import pytest
from made_runs import make_run
from test_page import data_of

from torch_rnn.data.text import tokenize
from torch_rnn.data.textfiles import TextFiles
from torch_rnn.page import originals, reading, write_page
from torch_rnn.page.originals import original_texts
from torch_rnn.page.reading import words_of_test

TEXTS = [f"It's film No. {i}:<br /><br />“GOOD”, or <b>bad</b>? \N{SNOWMAN}" for i in range(12)]


@pytest.fixture
def data(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.csv", TEXTS)
    made = TextFiles(
        str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), cache=str(tmp_path / "cache"), maxlen=8
    )
    made.setup()
    return made


def write(path, texts):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, i % 2) for i, text in enumerate(texts))])


def tokens_of(data, rows):
    words = words_of_test(data)
    return {i: words(i) for i in rows}


def test_the_page_offers_the_texts_as_they_were_written(data, tmp_path, monkeypatch):
    written = {text.replace("<br />", "\n") for text in TEXTS}
    made = make_run(tmp_path / "run", data)
    texts = data_of(write_page(made.folder, data))["reading"]["texts"]
    assert len({text["text"] for text in texts}) > 8
    assert {text["text"] for text in texts} <= written
    monkeypatch.setattr(reading, "MAX_WEIGHTS", 100)
    for text in data_of(write_page(made.folder, data))["reading"]["texts"]:
        found = text["reading"]
        assert text["text"] in written
        assert found["skipped"] + found["tokens"] == tokenize(text["text"])
        assert len(found["tokens"]) == 8


def test_an_unknown_word_does_not_hide_the_text(data, tmp_path):
    unknown = [*TEXTS[:4], "A film of unheard words. Good!"]
    write(tmp_path / "test.csv", unknown)
    again = TextFiles(
        str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), cache=str(tmp_path / "cache"), maxlen=8
    )
    again.setup()
    tokens = tokens_of(again, (1, 4))
    assert "<unk>" in tokens[4]
    assert original_texts(again, tokens)[4] == unknown[4]


def test_a_text_with_other_tokens_is_not_shown(data, tmp_path):
    tokens = tokens_of(data, (1, 4, 7))
    assert original_texts(data, tokens).keys() == {1, 4, 7}
    changed = list(TEXTS)
    changed[4] = "Another text."
    write(tmp_path / "test.csv", changed)
    assert original_texts(data, tokens).keys() == {1, 7}


def test_without_its_source_a_page_has_the_words(data, tmp_path, monkeypatch):
    tokens, made = tokens_of(data, (1,)), make_run(tmp_path / "run", data)
    monkeypatch.setattr(originals, "MAX_BYTES", 10)
    assert original_texts(data, tokens) == {}
    monkeypatch.undo()
    (tmp_path / "test.csv").unlink()
    assert original_texts(data, tokens) == {}
    texts = data_of(write_page(made.folder, data))["reading"]["texts"]
    assert all(tokenize(text["text"]) == text["text"].split() for text in texts)
