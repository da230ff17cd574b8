"""Labels of teachers that have not seen the texts' groups, for labelled texts and for pieces of all texts."""

import numpy as np
import pytest
from teaching_trials import fitted_on, texts
from test_faults import mutant
from test_formats import write_table

from torch_rnn.data import teaching, tokens
from torch_rnn.data.ngrams import NGrams
from torch_rnn.data.textfiles import TextFiles
from torch_rnn.errors import RunError


@pytest.mark.parametrize("teacher", [None, "ngrams"])
def test_labelled_texts_get_labels_of_teachers_that_have_not_seen_their_group(files, teacher):
    plain = texts(files, teacher=None)
    data = texts(files, teacher=teacher, distillation=0.25, temperature=0.5)
    train = tokens.read_tokens(data.tokens, "train")
    fitted, _ = tokens.grouped_split(train.keys, 0.1)
    parts = tokens.parts_of_groups(train.keys[fitted], teaching.PARTS)
    expected = np.empty((90, 2))
    for part in range(5):
        found = fitted_on(data, fitted[parts != part]).label(train)
        expected[parts == part] = found[fitted[parts == part]]
    sharp = expected**2 / (expected**2).sum(1, keepdims=True)
    gold = plain.splits["train"][1]
    labels = data.splits["train"][1]
    more = texts(files, temperature=0.5).splits["train"][1][90:] if teacher else np.empty((0, 2))
    assert np.array_equal(labels[90:], more)
    np.testing.assert_allclose(labels[:90], 0.75 * np.eye(2)[gold] + 0.25 * sharp, atol=1e-6)
    accuracy = (expected.argmax(1) == gold).mean()
    assert data.facts()["distillation"] == {"name": "ngrams", "accuracy": accuracy}
    for split in ("validation", "test"):
        assert np.array_equal(data.splits[split][1], plain.splits[split][1])


def test_parts_have_whole_groups_and_about_as_many_documents():
    keys = np.random.default_rng(0).integers(40, size=1000).astype(np.uint64)
    parts = tokens.parts_of_groups(keys, 5)
    assert all(len(np.unique(parts[keys == key])) == 1 for key in np.unique(keys))
    assert np.abs(np.bincount(parts, minlength=5) - 200).max() <= np.bincount(keys.astype(int)).max()
    assert tokens.parts_of_groups(np.array([7, 7], np.uint64), 5).tolist() == [0, 0]


def test_pieces_get_labels_of_teachers_that_have_not_seen_their_group(files):
    data = texts(files, distillation=0.5, pieces=4, temperature=0.5, teacher_weight=0.25)
    whole = texts(files, distillation=0.5, temperature=0.5, teacher_weight=0.25)
    sequences, labels = data.splits["train"]
    assert np.array_equal(labels[:120], whole.splits["train"][1])
    assert np.array_equal(sequences.lengths[:120], whole.splits["train"][0].lengths)
    train = tokens.read_tokens(data.tokens, "train")
    fitted, _ = tokens.grouped_split(train.keys, 0.1)
    parts = tokens.parts_of_groups(train.keys[fitted], teaching.PARTS)
    models, number = [fitted_on(data, fitted[parts != part]) for part in range(5)], 120
    teachers = [models[part] for part in parts] + 30 * [NGrams.load(data.lessons.ngrams / "ngrams.npz")]
    for i, teacher in enumerate(teachers):
        text = whole.splits["train"][0][i]
        n = round(len(text) / 4)
        pieces = [sequences[j] for j in range(number, number + n)] if n > 1 else []
        if pieces:
            assert np.concatenate(pieces).tolist() == text.tolist()
        for piece in pieces:
            p = teacher.probabilities(piece, np.array([0, len(piece)]))[0] ** 2
            np.testing.assert_allclose(labels[number], 0.25 * p / p.sum(), atol=1e-6)
            number += 1
    assert number == len(labels) > 120
    assert data.facts()["teacher"] == whole.facts()["teacher"]
    assert data.facts()["distillation"]["pieces"] == number - 120
    for split in ("validation", "test"):
        assert np.array_equal(data.splits[split][0].lengths, whole.splits[split][0].lengths)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("_teacher(train, rows[parts != part], ", "_teacher(train, rows, "),
        ("of_pieces[unseen] = teacher.label(pieces)[unseen]", "of_pieces[:] = teacher.label(pieces)"),
        ("np.isin(document, texts) & (", "np.isin(document, texts) | ("),
        ("(1 - weight) * gold + weight * softened", "weight * gold + (1 - weight) * softened"),
    ],
)
def test_seeded_faults_of_cross_fitting_are_found(files, monkeypatch, right, wrong):
    twin = mutant(teaching, right, wrong)
    for name in ("cross_fitted", "labelled_pieces", "mixed"):
        monkeypatch.setattr(teaching, name, getattr(twin, name))

    def check():
        test_labelled_texts_get_labels_of_teachers_that_have_not_seen_their_group(files, None)
        test_pieces_get_labels_of_teachers_that_have_not_seen_their_group(files)

    with pytest.raises((AssertionError, RuntimeWarning)):  # labels that nothing has written may be zeros
        check()


def test_pieces_of_a_document_are_nearly_equal_in_length():
    offsets = np.array([0, 1, 1, 10, 31])
    documents = tokens.Tokens(np.arange(31), offsets, np.arange(4), np.arange(4).astype(np.uint64))
    pieces, document = tokens.cut(documents, 6)
    assert document.tolist() == [0, 1, 2, 2, 3, 3, 3, 3]
    assert pieces.offsets.tolist() == [0, 1, 1, 5, 10, 15, 20, 25, 31]
    assert pieces.labels.tolist() == pieces.keys.tolist() == document.tolist()


@pytest.mark.bad_input
def test_labelled_texts_that_are_too_few_for_cross_fitting_are_refused(tmp_path):
    write_table(tmp_path / "train.csv", [("a b c", "bad"), ("a b d", "good"), ("a b e", "bad")])
    write_table(tmp_path / "test.csv", [("a b c", "bad"), ("a b d", "good")])
    given = (str(tmp_path / "train.csv"), str(tmp_path / "test.csv"))
    with pytest.raises(RunError, match="1 of 2 have none beside validation, or in other groups: lower valid"):
        TextFiles(*given, cache=str(tmp_path / "cache"), validation=0.3, distillation=0.5).setup()
