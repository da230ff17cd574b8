"""TextStream: from files to ids, with validation, unknown tokens, and a cache that notices changes."""

import logging
from collections import Counter

import numpy as np
import pytest

from torch_rnn.data import tokens
from torch_rnn.data.shakespeare import find_shakespeare
from torch_rnn.data.text import tokenize
from torch_rnn.data.textstream import TextStream
from torch_rnn.data.tokens import IdsOnDisk
from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN

TEXT = "The cat sat on the mat, and the dog did not. It was a warm day!\n" * 20 + "Zebras? Éclairs."


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def stream(tmp_path, path):
    def make(**settings) -> TextStream:
        given = {"path": str(path), "cache": str(tmp_path / "cache"), "batch_size": 2, "steps": 5} | settings
        data = TextStream(**given)
        data.setup()
        return data

    return make


def read(data: TextStream, split: str) -> list[str]:
    ids = data._ids[split]
    ids = (
        ids
        if isinstance(ids, np.ndarray)
        else ids.read(np.array([0]), np.array([ids.size]), np.array([True]))
    )
    return [data.vocabulary.words[i] if i < len(data.vocabulary) else "<unk>" for i in ids]


def test_characters(stream):
    data = stream()
    cut = int(0.9 * len(TEXT))
    assert "".join(read(data, "train")) == TEXT[:cut]
    known = "".join(c if c in TEXT[:cut] else "<unk>" for c in TEXT[cut:])
    assert "".join(read(data, "validation")) == known
    assert data.input_size == len(set(TEXT[:cut])) + 1
    assert data.splits == ("train", "validation")


def test_words(stream):
    data = stream(tokens="words")
    train, validation = read(data, "train"), read(data, "validation")
    everything = tokenize(TEXT)
    assert train == everything[: len(train)]
    known = set(train)
    assert validation == [word if word in known else "<unk>" for word in everything[len(train) :]]
    assert 0.9 * len(TEXT) <= len(TEXT) - len(TEXT[int(0.9 * len(TEXT)) :].split(maxsplit=1)[1])
    assert abs(len(train) - 0.9 * len(everything)) < 5


def test_files_of_their_own(stream, tmp_path):
    for name, text in (("more", "And more of it."), ("held", "it sat on"), ("test", "the test")):
        (tmp_path / name).write_text(text)
    data = stream(
        path=[str(tmp_path / "text.txt"), str(tmp_path / "more")],
        validation=str(tmp_path / "held"),
        test=str(tmp_path / "test"),
        batch_size=1,
    )
    assert "".join(read(data, "train")) == TEXT + "And more of it."
    assert "".join(read(data, "validation")) == "it sat on"
    assert "".join(read(data, "test")) == "the test"
    assert data.facts()["sizes"] == {"train": len(TEXT) + 15, "validation": 9, "test": 8}


def test_unknown_tokens_are_counted_and_named(stream, caplog):
    with caplog.at_level(logging.WARNING):
        data = stream(tokens="words", max_features=8)
    words = tokenize(TEXT)
    train = words[: len(read(data, "train"))]
    kept = {word for word, _ in sorted(Counter(train).items(), key=lambda item: (-item[1], item[0]))[:7]}
    expected = {
        "train": sum(word not in kept for word in train),
        "validation": sum(word not in kept for word in words[len(train) :]),
    }
    assert data.facts()["unknown"] == expected
    assert data.counts().sum() == len(train)
    (warning,) = caplog.messages
    assert warning.startswith(
        f"{expected['validation']:,} of the {len(words) - len(train):,} words of validation"
    )
    assert "'zebras' (1)" in warning
    assert "'?' (1)" in warning


def test_ids_that_do_not_fit_into_memory(stream, monkeypatch):
    expected = [batch.x.tolist() for batch in stream().loader("train")]
    monkeypatch.setattr(tokens, "MAX_IN_MEMORY", 100)
    data = stream()
    assert isinstance(data._ids["train"], IdsOnDisk)
    assert [batch.x.tolist() for batch in data.loader("train")] == expected


def test_a_changed_text_is_read_again(stream, path):
    first = stream()
    assert stream().fingerprint() == first.fingerprint()
    assert stream().folder == first.folder
    path.write_text(TEXT.replace("cat", "cow"), encoding="utf-8")
    assert stream().fingerprint() != first.fingerprint()
    assert stream(max_features=9).fingerprint()["vocabulary"] != first.fingerprint()["vocabulary"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 0.0}, "validation is 0.0; it must be between 0 and 1, or a file"),
        ({"validation": 1.0}, "validation is 1.0; it must be between 0 and 1, or a file"),
        ({"validation": 1e-9, "tokens": "words"}, "validation is 1e-09; that leaves no text for validation"),
        ({"validation": "none.txt"}, "none.txt cannot be read: No such file or directory"),
        ({"test": "none.txt"}, "none.txt cannot be read: No such file or directory"),
        ({"path": "none.txt"}, "none.txt cannot be read: No such file or directory"),
        ({"tokens": "bytes"}, "tokens is 'bytes'; it must be characters or words"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"root": "data"}, "root is data, and path is"),
        ({"batch_size": 64, "steps": 64}, "the train text has 1,166 characters; 64 streams"),
        ({"batch_size": 200, "steps": 1}, "the validation text has 130 characters; 200 str"),
    ],
)  # fmt: skip
def test_bad_input(stream, settings, message):
    with pytest.raises(ValueError, match=message):
        stream(**settings)


@pytest.mark.bad_input
def test_an_rnn_needs_as_many_outputs_as_ids(stream):
    data = stream()
    n = data.input_size
    data.check_compatible(RNN(n, 3, n))
    with pytest.raises(RunError, match=f"output_size is 2; the {n} ids need as many outputs"):
        data.check_compatible(RNN(n, 3, 2))


@pytest.mark.bad_input
def test_processes_need_equally_many_streams(stream):
    from torch_rnn.data.batches import Shard

    with pytest.raises(RunError, match=r"data\.batch_size is 2; with 4 processes it must be a multiple of 4"):
        stream().loader("train", Shard(0, 4))


@pytest.mark.bad_input
def test_another_file_is_not_tiny_shakespeare(tmp_path, monkeypatch):
    path = tmp_path / "shakespeare" / "input.txt"
    path.parent.mkdir()
    path.write_text("To be")
    with pytest.raises(RunError, match="it is not tiny Shakespeare: delete it"):
        find_shakespeare(str(tmp_path))
    path.unlink()
    monkeypatch.setattr("torch_rnn.data.shakespeare.URL", "file:///none")
    with pytest.raises(RunError, match="or train on a text of your own"):
        find_shakespeare(str(tmp_path))
