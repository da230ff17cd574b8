"""label.py writes what a training reads as a teacher's labels; and a training that does both itself."""

import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_reviews import reviews, write_archive, write_folder
from trials import ROOT, differences, stopped_at

from torch_rnn import RNN, TextClassifier
from torch_rnn.data import IMDB, TextFiles
from torch_rnn.data.grammar import corpus
from torch_rnn.data.ngrams import NGrams
from torch_rnn.training import main

CLASSES = ("bad", "fair", "good")


def rows(n, seed):
    """Returns n texts of the grammar; a third of each class is called "fair"."""
    texts, labels = corpus(n, seed)
    return [
        (
            f"{text.replace(',', ';')} {'so so ' * (i % 3 == 0)}{i}",
            "fair" if i % 3 == 0 else CLASSES[2 * label],
        )
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with labelled and unlabelled texts of three classes."""
    folder = tmp_path_factory.mktemp("texts")
    for split, n, seed in (("train", 200, 1), ("test", 40, 2)):
        lines = [f"{text},{label}" for text, label in rows(n, seed)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
    (folder / "more.jsonl").write_text("\n".join(json.dumps({"text": text}) for text, _ in rows(60, 3)))
    return folder


def train(files, folder, *more):
    given = [f"--data.train={files / 'train.csv'}", f"--data.test={files / 'test.csv'}"]
    given += [f"--data.cache={files / 'cache'}", f"--trainer.default_root_dir={folder}"]
    given += ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--model.hidden_size=8"]
    return main(ROOT / "configs" / "text.yaml", [*given, "--trainer.enable_progress_bar=false", *more])


@pytest.fixture(scope="module")
def undisturbed(files):
    """Returns the folder of a run with unlabelled texts that nothing has stopped."""
    folder = files / "undisturbed"
    assert train(files, folder, "--data.teacher=ngrams", f"--data.unlabelled={files / 'more.jsonl'}") == 0
    return folder


def read(path):
    """Returns the texts of a file of labels, and the probabilities (n, C)."""
    found = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else (
        [json.loads(line) for line in path.read_text().splitlines()]
    )  # fmt: skip
    assert all(list(row) == ["text", *(f"p_{name}" for name in CLASSES)] for row in found)
    return [row["text"] for row in found], np.array([list(row.values())[1:] for row in found])


def test_results_name_what_was_used(undisturbed):
    results = json.loads((undisturbed / "results.json").read_text())
    assert (results["labelled"], results["unlabelled"]) == (180, 60)
    assert results["left_out"] == {"held-out text": 0, "labelled text": 0}
    teacher = results["teacher"]
    assert (teacher["name"], teacher["labels"]) == ("ngrams", 60)
    assert 0.5 < teacher["validation"] <= 1
    assert 0.5 < teacher["test"] <= 1


def test_a_resumed_run_gives_the_same_bits_even_without_the_cache(files, undisturbed, tmp_path):
    settings = ["--data.teacher=ngrams", f"--data.unlabelled={files / 'more.jsonl'}"]
    settings.append(f"--data.cache={tmp_path / 'cache'}")
    with stopped_at(4):
        assert train(files, tmp_path / "run", *settings) == 143
    shutil.rmtree(tmp_path / "cache")
    assert train(files, tmp_path / "run", *settings, "--resume=auto") == 0
    assert differences(tmp_path / "run", undisturbed) == []


def test_a_resumed_run_with_distillation_and_pieces_gives_the_same_bits(files, tmp_path):
    settings = ["--data.distillation=0.5", "--data.pieces=8", "--data.teacher=ngrams"]
    settings += [f"--data.unlabelled={files / 'more.jsonl'}", f"--data.cache={tmp_path / 'cache'}"]
    with stopped_at(7):
        assert train(files, tmp_path / "run", *settings) == 143
    shutil.rmtree(tmp_path / "cache")
    assert train(files, tmp_path / "run", *settings, "--resume=auto") == 0
    assert train(files, tmp_path / "whole", *settings) == 0
    assert differences(tmp_path / "run", tmp_path / "whole") == []
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["distillation"]["pieces"] > results["labelled"] + results["teacher"]["labels"]
    assert results["teacher"]["labels"] == 60
    assert 0.5 < results["distillation"]["accuracy"] < 1


def test_vectors_label_as_in_a_training(run, files, tmp_path):
    out, cache = tmp_path / "soft.jsonl", tmp_path / "cache"
    given = ["--data", files / "more.jsonl", "--train", files / "train.csv", "--cache", cache, "--out", out]
    assert run("label", "--teacher", "vectors", *given) == 0
    data = TextFiles(str(files / "train.csv"), str(files / "test.csv"), cache=str(cache),
                     teacher="vectors", unlabelled=str(files / "more.jsonl"))  # fmt: skip
    data.setup()
    np.testing.assert_allclose(read(out)[1], data.splits["train"][1][180:], atol=1e-6)
    assert json.loads((data.lessons.ngrams / "scores.json").read_text())["validation"] > 0.5


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_file_of_labels_trains_the_run_that_labels_itself(run, files, undisturbed, tmp_path, kind):
    out, options = tmp_path / f"soft{kind}", ["--cache", tmp_path / "cache", "--train", files / "train.csv"]
    assert run("label", "--teacher", "ngrams", "--data", files / "more.jsonl", "--out", out, *options) == 0
    texts, p = read(out)
    assert texts == [text for text, _ in rows(60, 3)]
    data = TextFiles(str(files / "train.csv"), str(files / "test.csv"), cache=str(files / "cache"),
                     teacher="ngrams", unlabelled=str(files / "more.jsonl"))  # fmt: skip
    data.setup()
    np.testing.assert_allclose(p, data.splits["train"][1][180:], atol=1e-6)
    assert train(files, tmp_path / "run", f"--data.teacher={out}") == 0
    own, other = (
        RNN.load(folder / "model.safetensors").state_dict() for folder in (undisturbed, tmp_path / "run")
    )
    for name in own:  # labels are written with six digits
        np.testing.assert_allclose(own[name], other[name], atol=1e-4)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["teacher"]["name"] == str(out)


def test_runs_and_a_mixture(run, files, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("torch_rnn.training.teacher.BATCH", 7)
    common = ["--data", files / "more.jsonl", "--cache", files / "cache"]
    found = {}
    for name, given in {
        "ngrams": ["ngrams", "--train", files / "train.csv"],
        "run": [undisturbed],
        "both": ["ngrams", undisturbed, "--train", files / "train.csv"],
    }.items():
        out = tmp_path / f"{name}.parquet"
        assert run("label", "--teacher", *given, *common, "--out", out) == 0
        texts, found[name] = read(out)
        assert pq.ParquetFile(out).num_row_groups == 9
    expected = TextClassifier.load(undisturbed).probabilities(texts).numpy()
    np.testing.assert_allclose(found["run"], expected, atol=2e-6)
    np.testing.assert_allclose(found["both"], (found["ngrams"] + found["run"]) / 2, atol=2e-6)
    assert not np.allclose(found["ngrams"], found["run"], atol=0.01)


def imdb_files(tests):
    files = {name: text for name, text in reviews(40, 6).items() if not name.startswith("test/")}
    for label in ("neg", "pos"):
        texts = corpus(tests, seed=len(label) + tests)[0]
        files |= {f"test/{label}/{i}_1.txt": text.encode() for i, text in enumerate(texts)}
        files[f"test/urls_{label}.txt"] = b"other\n" * tests
    unlabelled = {f"train/unsup/{i}_0.txt": t.encode() for i, t in enumerate(corpus(30, 9)[0], 1)}
    return files, unlabelled | {"train/urls_unsup.txt": b"film0\nelsewhere\nfilm5\n" * 10}


@pytest.mark.parametrize("more", [[], ["--data.distillation=0.5", "--data.pieces=4"]])
def test_imdb_in_one_command_and_another_test_split_changes_nothing_in_training(tmp_path, more):
    """The test reviews, but for one of each class, are removed."""
    results = []
    for tests in (20, 1):
        folder = tmp_path / str(tests)
        labelled, unlabelled = imdb_files(tests)
        write_archive(folder / "aclImdb.tar.gz", labelled)
        write_archive(folder / "aclImdb-unsup.tar.gz", unlabelled)
        given = [f"--data.root={folder}", f"--data.cache={folder / 'cache'}", "--data.teacher=ngrams"]
        given += [f"--trainer.default_root_dir={folder / 'run'}", "--trainer.max_epochs=2"]
        given += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", *more]
        assert main(ROOT / "configs" / "imdb.yaml", given) == 0
        results.append(json.loads((folder / "run" / "results.json").read_text()))
    assert differences(tmp_path / "20" / "run", tmp_path / "1" / "run") == []
    with_tests, without = results
    assert (with_tests["test"]["n"], without["test"]["n"]) == (40, 2)
    for name in ("labelled", "unlabelled", "left_out", "validation"):
        assert with_tests[name] == without[name]
    assert (with_tests["unlabelled"], with_tests["teacher"]["labels"]) == (31, without["teacher"]["labels"])


def test_the_unlabelled_reviews_of_imdb_are_labelled_from_any_form(run, tmp_path, monkeypatch):
    labelled, unlabelled = imdb_files(3)
    write_folder(tmp_path / "folder", labelled | unlabelled)
    write_archive(tmp_path / "archives" / "aclImdb.tar.gz", labelled)
    write_archive(tmp_path / "archives" / "aclImdb-unsup.tar.gz", unlabelled)
    found = []
    for path in ("folder", "folder/aclImdb", "archives", "archives/aclImdb-unsup.tar.gz"):
        train = "archives/aclImdb.tar.gz" if path.startswith("archives") else path
        given = ["--data", tmp_path / path, "--train", tmp_path / train, "--cache", tmp_path / "cache"]
        assert run("label", "--teacher", "ngrams", *given, "--out", tmp_path / "out.jsonl") == 0
        found.append([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()])
    labelled_texts = [{row["text"]: row for row in rows} for rows in found]
    assert labelled_texts[0] == labelled_texts[1]
    assert labelled_texts[0].keys() == {*corpus(30, 9)[0]}
    for rows in labelled_texts[2:]:  # these have one more review, from which the teacher has learned, too
        for text, row in labelled_texts[0].items():
            assert rows[text]["p_positive"] == pytest.approx(row["p_positive"], abs=0.01)
    assert list(found[0][0]) == ["text", "p_negative", "p_positive"]
    data = IMDB(root=str(tmp_path / "folder"), cache=str(tmp_path / "cache"), teacher="ngrams")
    data.prepare_data()
    assert NGrams.load(data.lessons.ngrams / "ngrams.npz").keys.size > 10


def test_texts_are_labelled_with_the_labels_of_another_data_set(run, files, tmp_path):
    labelled, unlabelled = imdb_files(3)
    write_folder(tmp_path, labelled | unlabelled)
    write_archive(tmp_path / "aclImdb.tar.gz", labelled | unlabelled)
    (tmp_path / "more.csv").write_text("\n".join(["review", *(text for text, _ in rows(20, 3))]))
    given = ["--cache", tmp_path / "cache", "--out", tmp_path / "out.jsonl"]
    found = []
    for name in ("aclImdb", "aclImdb.tar.gz"):
        data = ["--train", files / "train.csv", "--data", tmp_path / name]
        assert run("label", "--teacher", "ngrams", *data, *given) == 0
        texts, p = read(tmp_path / "out.jsonl")
        found.append(dict(zip(texts, p.tolist(), strict=True)))
    one_more = found[1].keys() - found[0].keys()  # "never read" is in the archive alone
    assert len(one_more) == 1
    for text, p in found[0].items():
        assert found[1][text] == pytest.approx(p, abs=0.01)
    data = ["--train", tmp_path / "aclImdb", "--data", tmp_path / "more.csv", "--text_column", "review"]
    assert run("label", "--teacher", "ngrams", *data, *given) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    read_by_teacher = (tmp_path / "cache").glob("unlabelled-*/unlabelled_offsets.npy")
    assert sorted(len(np.load(path)) - 1 for path in read_by_teacher) == [20, 30, 31]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train": None}, "the teacher ngrams needs labelled texts; name them with --train"),
        (
            {"--teacher": "runs/missing"},
            "a training run writes it when it ends; "
            "a teacher is ngrams, vectors or the folder of a run on texts",
        ),
        ({"--out": "labels.csv"}, "labels.csv ends in .csv; it must be .jsonl or .parquet"),
        ({"--out": "no/soft.jsonl"}, "soft.jsonl cannot be written, since there is no folder no"),
        ({"--data": "missing.csv"}, "missing.csv does not exist"),
        ({"--text_column": "review"}, "and no review; name yours with --text_column, --label_column"),
        ({"--label_column": "stars"}, "and no stars; name yours with --text_column, --label_column"),
        ({"--validation": "1.5"}, "validation is 1.5; it must be between 0 and 1"),
        (
            {"--teacher": "a run"},
            "--train is train.csv, and no teacher is fitted; add ngrams or vectors to --teacher",
        ),
        (
            {"--teacher": "a run", "--train": None, "--validation": "0.2"},
            "--validation is 0.2, and no teacher is fitted",
        ),
        (
            {"--teacher": ["ngrams", "other classes"]},
            "the teachers have different classes, bad, fair, good and",
        ),
    ],
)
def test_what_cannot_be_labelled_is_one_sentence(run, files, tmp_path, monkeypatch, capsys, change, message):
    for name in ("train.csv", "more.jsonl"):
        shutil.copy(files / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    text = {"maxlen": 4, "vocabulary": ["<unk>", "good"]}
    (tmp_path / "other classes").mkdir()
    RNN(2, 2, 1).save(tmp_path / "other classes" / "model.safetensors", classes=["a", "b"], text=text)
    given = {"--teacher": "ngrams", "--data": "more.jsonl", "--train": "train.csv", "--out": "soft.jsonl"}
    given |= change
    if change.get("--teacher") == "runs/missing":
        del given["--train"]
    if "--train" in change:
        del given["--train"]
    words = [w for k, v in given.items() for w in (k, *(v if isinstance(v, list) else [v]))]
    assert run("label", *words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("*soft*"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.teacher=ngram"], "teacher is ngram; it must be ngrams, vectors or a file that exists"),
        (["--data.teacher=ngrams"], "the teacher ngrams has no texts to label; name some with --data.unlab"),
        (["--data.teacher=vectors", "--data.unlabelled=none.csv"], "none.csv does not exist"),
        (["--trainer.max_epochs=-1"], "schedule is cosine; it needs a length"),
    ],
)
def test_check_refuses_what_the_run_would_refuse(files, tmp_path, settings, message, capsys):
    cache = f"--data.cache={tmp_path / 'cache'}"
    assert train(files, tmp_path / "run", cache, *settings, "--model.schedule=cosine", "--check") == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("ngrams*"))


@pytest.mark.bad_input
def test_a_failure_leaves_the_old_file(run, files, tmp_path, monkeypatch):
    (tmp_path / "more.jsonl").write_text('{"text": "x"}\n{"text": 3}\n')
    (tmp_path / "soft.jsonl").write_text("old")
    given = ["--train", files / "train.csv", "--cache", files / "cache", "--out", tmp_path / "soft.jsonl"]
    assert run("label", "--teacher", "ngrams", "--data", tmp_path / "more.jsonl", *given) == 2
    assert (tmp_path / "soft.jsonl").read_text() == "old"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    given[-1] = tmp_path / "soft.parquet"
    given[3] = tmp_path / "cache"  # nothing is tokenized or fitted before
    assert run("label", "--teacher", "ngrams", "--data", files / "more.jsonl", *given) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.jsonl", "soft.jsonl"]


@pytest.mark.bad_input
def test_without_scikit_learn_a_training_says_so(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    settings = ["--data.teacher=ngrams", f"--data.unlabelled={files / 'more.jsonl'}"]
    assert train(files, tmp_path / "run", *settings, f"--data.cache={tmp_path / 'cache'}") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: teachers of n-grams, which data.evidence, ")
    assert line.endswith(" need scikit-learn: pip install scikit-learn")
    assert not [path for path in (tmp_path / "cache").glob("text-*") if path.is_dir()]
    assert not (tmp_path / "run" / "results.json").exists()
