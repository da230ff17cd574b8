"""IMDB from a folder and from archives in its published layout, and the real data set where it is present."""

import os
import tarfile

import numpy as np
import pytest
import torch
from made_reviews import FILES, write_archive, write_folder

from torch_rnn.data import corpus, imdb
from torch_rnn.data.imdb import IMDB, find_reviews, read_reviews
from torch_rnn.data.tokens import grouped_split, read_tokens
from torch_rnn.errors import RunError


def prepared(tmp_path, root="root", **settings):
    data = IMDB(root=str(tmp_path / root), cache=str(tmp_path / "cache"), **{"max_features": 50, **settings})
    data.prepare_data()
    data.setup()
    return data


def all_reviews(data):
    """Returns the ids and the label of each review, by split."""
    return {
        split: [(sequences[i].tolist(), int(label)) for i, label in enumerate(labels)]
        for split, (sequences, labels) in data.splits.items()
    }


@pytest.mark.parametrize("archive", ["aclImdb.tar.xz", "aclImdb_v1.tar.gz", "aclImdb.tar.bz2"])
def test_archive_and_folder_are_the_same(tmp_path, archive):
    write_folder(tmp_path / "folder")
    write_archive(tmp_path / "root" / archive, shuffle=True)
    assert all_reviews(prepared(tmp_path)) == all_reviews(prepared(tmp_path, "folder"))


def test_reviews_are_in_the_order_of_their_names_with_their_films(tmp_path):
    write_archive(tmp_path / "root" / "aclImdb.tar.gz", shuffle=True)
    splits = read_reviews(find_reviews(tmp_path / "root"))
    for split, source in splits.items():
        names = sorted(name for name in FILES if name.startswith(split) and name.count("/") == 2)
        assert [document.text for document in source.documents] == [FILES[name].decode() for name in names]
        for name, document in zip(names, source.documents, strict=True):
            number = int(name.split("/")[2].split("_")[0])
            assert (document.label, document.group) == (str(int("/pos/" in name)), f"film{number // 3}")
    assert {split: len(source.documents) for split, source in splits.items()} == {"train": 24, "test": 12}


def test_settings_cut_the_vocabulary_and_the_reviews(tmp_path):
    write_folder(tmp_path / "root")
    whole, cut = prepared(tmp_path), prepared(tmp_path, max_features=5, maxlen=4)
    assert len(cut.vocabulary) == cut.input_size == 5
    for (ids, _), (cut_ids, _) in zip(all_reviews(whole)["train"], all_reviews(cut)["train"], strict=True):
        assert cut_ids == [i if i < 5 else 0 for i in ids[-4:]]


def test_validation_holds_out_whole_films(tmp_path):
    write_folder(tmp_path / "root")
    data = prepared(tmp_path, validation=0.3)
    keys = read_tokens(data.tokens, "train").keys
    fitted, held_out = grouped_split(keys, 0.3)
    assert len(data.splits["validation"][1]) == len(held_out) >= 0.3 * len(keys)
    assert not set(keys[fitted]) & set(keys[held_out])
    assert len(set(keys)) == 4  # films


def test_an_incomplete_data_set_is_reported(tmp_path, caplog):
    write_folder(tmp_path / "root")
    with caplog.at_level("INFO"):
        prepared(tmp_path)
    assert "24 training and 12 test reviews, 25,000 and 25,000 are published" in caplog.text


def test_the_root_may_be_the_archive_or_the_folder_itself(tmp_path):
    archive = tmp_path / "root" / "aclImdb_v1.tar.gz"
    write_archive(archive)
    write_folder(tmp_path / "folder")
    (tmp_path / "root" / "aclImdb_v1.tar.gz.sha256").touch()
    for root in ("root", "root/aclImdb_v1.tar.gz", "folder/aclImdb"):
        assert all_reviews(prepared(tmp_path, root)) == all_reviews(prepared(tmp_path, "folder"))


def test_word_dropout_is_applied_in_training_alone(tmp_path):
    write_folder(tmp_path / "root")
    data = prepared(tmp_path, word_dropout=0.9)
    for split, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader())):
        lengths = torch.cat([batch.lengths for batch in loader]).tolist()
        assert sorted(lengths) == sorted(data.splits[split][0].lengths)
    n_words = sum(int(batch.lengths.sum()) for batch in data.train_dataloader())
    assert n_words < data.splits["train"][0].lengths.sum() / 3


def test_an_empty_review_has_length_0(tmp_path):
    write_folder(tmp_path / "root", {**FILES, "train/pos/0_9.txt": b'""'})
    data = prepared(tmp_path)
    lengths = np.concatenate([data.splits[split][0].lengths for split in ("train", "validation")])
    assert 0 in lengths
    assert sum(len(batch.labels) for batch in data.train_dataloader()) == len(data.splits["train"][1])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/pos/0_9.txt": b"\xff\xfe"}, r"0_9\.txt is not UTF-8"),
        ({"train/urls_pos.txt": b"film0\n"}, r"train/urls_pos\.txt does not name the film of train/pos/"),
        ({name: None for name in FILES if name.startswith("test/")}, "holds no reviews under test/"),
    ],
)
def test_broken_data_is_one_error_that_names_the_file(tmp_path, files, message):
    write_folder(tmp_path / "root", {**FILES, **files})
    with pytest.raises(RunError, match=message):
        prepared(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("contents", [b"<html>404</html>", b"", "truncated"])
def test_a_damaged_archive_is_one_error_that_names_it(tmp_path, contents):
    archive = tmp_path / "root" / "aclImdb_v1.tar.gz"
    write_archive(archive)
    good = archive.read_bytes()
    archive.write_bytes(good[: len(good) // 2] if contents == "truncated" else contents)
    with pytest.raises(RunError, match=r"aclImdb_v1\.tar\.gz is damaged or not an archive"):
        prepared(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "kind", "size", "message"),
    [
        ("../../evil.txt", tarfile.REGTYPE, 0, r"evil\.txt leaves its folder"),
        ("/tmp/evil.txt", tarfile.REGTYPE, 0, r"evil\.txt leaves its folder"),
        ("aclImdb/train/pos/99_9.txt", tarfile.SYMTYPE, 0, r"99_9\.txt is a link or a device"),
        ("aclImdb/train/pos/99_9.txt", tarfile.LNKTYPE, 0, r"99_9\.txt is a link or a device"),
        ("aclImdb/null", tarfile.CHRTYPE, 0, "aclImdb/null is a link or a device"),
        ("aclImdb/pipe", tarfile.FIFOTYPE, 0, "aclImdb/pipe is a link or a device"),
        (
            "aclImdb/train/pos/99_9.txt",
            tarfile.REGTYPE,
            1 << 25,
            "has 33,554,432 bytes; no review is so long",
        ),
        (
            "aclImdb/imdb.vocab",
            tarfile.REGTYPE,
            10 << 30,
            r"imdb\.vocab ends at byte 10,737,\d+,\d+; the whole data set has fewer than 4,294,967,296",
        ),
    ],
)
def test_a_hostile_archive_writes_nothing_and_is_refused(tmp_path, name, kind, size, message):
    archive = tmp_path / "root" / "aclImdb.tar.gz"
    archive.parent.mkdir()
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, "/etc/passwd", size
    with tarfile.open(archive, "w:gz") as tar:
        tar.fileobj.write(member.tobuf())
    with pytest.raises(RunError, match=message):
        prepared(tmp_path)
    assert not list(tmp_path.rglob("*.txt"))
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


@pytest.mark.bad_input
def test_no_data_and_no_network_names_the_alternatives(tmp_path, monkeypatch):
    monkeypatch.setattr(imdb, "URL", "http://127.0.0.1:9/aclImdb_v1.tar.gz")
    with pytest.raises(RunError, match=r"--data\.root, or train without: --config configs/quickstart\.yaml"):
        prepared(tmp_path)
    assert not (tmp_path / "root").exists()


@pytest.mark.bad_input
def test_refuses_bad_settings():
    for settings, message in (
        ({"validation": 1.0}, "validation is 1.0; it must be between 0 and 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"word_dropout": 1.0}, "word_dropout is 1.0"),
        ({"maxlen": 0}, "maxlen is 0"),
        ({"max_features": 0}, "max_features is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            IMDB(**settings)


@pytest.mark.imdb
def test_the_real_reviews(tmp_path, monkeypatch):
    settings = {"root": os.environ["TORCH_RNN_DATA"], "cache": str(tmp_path), "max_features": 10000}
    first = IMDB(**settings)
    first.prepare_data()
    monkeypatch.setattr(corpus, "write_tokens", None)  # the second start reads the cache
    data = IMDB(**settings)
    data.prepare_data()
    data.setup()
    sizes = {split: len(labels) for split, (_, labels) in data.splits.items()}
    lengths = np.concatenate([data.splits[split][0].lengths for split in ("train", "validation")])
    assert sizes["train"] + sizes["validation"] == 25_000
    assert 2_500 <= sizes["validation"] < 2_600
    assert len(data.vocabulary) == 10_000
    assert data.vocabulary.words[:4] == ["<unk>", "the", ".", ","]
    assert (lengths.min(), int(np.median(lengths)), lengths.max()) == (11, 202, 500)
