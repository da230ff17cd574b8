"""The tokenizer, the vocabulary, and the only version of torchtext that is accepted."""

from collections import Counter
from importlib import metadata

import pytest

from torch_rnn.data import text
from torch_rnn.data.text import Vocabulary, tokenize

COUNTS = Counter({"the": 5, "b": 2, "a": 2, "rare": 1})


def test_tokens_are_lower_case_words_and_punctuation():
    assert tokenize("It's <br /> GOOD.") == ["it", "'", "s", "good", "."]
    assert tokenize('""') == []


def test_ids_are_ordered_by_frequency_then_alphabet_and_0_is_unknown():
    vocabulary = Vocabulary.build(COUNTS)
    assert vocabulary.words == ["<unk>", "the", "a", "b", "rare"]
    assert vocabulary.encode(["b", "new", "the"]).tolist() == [3, 0, 1]
    assert vocabulary.encode(["new"]).tolist() == [0]
    assert len(vocabulary) == 5


def test_max_features_includes_the_unknown_word():
    words = ["<unk>", "the", "a"]
    assert Vocabulary.build(COUNTS, max_features=3).words == words
    assert Vocabulary.build(COUNTS).first(3).words == words


@pytest.mark.bad_input
def test_refuses_words_without_the_unknown_word():
    with pytest.raises(ValueError, match="a vocabulary starts with '<unk>'"):
        Vocabulary(["the"])


@pytest.mark.bad_input
@pytest.mark.parametrize("installed", ["0.18.0", "0.7.0", None])
def test_another_version_of_torchtext_is_an_error_that_names_the_fix(monkeypatch, installed):
    def version(name):
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    text._torchtext.cache_clear()
    with pytest.raises(ImportError, match=r"pip install torchtext==0\.6\.0"):
        tokenize("x")
