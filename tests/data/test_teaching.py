"""Training with a teacher's labels of unlabelled texts, and with its evidence of each step."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_reviews import reviews, write_archive
from teaching_trials import fitted_on, text_rows, texts
from test_formats import write_folder, write_lines, write_parquet, write_table

from torch_rnn.data import teaching, tokens
from torch_rnn.data.cache import cached
from torch_rnn.data.imdb import IMDB
from torch_rnn.data.ngrams import NGrams
from torch_rnn.data.textfiles import TextFiles
from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN


def test_unlabelled_texts_get_the_teachers_labels(files):
    plain = TextFiles(str(files / "train.csv"), str(files / "test.csv"), cache=str(files / "cache"))
    plain.setup()
    assert plain.facts() == {"labelled": 90, "unlabelled": 0, "left_out": {}, "teacher": None}
    data = texts(files)
    facts = data.facts()
    left_out = facts.pop("left_out")
    assert left_out["held-out text"] + left_out["labelled text"] == sum(left_out.values()) == 3
    teacher = facts.pop("teacher")
    assert facts == {"labelled": 90, "unlabelled": 33}
    assert (teacher["name"], teacher["labels"]) == ("ngrams", 30)
    sequences, labels = data.splits["train"]
    assert labels.shape == (120, 2)
    for i in range(90):  # gold labels stay
        assert sequences[i].tolist() == plain.splits["train"][0][i].tolist()
        assert labels[i].tolist() == np.eye(2)[plain.splits["train"][1][i]].tolist()
    model = NGrams.load(data.lessons.ngrams / "ngrams.npz")
    more = tokens.read_tokens(data.more_tokens, tokens.UNLABELLED)
    np.testing.assert_allclose(labels[90:], model.label(more)[3:], atol=1e-7)
    for split in ("validation", "test"):
        held_out, right = data.splits[split]
        assert held_out.lengths.tolist() == plain.splits[split][0].lengths.tolist()
        offsets = np.concatenate([[0], np.cumsum(held_out.lengths)])
        p = model.probabilities(np.concatenate([*held_out]), offsets)
        assert teacher[split] == (p.argmax(1) == right).mean()


def test_the_teacher_vectors_labels_texts_and_pieces_and_gives_the_evidence(files):
    data = texts(files, teacher="vectors", pieces=4, evidence=1.0)
    facts = data.facts()
    assert (facts["teacher"]["name"], facts["evidence"]["name"]) == ("vectors", "vectors")
    train, more = (
        tokens.read_tokens(folder, name)
        for folder, name in ((data.tokens, "train"), (data.more_tokens, tokens.UNLABELLED))
    )
    rows, held_out = tokens.grouped_split(train.keys, data.validation)
    first = NGrams.fit(train, rows, len(teaching.words(data.tokens)), 2)
    model = first.taught_with_vectors(train, rows, more, data.lessons.labels.index)
    saved = NGrams.load(data.lessons.ngrams / "ngrams.npz")
    np.testing.assert_allclose(saved.weights, model.weights, atol=1e-6)
    assert not np.allclose(model.weights, first.taught(train, rows, more, data.lessons.labels.index).weights)
    found = data.splits["train"][1][90:120]
    np.testing.assert_allclose(found, model.label(more)[data.lessons.labels.index], atol=1e-6)
    pieces = data.lessons.pieces_labels[1]
    of_pieces = model.label(tokens.cut(more, 4)[0])
    np.testing.assert_allclose(pieces.probabilities, of_pieces[pieces.index], atol=1e-6)
    test = tokens.read_tokens(data.tokens, "test")
    for split, part, numbers in (("test", test, np.arange(20)), ("validation", train, held_out)):
        accuracy = (model.label(part).argmax(1) == part.labels)[numbers].mean()
        assert facts["teacher"][split] == facts["evidence"][split] == accuracy


def test_unlabelled_texts_beyond_memory_are_labelled_too(files, monkeypatch):
    whole = texts(files, teacher="vectors")
    train, more = (
        tokens.read_tokens(folder, name)
        for folder, name in ((whole.tokens, "train"), (whole.more_tokens, tokens.UNLABELLED))
    )
    rows, _ = tokens.grouped_split(train.keys, whole.validation)
    labelled = int(np.diff(train.offsets)[rows].sum())
    monkeypatch.setattr("torch_rnn.data.ngrams.MAX_TOKENS", labelled + more.offsets[-1] // 2)
    data = texts(files, teacher="vectors", cache=str(files / "other"))
    model = NGrams.load(data.lessons.ngrams / "ngrams.npz")
    assert not np.allclose(model.weights, NGrams.load(whole.lessons.ngrams / "ngrams.npz").weights)
    assert len(data.lessons.labels.index) == 30
    found = data.splits["train"][1][90:]
    np.testing.assert_allclose(found, model.label(more)[data.lessons.labels.index], atol=1e-6)


def test_the_teacher_does_not_see_what_validation_holds_out(files):
    data = texts(files)
    train = tokens.read_tokens(data.tokens, "train")
    fitted, _ = tokens.grouped_split(train.keys, 0.1)
    expected = fitted_on(data, fitted)
    model = NGrams.load(data.lessons.ngrams / "ngrams.npz")
    assert np.array_equal(model.keys, expected.keys)
    assert np.array_equal(model.weights, expected.weights)


def test_temperature_confidence_and_weight(files):
    p = texts(files).splits["train"][1][90:].astype(float)
    sharp = p**2 / (p**2).sum(1, keepdims=True)
    np.testing.assert_allclose(texts(files, temperature=0.5).splits["train"][1][90:], sharp, atol=1e-6)
    hard = texts(files, temperature=0.0, teacher_weight=0.25).splits["train"][1]
    assert np.array_equal(hard[90:], 0.25 * np.eye(2)[p.argmax(1)])
    assert (hard[:90].sum(1) == 1).all()
    level = float(np.median(p.max(1)))
    sure = texts(files, confidence=level)
    assert np.array_equal(sure.splits["train"][1][90:], p[p.max(1) >= level].astype(np.float32))
    assert sure.facts()["teacher"]["labels"] == (p.max(1) >= level).sum() < 30


@pytest.mark.parametrize("teacher", [None, "ngrams", "vectors"])
def test_evidence_is_that_of_the_teacher_for_the_words_that_are_left(files, teacher):
    more = {"unlabelled": None, "teacher": None} if teacher is None else {"teacher": teacher}
    data = texts(files, evidence=2.0, word_dropout=0.3, max_features=20, **more)
    model = NGrams.load(data.lessons.ngrams / "ngrams.npz")
    facts = data.facts()["evidence"]
    assert facts == {"name": teacher or "ngrams", **teaching.scores(data.lessons.ngrams, data.tokens)}
    loader, whole = data.train_dataloader(), texts(files, max_features=1 << 20, **more, word_dropout=0.3)
    for batch, every_word in zip(loader, whole.train_dataloader(), strict=True):
        lengths = batch.lengths.numpy()
        assert batch.x.max() < 20 < every_word.x.max()
        ids = np.concatenate([row[:n] for row, n in zip(every_word.x.numpy(), lengths, strict=True)])
        expected = model.evidence(ids, np.concatenate([[0], np.cumsum(lengths)]))
        found = np.concatenate([row[:n] for row, n in zip(batch.evidence.numpy(), lengths, strict=True)])
        np.testing.assert_array_equal(found, expected)
    assert next(iter(data.val_dataloader())).evidence is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rnn", "message"),
    [
        ({"readout": "max"}, "readout is max, and data.evidence 2.0; with evidence it must be last or mean"),
        ({"output_size": 2}, "output_size is 2, and data.evidence 2.0; with evidence it must be 1"),
    ],
)
def test_evidence_is_refused_for_an_rnn_without_outputs_to_compare(files, rnn, message):
    data = texts(files, evidence=2.0)
    with pytest.raises(RunError, match=message):
        data.check_compatible(RNN(9, 4, **({"output_size": 1} | rnn)))


def test_each_stage_is_made_once(files, monkeypatch):
    first = texts(files, distillation=0.5, pieces=4)
    for name in ("write_unlabelled", "NGrams"):
        monkeypatch.setattr(teaching, name, None)
    changed = {"temperature": 0.5, "confidence": 0.6, "distillation": 0.3}  # they need no new labels
    again = texts(files, pieces=4, **changed)
    assert again.labels == first.labels
    monkeypatch.setattr(teaching, "cached", None)
    first.prepare_data()  # looks for nothing in the cache again


FITTED_ON = {"tokens": Path("a"), "validation": 0.1, "more": teaching.Unlabelled(Path("b"), None)}


@pytest.fixture
def folder_of(tmp_path, monkeypatch):
    """folder_of(teacher, **arguments) returns the folder of `fitted`, but fits nothing."""

    def make_empty(cache, name, recipe, make):
        return cached(cache, name, recipe, lambda folder, work: None)

    monkeypatch.setattr(teaching, "cached", make_empty)
    return lambda teacher, **arguments: teaching.fitted(tmp_path, name=teacher, **FITTED_ON | arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": Path("c")},
        {"validation": 0.2},
        {"more": None},
        {"more": teaching.Unlabelled(Path("c"), None)},
        {"more": teaching.Unlabelled(Path("b"), "known")},
    ],
)
def test_a_teacher_of_other_texts_has_another_folder(folder_of, change):
    assert folder_of("ngrams") == folder_of("ngrams") != folder_of("ngrams", **change)


@pytest.mark.parametrize(
    ("teacher", "constant", "is_other"),
    [
        *(("ngrams", name, True) for name in ("MIN_DOCUMENTS", "ROUNDS", "SURE", "FORMAT")),
        ("ngrams", "INVERSE_PENALTY", True),
        ("vectors", "RECIPE", True),
        ("ngrams", "RECIPE", False),
    ],
)
def test_a_teacher_with_another_recipe_has_another_folder(
    folder_of, monkeypatch, teacher, constant, is_other
):
    before = folder_of(teacher)
    monkeypatch.setattr(teaching, constant, 7)
    assert (folder_of(teacher) != before) == is_other


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_file_of_probabilities_is_a_teacher(files, kind):
    rows = text_rows(30, 3)
    p = np.random.default_rng(0).random(30).round(3)
    if kind == ".csv":
        lines = [f'"{text}",{q},{1 - q}' for (text, _), q in zip(rows, p, strict=True)]
        (files / "soft.csv").write_text("\n".join(["text,p_good,p_bad", *lines]))
    elif kind == ".jsonl":
        objects = [
            {"text": t, "p_good": q, "p_bad": 1 - q} for (t, _), q in zip(rows, p.tolist(), strict=True)
        ]
        (files / "soft.jsonl").write_text("\n".join(map(json.dumps, objects)))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = {"text": [text for text, _ in rows], "p_good": p, "p_bad": 1 - p}
        pq.write_table(pa.table(table), files / "soft.parquet", row_group_size=7)
    data = texts(files, teacher=str(files / f"soft{kind}"))
    np.testing.assert_allclose(data.splits["train"][1][90:], np.stack([1 - p, p], 1), atol=1e-6)
    teacher = {"name": str(files / f"soft{kind}"), "validation": None, "test": None, "labels": 30}
    assert data.facts()["teacher"] == teacher


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ""])
def test_unlabelled_texts_in_every_format(files, kind):
    write = {".jsonl": write_lines, ".parquet": write_parquet, "": write_folder}[kind]
    write(files / f"other{kind}", text_rows(30, 3))
    if kind == "":
        (files / "other" / "loose.txt").write_text("a good film")
    assert texts(files, f"other{kind}").facts()["teacher"]["labels"] == 30 + (kind == "")


@pytest.mark.parametrize("pieces", [0, 4])
def test_ids_of_two_files_are_those_of_one_array(files, monkeypatch, pieces):
    whole = texts(files, pieces=pieces)
    for limit in (0, 4 * whole.splits["train"][0].flat.size // 2):  # both on disk, then the first one alone
        monkeypatch.setattr(tokens, "MAX_IN_MEMORY", limit)
        data = texts(files, pieces=pieces)
        sequences, expected = data.splits["train"][0], whole.splits["train"][0]
        assert isinstance(sequences.flat, tokens.JoinedIds)
        assert [row.tolist() for row in sequences] == [row.tolist() for row in expected]
        for batch, same in zip(data.train_dataloader(), whole.train_dataloader(), strict=True):
            assert np.array_equal(batch.x, same.x)
        assert data.lessons.ngrams == whole.lessons.ngrams
        assert data.facts() == whole.facts()


def imdb(folder, files, unlabelled, films=None, **settings):
    write_archive(folder / "aclImdb.tar.gz", files)
    more = {f"train/unsup/{i}_0.txt": text.encode() for i, text in enumerate(unlabelled)}
    if films:
        more["train/urls_unsup.txt"] = "\n".join(films).encode()
    write_archive(folder / "aclImdb-unsup.tar.gz", more)
    settings = {"validation": 0.2, "teacher": "ngrams", **settings}
    data = IMDB(root=str(folder), cache=str(folder / "cache"), **settings)
    data.setup()
    return data


def test_unlabelled_reviews_of_held_out_films_are_left_out(tmp_path, caplog):
    files = reviews(30, 6)
    unlabelled = [text for text, _ in text_rows(30, 5)]
    films = [f"film{i // 3}" for i in range(30)]  # the films of the labelled reviews
    data = imdb(tmp_path / "films", files, unlabelled, films)
    train = tokens.read_tokens(data.tokens, "train")
    held_out = set(train.keys[tokens.grouped_split(train.keys, 0.2)[1]].tolist())
    n = sum(tokens.group_key(film) in held_out for film in films)
    assert n >= 3
    assert data.facts()["left_out"] == {"held-out text": 0, "labelled text": 0, "held-out film": n}
    assert data.facts()["teacher"]["labels"] == 30 - n
    assert "does not name the films" not in caplog.text
    equal = [files[f"train/pos/{i}_{i % 10}.txt"].decode() for i in range(30)]
    data = imdb(tmp_path / "texts", files, unlabelled + equal)
    left_out = data.facts()["left_out"]
    assert left_out["held-out film"] is None
    assert left_out["held-out text"] + left_out["labelled text"] == 30
    assert left_out["held-out text"] >= 3
    assert (
        "does not name the films of the unlabelled reviews (train/urls_unsup.txt is missing)" in caplog.text
    )


def test_the_published_folder_has_the_unlabelled_reviews_too(tmp_path):
    from made_reviews import write_folder

    more = {"train/unsup/0_0.txt": b"a good film", "train/urls_unsup.txt": b"film0\n"}
    write_folder(tmp_path, reviews(30, 6) | more)
    for root in (tmp_path, tmp_path / "aclImdb"):
        data = IMDB(root=str(root), cache=str(tmp_path / "cache"), teacher="ngrams")
        data.prepare_data()
        assert data.lessons.labels.texts == 1
    file = write_table(tmp_path / "more.csv", text_rows(9, 4))
    data = IMDB(root=str(tmp_path), cache=str(tmp_path / "cache"), teacher="ngrams", unlabelled=str(file))
    data.prepare_data()
    assert data.lessons.labels.texts == 9
    assert data.lessons.labels.left_out["held-out film"] is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"unlabelled": "x.csv"},
            "unlabelled is x.csv, and there is no teacher; set teacher to",
        ),
        ({"temperature": 0.5}, "temperature is 0.5, and there is no teacher"),
        ({"confidence": 0.5}, "confidence is 0.5, and there is no teacher"),
        ({"teacher_weight": 0.5}, "teacher_weight is 0.5, and there is no teacher"),
        ({"distillation": 0.5, "teacher_weight": 0.5}, "teacher_weight is 0.5, and there is no teacher"),
        ({"distillation": 0.5, "confidence": 0.5}, "confidence is 0.5, and there is no teacher"),
        ({"pieces": -1}, "pieces is -1; it must be at least 0"),
        ({"evidence": -1.0}, "evidence is -1.0; it must be at least 0"),
        ({"distillation": -0.1}, r"distillation is -0.1; it must be in 0\.\.1"),
        ({"distillation": 1.1}, r"distillation is 1.1; it must be in 0\.\.1"),
        ({"teacher": "a.csv", "unlabelled": "x.csv"}, "the texts of the teacher a.csv are in its file"),
        ({"teacher": "ngrams", "temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
        ({"teacher": "ngrams", "confidence": 1.0}, "confidence is 1.0; it must be at least 0 and below 1"),
        ({"teacher": "ngrams", "teacher_weight": 0.0}, "teacher_weight is 0.0; it must be above 0"),
    ],
)
def test_settings_that_would_be_ignored_or_are_out_of_range_are_refused(settings, message):
    for make in (IMDB, lambda **settings: TextFiles("a.csv", "b.csv", **settings)):
        with pytest.raises(ValueError, match=message):
            make(**settings)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", "text,p_bad\nx,1\n", "a.csv has the columns text, p_bad, and no p_good; scripts/label.py"),
        ("a.csv", "text,p_bad,p_good\nx,1,?\n", r"line 2 has p_good '\?'; it must be a number from 0 to 1"),
        ("a.csv", "text,p_bad,p_good\nx,1.5,-0.5\n", "line 2 has p_bad '1.5'; it must be a number from 0"),
        (
            "a.jsonl",
            '{"text": "x", "p_bad": 0.5, "p_good": 0.3}',
            "line 1 has probabilities with the sum 0.8",
        ),
        ("a.jsonl", '{"text": "x", "p_bad": 0.5}', "line 1 is no object with text and p_bad and p_good; scr"),
        ("a.jsonl", '{"text": "x", "p_bad": NaN, "p_good": 1}', "line 1 has p_bad nan; it must be a number"),
        ("folder", "", "folder is a folder, which has no probabilities; it must be a .csv, .tsv, .jsonl or"),
        ("missing.csv", None, r"teacher is .*missing.csv; it must be ngrams, vectors or a file that exists"),
    ],
)
def test_a_malformed_file_of_probabilities_is_refused(files, name, contents, message):
    if name == "folder":
        write_folder(files / name)
    elif contents is not None:
        (files / name).write_text(contents)
    with pytest.raises(RunError, match=message):
        texts(files, teacher=str(files / name))


@pytest.mark.bad_input
def test_unlabelled_texts_that_are_missing_are_refused(files, tmp_path):
    with pytest.raises(
        RunError, match=r"the teacher ngrams has no texts to label; name some with --data\.un"
    ):
        texts(files, unlabelled=None)
    write_archive(tmp_path / "aclImdb.tar.gz", reviews(12, 6))
    (files / "empty.csv").write_text("text\n")
    with pytest.raises(RunError, match="the unlabelled data hold no document"):
        texts(files, "empty.csv")
    (files / "other.csv").write_text("review\nx\n")
    with pytest.raises(RunError, match=r"no text; name yours with --data\.text_column$"):
        texts(files, "other.csv")
    (files / "folder").mkdir()
    with pytest.raises(RunError, match=r"folder has no \.txt files and no \.parquet files"):
        texts(files, "folder")
