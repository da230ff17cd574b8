"""report.html as a file: what is in it, for each kind of run, and that it never costs a run anything."""

import base64
import json
import re
from importlib import resources

import numpy as np
import pytest
from made_runs import SIZES, Letters, Moods, make_run
from trials import SMALL, train

from torch_rnn.data.addition import Addition
from torch_rnn.page import hook, reading, write_page
from torch_rnn.page.finished import read_run
from torch_rnn.page.reading import packed, weights
from torch_rnn.page.write import COMPUTED, SCRIPT, as_is, as_json, flat_settings, gather
from torch_rnn.training import entry


def data_of(path):
    """Returns what the page shows."""
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8")
    )
    return json.loads(found)


def panels_of(path):
    return set(re.findall(r'<section id="([\w-]+)"', path.read_text("utf-8")))


EVERY = {"space", "memory", "scores", "curves", "about"}


def test_a_run_on_texts_has_every_panel(tmp_path):
    made = make_run(tmp_path)
    path = write_page(made.folder, made.data)
    assert path == tmp_path / "report.html"
    assert panels_of(path) == EVERY | {"reading", "words-table"}
    found = data_of(path)
    assert found["reading"]["vocabulary"] == made.data.vocabulary.words
    assert {text["kind"] for text in found["reading"]["texts"]} >= {"least certain", "longest", "at random"}
    assert found["result"]["splits"]["test"]["accuracy"] == 0.9
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_texts_has_the_panels_that_need_none(tmp_path):
    data = Addition(bits=4, train=40, validation=10, test={6: 12}, batch_size=8, seed=1)
    made = make_run(tmp_path, data, readout="every")
    path = write_page(made.folder, made.data)
    assert panels_of(path) == EVERY
    assert data_of(path)["result"]["scored"] == 12 * 7


def test_a_run_that_predicts_the_next_token_can_write(tmp_path):
    made = make_run(tmp_path, Letters(), readout="every")
    path = write_page(made.folder, made.data)
    assert panels_of(path) == EVERY | {"writing"}
    assert data_of(path)["writing"]["tokens"] == "characters"


def test_the_weights_come_back_to_the_bit(tmp_path):
    made = make_run(tmp_path, num_layers=2, bidirectional=True)
    V = len(made.data.vocabulary)
    found = weights(made.rnn, V)

    def unpacked(value):
        return np.frombuffer(base64.b64decode(value["base64"]), "<f4").reshape(value["shape"])

    state = {name: value.numpy() for name, value in made.rnn.state_dict().items()}
    for layer, suffix in enumerate(("", "_l1")):
        for direction, back in enumerate(("", "_reverse")):
            one = found["layers"][layer][direction]
            Wxh = state[f"Wxh{suffix}{back}"]
            assert np.array_equal(unpacked(one["Wxh"]), Wxh if layer else Wxh[:, :V].T)
            assert np.array_equal(unpacked(one["Whh"]), state[f"Whh{suffix}{back}"])
            assert np.array_equal(unpacked(one["bh"]), state[f"bh{suffix}{back}"])
    assert np.array_equal(unpacked(found["Why"]), state["Why"])


def test_beyond_the_limit_the_page_has_readings_in_place_of_weights(tmp_path, monkeypatch):
    made = make_run(tmp_path)
    monkeypatch.setattr(reading, "MAX_WEIGHTS", 100)
    path = write_page(made.folder, made.data)
    found = data_of(path)["reading"]
    assert found["weights"] is None
    assert "shows the readings of stored texts only" in path.read_text("utf-8")
    for text in found["texts"]:
        one = text["reading"]
        parts = np.frombuffer(base64.b64decode(one["contributions"]["base64"]), "<f4")
        assert parts.sum() + one["by"][0] == pytest.approx(one["logits"][0], abs=1e-4)


def test_markup_and_the_end_of_a_script_are_escaped(tmp_path):
    assert "<" not in as_json({"text": "</script><!--<script>"})
    with pytest.raises(ValueError, match="would end it"):
        as_is("a</SCRIPT>")
    made = make_run(tmp_path, Moods(**SIZES, batch_size=8, seed=1))
    page = write_page(made.folder, made.data).read_text("utf-8")
    assert "<i>mixed</i>" not in page
    assert "python train.py &lt;/script&gt;" in page


def test_each_file_of_the_script_is_in_the_page_and_those_that_compute_use_no_later_one():
    folder = resources.files("torch_rnn.page") / "script"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.js")}
    assert found == set(SCRIPT)
    assert len(found) == len(SCRIPT)
    texts = {name: (folder / f"{name}.js").read_text("utf-8") for name in SCRIPT}
    declared = {
        name: re.findall(r"^(?:function\*?|const|let) (\w+)", text, re.MULTILINE)
        for name, text in texts.items()
    }
    assert len(declared["rnn"]) > 5
    for i, name in enumerate(COMPUTED):
        later = {"document", "window"}.union(*(declared[other] for other in SCRIPT[i + 1 :]))
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", texts[name], flags=re.DOTALL)
        assert not later & set(re.findall(r"(?<![.\w])\w+(?!:)", code)), name


def test_two_logits_of_two_classes_are_shown_as_their_difference(tmp_path):
    made = make_run(tmp_path, output_size=2)
    found = gather(read_run(tmp_path, made.data))
    assert found["model"]["output_size"] == 1
    assert len(found["words"]["logits"]) == len(found["reading"]["order"]) == 1
    assert found["reading"]["order"][0] == pytest.approx(made.rnn.Why.detach().diff(dim=0)[0].tolist())
    p = found["reading"]["texts"][0]["p"]
    assert sum(p) == pytest.approx(1)


def test_a_slow_point_of_one_direction_of_two_says_nothing(tmp_path):
    made = make_run(tmp_path, bidirectional=True)
    assert gather(read_run(tmp_path, made.data))["states"]["slow"]["logits"] is None


def test_numbers_that_are_not_finite_are_null():
    assert json.loads(as_json({"a": [float("nan"), np.float32(1.5), np.int64(2)], "b": np.ones((1, 2))})) == {
        "a": [None, 1.5, 2],
        "b": [[1, 1]],
    }
    assert packed(np.zeros((2, 3)))["shape"] == [2, 3]
    assert flat_settings({"a": {"b": 1, "c": None}, "d": []}) == {"a.b": "1", "d": "[]"}


def test_the_test_split_is_counted_as_the_model_labels_it(tmp_path):
    made = make_run(tmp_path)
    found = gather(read_run(tmp_path, made.data))["result"]
    right = 0
    for ids, label in zip(*made.data.splits["test"], strict=True):
        right += int(made.rnn.predict(ids)) == label
    assert sum(found["confusion"][i][i] for i in range(2)) == right
    assert found["scored"] == 40


def test_the_words_are_counted_in_both_splits(tmp_path):
    made = make_run(tmp_path)
    panels = gather(read_run(tmp_path, made.data))
    words = panels["words"]["logits"][0]
    assert words["up"][0]["mean"] == max(row["mean"] for row in words["up"]) > 0
    assert words["down"][0]["mean"] == min(row["mean"] for row in words["down"]) < 0
    row = words["up"][0]
    number = made.data.vocabulary.words.index(row["word"])
    for split in ("train", "test"):
        assert row[split] == sum(int((ids == number).sum()) for ids in made.data.splits[split][0])


@pytest.mark.bad_input
def test_a_folder_without_a_run_is_refused(tmp_path, run, capsys):
    assert run("page", tmp_path) == 2
    assert f"error: {tmp_path} holds no finished run that can be read" in capsys.readouterr().err


@pytest.mark.bad_input
def test_data_that_are_not_those_of_the_run_are_refused(tmp_path, run, capsys):
    make_run(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("Grammar", "Addition"))
    assert run("page", tmp_path) == 2
    assert "describes no sequences with labels" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="was trained on data of input size 10000 with 2 classes; these have 2"
    ):
        read_run(tmp_path, Addition(4, 8, 8, {4: 2}, 8, 1))


def test_the_script_makes_the_page_again(tmp_path, run, capsys):
    make_run(tmp_path / "run")
    assert run("page", tmp_path / "run", "--out", tmp_path / "shown.html") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "shown.html")
    assert panels_of(tmp_path / "shown.html") > EVERY


TINY = SMALL | {"data.train": 64, "trainer.max_epochs": 1}


def train_with_page(folder, page, *more):
    from trials import CONFIG, arguments

    return entry.main(CONFIG, [*arguments(folder, TINY), *more], page=page)


def test_a_run_leaves_its_page_and_says_so(tmp_path, capsys):
    assert train_with_page(tmp_path, write_page) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [str(tmp_path / "results.json"), str(tmp_path / "report.html")]
    assert data_of(tmp_path / "report.html")["about"]["command"].startswith("python ")
    made = (tmp_path / "report.html").stat().st_mtime_ns
    assert train_with_page(tmp_path, write_page, "--resume", "auto") == 0
    assert (tmp_path / "report.html").stat().st_mtime_ns == made
    (tmp_path / "report.html").unlink()
    assert hook.write_page(tmp_path).exists()  # from config.yaml, as scripts/page.py does


def test_a_page_that_fails_is_one_warning_and_costs_nothing(tmp_path, caplog):
    def fails(folder, data):
        raise MemoryError("no room")

    assert train_with_page(tmp_path, fails) == 0
    (warning,) = [record.getMessage() for record in caplog.records if "page" in record.getMessage()]
    assert warning.startswith(f"the page of {tmp_path} could not be made (MemoryError: no room)")
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 1
    assert train(tmp_path, TINY, "--resume", "auto") == (0, "")


def test_page_false_leaves_it_out(tmp_path):
    assert train_with_page(tmp_path, write_page, "--page", "false") == 0
    assert not (tmp_path / "report.html").exists()
    assert "\npage" not in (tmp_path / "config.yaml").read_text()
