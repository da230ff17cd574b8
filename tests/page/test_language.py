"""report.html of a language model: what is in it, and in Chromium that it reads and writes as Python does."""

import json
import math

import numpy as np
import pytest
import torch
from test_browser import check_nothing_went_wrong, in_float64, open_page
from test_page import data_of, panels_of
from trials import LANGUAGE_CONFIG, TEXT, arguments, language

from torch_rnn.page import write_page, writing
from torch_rnn.page.curves import planned_steps
from torch_rnn.page.finished import data_of as data_of_settings
from torch_rnn.page.finished import read_run
from torch_rnn.page.language import layer_gradients
from torch_rnn.page.memory import initial
from torch_rnn.training import entry
from torch_rnn.training.cli import CLI, TASKS
from torch_rnn.training.text_generator import TextGenerator
from torch_rnn.training.trained_rnn import cosine

PANELS = {"scores", "curves", "writing", "memory", "about"}
KINDS = {
    "one layer": {"model.num_layers": 1, "model.dropout": 0},
    "three layers": {"model.num_layers": 3},
    "words": {"data.tokens": "words", "data.batch_size": 2, "model.hidden_size": 6},
}
PROMPTS = {
    "one layer": "9 sheep",
    "three layers": "9 sheep came, 81",
    "words": "9 sheep came, then who counts?",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function from a kind of model to the folder of its run, which has left its page."""
    folders = {}

    def train(kind):
        if kind not in folders:
            work = tmp_path_factory.mktemp("language")
            settings = language(work) | {"trainer.max_epochs": 1, "model.softmax": "full"} | KINDS[kind]
            settings |= {"model.negatives": "null"}
            (work / "test.txt").write_text(TEXT[645:1000] + "€", encoding="utf-8")
            if kind == "three layers":
                settings["data.test"] = work / "test.txt"
            folder = work / "run"
            assert entry.main(LANGUAGE_CONFIG, arguments(folder, settings), "language", write_page) == 0
            folders[kind] = folder
        return folders[kind]

    return train


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_its_page(trained, kind):
    folder = trained(kind)
    path = folder / "report.html"
    assert panels_of(path) == PANELS
    found, results = data_of(path), json.loads((folder / "results.json").read_text())
    shown, V = found["language"], results["vocabulary"]
    assert shown["V"] == V == len(found["writing"]["vocabulary"])
    assert [row["name"] for row in shown["rows"]] == [s for s in ("test", "validation") if s in results]
    measure = "perplexity" if kind == "words" else "bits_per_character"
    for row in shown["rows"]:
        assert row["score"] == pytest.approx(results[row["name"]][measure], rel=1e-4)
        assert row["loss"] == pytest.approx(results[row["name"]]["loss"], rel=1e-4)
    assert shown["references"][1]["loss"] == pytest.approx(math.log(V), rel=1e-5)
    assert found["curves"][f"validation/{measure}"]["values"]
    rates, run = found["curves"]["learning rate"], read_run(folder)
    expected = [0.002 * cosine(step, planned_steps(run)) for step in rates["steps"]]
    assert rates["values"] == pytest.approx(expected, rel=1e-4)
    assert found["curves"]["best"] == found["curves"]["validation/loss"]["steps"][-1]


def test_the_script_makes_the_page_again(trained, run, capsys, tmp_path):
    folder = trained("three layers")
    capsys.readouterr()
    assert run("page", folder, "--out", tmp_path / "again.html") == 0
    assert data_of(tmp_path / "again.html") == data_of(folder / "report.html")


@pytest.mark.bad_input
def test_another_text_is_refused(trained, tmp_path):
    folder = trained("one layer")
    settings = read_run(folder).settings
    other = tmp_path / "other.txt"
    other.write_text("a€b" * 200, encoding="utf-8")
    settings["data"]["init_args"] |= {"path": str(other), "cache": str(tmp_path)}
    data = data_of_settings(settings, folder)
    data.setup()
    with pytest.raises(ValueError, match="was trained on another text"):
        read_run(folder, data)


def test_page_false_leaves_it_out_and_a_failure_is_one_warning(tmp_path, caplog):
    settings = language(tmp_path) | {"trainer.max_epochs": 1}

    def fails(folder, data):
        raise MemoryError("no room")

    given = arguments(tmp_path / "first", settings)
    assert entry.main(LANGUAGE_CONFIG, given, "language", fails) == 0
    (warning,) = [record.getMessage() for record in caplog.records if "page" in record.getMessage()]
    assert warning.startswith(f"the page of {tmp_path / 'first'} could not be made (MemoryError: no room)")
    given = [*arguments(tmp_path / "second", settings), "--page", "false"]
    assert entry.main(LANGUAGE_CONFIG, given, "language", write_page) == 0
    assert not (tmp_path / "second" / "report.html").exists()


def test_beyond_the_limit_the_panel_says_that_it_is_left_out(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "MAX_WEIGHTS", 100)
    path = write_page(trained("one layer"), out=tmp_path / "large.html")
    assert data_of(path)["writing"]["weights"] is None
    assert "There is no writing here" in path.read_text("utf-8")
    assert panels_of(path) == PANELS


def test_gradients_agree_with_differences(trained):
    run = read_run(trained("three layers"))
    rnn, x, targets = in_float64(run.rnn), torch.randint(1, 20, (2, 6)), torch.tensor([3, 5])
    with torch.no_grad():
        rnn.Wxh.mul_(10)
    gradients = layer_gradients(rnn, x, targets)
    assert [tuple(gradient.shape) for gradient in gradients] == [(2, 6, 8)] * 3
    for t, layer, unit in ((1, 0, 2), (3, 1, 4), (5, 2, 7), (2, 2, 0)):
        losses = []
        for step in (1e-6, -1e-6):
            _, h = rnn.states(x[:1, : t + 1], final=True)
            losses.append(loss_after(rnn, h.detach().clone(), layer, unit, step, x[:1], t, targets[:1]))
        assert gradients[layer][0, t, unit].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-7)


@torch.no_grad()
def loss_after(rnn, h, layer, unit, step, x, t, targets):
    """Returns the loss of the last prediction where one unit of one layer is changed at step t."""
    h[layer, 0, unit] += step
    names = [name for (name,) in rnn.names]
    for k in range(layer + 1, len(names)):  # the layers above read the change at once
        _, before = rnn.states(x[:, :t], final=True) if t else (None, torch.zeros_like(h))
        Wxh, Whh, bh = (getattr(rnn, kind + names[k]) for kind in ("Wxh", "Whh", "bh"))
        h[k] = torch.tanh(h[k - 1] @ Wxh.t() + before[k] @ Whh.t() + bh)
    rest = x[:, t + 1 :]
    logits = rnn(rest, h0=h)[:, -1] if rest.shape[1] else h[-1] @ rnn.Why.t() + rnn.by
    return torch.nn.functional.cross_entropy(logits, targets).item()


def test_the_initial_weights_are_drawn_again_from_the_seed(trained):
    folder = trained("three layers")
    cli = CLI(["--config", str(folder / "config.yaml"), "--trainer.accelerator", "cpu"], TASKS["language"])
    drawn, state = initial(read_run(folder)).state_dict(), cli.model.rnn.state_dict()
    for name in drawn.keys() - {"by"}:
        assert torch.equal(drawn[name], state[name]), name


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_page_reads_and_writes_what_python_does(browser, trained, kind):
    folder, prompt = trained(kind), PROMPTS[kind]
    open_page(browser, folder / "report.html")
    generator = TextGenerator.load(folder)
    read = browser.execute_script("""
        const { tokens, ids, states, logits } = window.torch_rnn.read(arguments[0]);
        const p = logits.map((row) => Array.from(probabilitiesOf(row)));
        return { tokens, ids, states: states.map((h) => Array.from(h)), p };
    """, prompt)  # fmt: skip
    ids = generator.encode(prompt)
    assert read["ids"] == ids.tolist()
    assert np.abs(np.array(read["p"]) - generator.rnn(ids).softmax(1).numpy()).max() < 1e-5
    assert np.abs(np.array(read["states"]) - generator.rnn.states(ids).numpy()).max() < 1e-5
    between = "" if kind != "words" else " "
    for start in (prompt, ""):
        written = browser.execute_script("return window.torch_rnn.write(arguments[0], 40, 0)", start)
        text = "".join(between + token for token in written["tokens"][written["given"] :])
        assert text == generator.generate(start, 40, temperature=0)[0]
    check_nothing_went_wrong(browser, folder / "report.html")


@pytest.mark.browser
def test_unknown_characters_are_marked_and_places_are_explained(browser, trained):
    from selenium.webdriver.common.keys import Keys

    path = trained("three layers") / "report.html"
    open_page(browser, path)
    assert browser.find_element("id", "unknown").get_property("hidden")
    done = "return document.getElementById('generated').dataset.done === 'true'"
    browser.execute_script("""
        document.getElementById("prompt").value = "<b>9 € ☃";
        document.getElementById("length").value = 30;
        document.getElementById("generate").click();
    """)
    while not browser.execute_script(done):
        pass
    marked = browser.find_elements("css selector", "#generated .given.unknown")
    assert {"€", "☃"} <= {token.get_property("textContent") for token in marked}
    assert '"€", "☃"' in browser.find_element("id", "unknown").text
    box = browser.find_element("id", "generated")
    assert len(box.get_property("textContent")) == len("<b>9 € ☃") + 30
    box.send_keys(Keys.HOME + Keys.ARROW_RIGHT)
    assert box.find_element("class name", "chosen").get_property("textContent") == "b"
    assert browser.find_element("id", "next").text.startswith('After "b" the most probable are these.')
    assert len(browser.find_elements("css selector", "#next .class")) == 5
    check_nothing_went_wrong(browser, path)
