"""IMDBStream: which reviews a language model reads, and that its ids are those of a classifier."""

from collections import Counter

import pytest
from made_reviews import reviews, write_archive, write_folder

from torch_rnn.data import IMDB, IMDBStream
from torch_rnn.data.text import tokenize

FILES = reviews(30, 10)
UNLABELLED = {
    "train/unsup/1_0.txt": b"zebras liked the film a lot",
    "train/unsup/2_0.txt": FILES["train/neg/0_0.txt"],  # equal to a labelled review
    "train/urls_unsup.txt": b"another\nanother\nanother\n",
}


@pytest.fixture
def make(tmp_path):
    def make(files=FILES, **settings) -> IMDBStream:
        root = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        write_folder(root, files)
        write_archive(root / "aclImdb-unsup.tar.gz", UNLABELLED)
        given = {"cache": str(tmp_path / "cache"), "batch_size": 1, "steps": 4, "max_features": 500}
        data = IMDBStream(str(root), **given | settings)
        data.setup()
        return data

    return make


def words(data: IMDBStream, split: str) -> Counter:
    return Counter(data.vocabulary.words[i] for i in data._ids[split])


def test_it_reads_the_training_and_unlabelled_reviews(make):
    data = make()
    train = Counter(word for name, text in FILES.items() if name.startswith(("train/neg", "train/pos"))
                    for word in tokenize(text.decode()))  # fmt: skip
    unlabelled = Counter(tokenize("zebras liked the film a lot never read"))  # `write_archive` adds one
    known = Counter()
    for word, n in unlabelled.items():
        known[word if word in train else "<unk>"] += n
    assert words(data, "train") + words(data, "validation") == train + known
    assert words(data, "validation").total() > 0
    labelled_alone = make(unlabelled=False)
    assert words(labelled_alone, "train") + words(labelled_alone, "validation") == train
    assert labelled_alone.fingerprint() != data.fingerprint()


def test_no_test_review_is_read(make):
    other = {name: b"never read" if name.startswith("test/neg") else text for name, text in FILES.items()}
    assert make(other).fingerprint() == make().fingerprint()


def test_ids_and_held_out_films_are_those_of_the_classifier(make, tmp_path):
    data = make()
    classifier = IMDB(data.root, cache=str(tmp_path / "cache"), max_features=500)
    classifier.setup()
    assert classifier.vocabulary.words == data.vocabulary.words
    sequences, _ = classifier.splits["validation"]
    assert sorted(data._ids["validation"]) == sorted(i for row in sequences for i in row)
    counts = data.counts()
    assert counts.sum() == data.facts()["sizes"]["train"]
    assert counts[0] == data.facts()["unknown"]["train"] > 0
