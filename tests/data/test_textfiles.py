"""A user's own texts, from the files to a prediction: the same run whatever their format."""

import json

import pytest
from test_formats import write_folder, write_lines, write_shards, write_table
from trials import ROOT, differences, stopped_at

from torch_rnn import RNN
from torch_rnn.data.grammar import corpus
from torch_rnn.data.textfiles import TextFiles
from torch_rnn.errors import RunError
from torch_rnn.nn.weights import load_weights
from torch_rnn.training import main

WRITE = {".csv": write_table, ".jsonl": write_lines, "": write_folder}


def rows(n, seed, classes):
    """Returns n different texts of the grammar, each with one of the classes."""
    texts, labels = corpus(n, seed)
    return [
        (f"{text} {i}", classes[(label + i % 2) % len(classes)])
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


@pytest.fixture(scope="module", params=list(WRITE))
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for split, n in (("train", 200), ("test", 40)):
        WRITE[request.param](folder / f"{split}{request.param}", rows(n, n, ("bad", "fair", "good")))
    return folder / f"train{request.param}", folder / f"test{request.param}"


def train(files, folder, *more):
    given = [f"--data.train={files[0]}", f"--data.test={files[1]}", f"--data.cache={folder.parent / 'cache'}"]
    given += [
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={folder}",
    ]
    return main(ROOT / "configs" / "text.yaml", [*given, "--trainer.enable_progress_bar=false", *more])


@pytest.fixture(scope="module")
def undisturbed(files):
    """Returns the folder of a run that nothing has stopped."""
    folder = files[0].parent / "undisturbed"
    assert train(files, folder) == 0
    return folder


def test_a_run_of_three_classes_leaves_what_predicts_them(undisturbed):
    results = json.loads((undisturbed / "results.json").read_text())
    assert results["dataset"] == "text"
    assert (results["test"]["n"], results["validation"]["n"]) == (40, 20)
    assert RNN.load(undisturbed / "model.safetensors").output_size == 3
    _, about = load_weights(undisturbed / "model.safetensors")
    assert about["classes"] == ["bad", "fair", "good"]
    assert "wonderful" in about["text"]["vocabulary"]


def test_a_resumed_run_gives_the_same_bits(files, undisturbed, tmp_path):
    with stopped_at(3):
        assert train(files, tmp_path / "run") == 143
    assert train(files, tmp_path / "run", "--resume=auto") == 0
    assert differences(tmp_path / "run", undisturbed) == []


@pytest.mark.bad_input
def test_a_run_does_not_go_on_with_other_texts(tmp_path, capsys):
    """Of the same lengths, labels and words."""
    texts = rows(200, 1, ("bad", "good"))
    write_table(tmp_path / "test.csv", rows(20, 2, ("bad", "good")))
    write_table(tmp_path / "train.csv", texts)
    files = tmp_path / "train.csv", tmp_path / "test.csv"
    with stopped_at(3):
        assert train(files, tmp_path / "run") == 143
    write_table(tmp_path / "train.csv", [(" ".join(reversed(text.split())), label) for text, label in texts])
    assert train(files, tmp_path / "run", "--resume=auto") == 2
    assert (
        "the data have changed since the checkpoint: other sequences, other tokens;"
        in capsys.readouterr().err
    )


def test_the_format_makes_no_difference(tmp_path):
    fingerprints = []
    for kind in (".csv", ".jsonl"):
        for split, n in (("train", 50), ("test", 10)):
            WRITE[kind](tmp_path / f"{split}{kind}", rows(n, n, ("a", "b")))
        data = TextFiles(f"{tmp_path}/train{kind}", f"{tmp_path}/test{kind}", cache=f"{tmp_path}/cache")
        data.setup()
        assert (data.classes, data.n_classes) == (("a", "b"), 2)
        fingerprints.append(data.fingerprint())
    assert fingerprints[0] == fingerprints[1]


def test_test_texts_that_are_training_texts_are_counted(tmp_path, caplog):
    write_table(tmp_path / "train.csv", texts := rows(60, 1, ("bad", "good")))
    write_table(tmp_path / "test.csv", [*texts[:3], *rows(20, 2, ("bad", "good"))])
    files = (str(tmp_path / f"{split}.csv") for split in ("train", "test"))
    with caplog.at_level("WARNING"):
        TextFiles(*files, cache=str(tmp_path / "cache")).setup()
    assert "3 of 23 test texts are in the training data, too" in caplog.text


def test_equal_texts_are_in_one_split(tmp_path):
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.csv", [(f"text {i % 10}", str(i % 2)) for i in range(100)])
    data = TextFiles(
        f"{tmp_path}/train.csv", f"{tmp_path}/test.csv", cache=f"{tmp_path}/cache", validation=0.25
    )
    data.setup()
    texts = [{tuple(ids) for ids in data.splits[split][0]} for split in ("train", "validation")]
    assert not texts[0] & texts[1]
    assert len(data.splits["validation"][1]) == 30


def test_a_run_from_a_folder_of_shards_is_the_run_from_csv(tmp_path):
    shards = tmp_path / "shards"
    for split, n in (("train", 200), ("test", 40)):
        texts = rows(n, n, ("bad", "fair", "good"))
        write_shards(shards, split, texts, 2)
        write_table(tmp_path / f"{split}.csv", texts[0::2] + texts[1::2])  # in the order of the shards
    short = "--trainer.max_epochs=1"
    assert train((shards, shards), tmp_path / "run", short) == 0
    assert train((tmp_path / "train.csv", tmp_path / "test.csv"), tmp_path / "csv", short) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["test"]["n"], results["validation"]["n"]) == (40, 20)
    assert differences(tmp_path / "run", tmp_path / "csv") == []


BOTH = [("x", "a"), ("y", "b")]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("train_rows", "test_rows", "more", "message"),
    [
        (BOTH, [("x", "c")], [], "the test data have the label 'c', which the train data lack"),
        (BOTH, BOTH, ["--data.text_column=review"], "and no review; name yours with"),
        (BOTH, BOTH, ["--model.output_size=3"], "output_size is 3; 2 classes need 1 or 2"),
        (
            [("x", "a"), ("x", "b")],
            BOTH,
            [],
            "validation is 0.1; that leaves no data for training",
        ),
    ],
)
def test_unusable_files_are_one_sentence(tmp_path, capsys, train_rows, test_rows, more, message):
    files = tmp_path / "train.csv", tmp_path / "test.csv"
    for path, split in zip(files, (train_rows, test_rows), strict=True):
        write_table(path, split)
    try:
        status = train(files, tmp_path / "run", *more)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["test.csv", "test.jsonl"])
def test_missing_columns_are_found_before_any_file_is_tokenized(tmp_path, name):
    write_table(tmp_path / "train.csv", rows(20, 1, ("bad", "good")))
    (tmp_path / name).write_text('{"id": 1}\n')
    data = TextFiles(str(tmp_path / "train.csv"), str(tmp_path / name), cache=str(tmp_path / "cache"))
    with pytest.raises(RunError, match=rf"{name}.* text"):
        data.prepare_tokens()
    assert not (tmp_path / "cache").exists()
