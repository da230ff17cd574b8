"""report.html of a language model: what is in it, and in Chromium that it reads and writes as Python does."""

import json
import math

import numpy as np
import pytest
import torch
from test_browser import check_nothing_went_wrong, in_float64, open_page
from test_page import data_of, panels_of
from trials import LANGUAGE_CONFIG, TEXT, arguments, language

from torch_rnn.page import language_states as language_states_module
from torch_rnn.page import memory, slow_points, write_page, writing
from torch_rnn.page.curves import planned_steps
from torch_rnn.page.finished import data_of as data_of_settings
from torch_rnn.page.finished import read_run
from torch_rnn.page.language import held_out, layer_gradients
from torch_rnn.page.language_states import CONTEXT, drawn_places, language_states
from torch_rnn.page.language_states import kind as kind_of
from torch_rnn.page.memory import initial
from torch_rnn.page.slow_points import dynamics
from torch_rnn.training import entry
from torch_rnn.training.cli import CLI, TASKS
from torch_rnn.training.text_generator import TextGenerator
from torch_rnn.training.trained_rnn import cosine

PANELS = {"scores", "curves", "writing", "space", "memory", "about"}
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


def test_beyond_the_limit_the_page_has_a_text_in_place_of_the_weights(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "MAX_WEIGHTS", 100)
    run = read_run(trained("three layers"))
    path = write_page(run.folder, out=tmp_path / "large.html")
    found, text = data_of(path)["writing"], path.read_text("utf-8")
    assert found["weights"] is None
    assert "so this one writes nothing" in text
    assert panels_of(path) == PANELS
    stored = found["stored"]
    x = torch.tensor(stored["ids"])
    assert "".join(stored["tokens"]) == TEXT[645 : 645 + len(x)]
    with torch.no_grad():
        p, h = run.rnn(x).double().softmax(1), run.rnn.states(x)
    assert stored["held"][0] is None
    assert stored["held"][1:] == pytest.approx(p[torch.arange(len(x) - 1), x[1:]].tolist(), abs=1e-5)
    words = run.data.vocabulary.words
    for row, following in zip(p, stored["next"], strict=True):
        assert [token for token, _ in following] == [words[i] for i in row.topk(5).indices]
        assert [q for _, q in following] == pytest.approx(row.topk(5).values.tolist(), abs=1e-5)
    assert np.abs(np.array(stored["path"]) - in_plane(path, h)).max() < 1e-4


def in_plane(path, h):
    """Returns states (N, H) in the plane of the page's state space, (N, 2)."""
    space = data_of(path)["states"]
    return (h.double().numpy() - space["mean"]) @ np.array(space["axes"]).T


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_states_shown_are_those_of_the_held_out_text(trained, kind):
    run = read_run(trained(kind))
    found, (x, (rows, steps)) = language_states(run), drawn_places(run)
    assert found["split"] == ("test" if kind == "three layers" else "validation")
    assert len(found["points"]) == len(rows) == min(480, int((held_out(run.data, 256)[1] >= 0).sum()))
    words, between = run.data.vocabulary.words, " " if kind == "words" else ""
    for k in (0, len(rows) // 2, len(rows) - 1):
        ids = x[rows[k], : steps[k] + 1]
        assert found["labels"][k] == between.join(words[i] for i in ids[-CONTEXT[run.data.tokens] :])
        h = run.rnn.states(ids)[-1]
        assert found["points"][k] == pytest.approx((h.numpy() - found["mean"]) @ found["axes"].T, abs=1e-5)
        p = run.rnn(ids)[-1].double().softmax(0).numpy()
        assert found["bits"][k] == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-5)
        token = words[ids[-1]]
        assert found["kinds"][found["kind"][k]] == kind_of(token, int(ids[-1]), run.data.tokens)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            "characters",
            {"a": "small letter", "É": "capital", "中": "letter", "7": "digit", " ": "space", "\t": "space"}
            | {"\n": "line end", "\u2028": "line end", ",": "punctuation", "€": "punctuation"},
        ),
        ("words", {"it": "word", "1984": "word", "café": "word", ".": "punctuation", "(": "punctuation"}),
    ],
)
def test_each_token_has_a_kind(tokens, expected):
    assert {token: kind_of(token, 1, tokens) for token in expected} == expected
    assert set(expected.values()) < set(language_states_module.KINDS[tokens])
    assert kind_of("<unk>", 0, tokens) == "unknown"


@torch.no_grad()
def test_a_slow_point_hardly_moves_while_the_mean_input_is_read(trained):
    run = read_run(trained("three layers"))
    slow = language_states(run)["slow"]
    counts = torch.from_numpy(run.data.counts()).double()
    system = dynamics(run.rnn, counts / counts.sum())
    s = torch.zeros(1, 3 * run.rnn.hidden_size, dtype=torch.float64)
    for _ in range(500):  # the small model forgets, so that it comes to rest from anywhere
        s = system.step(s)
    space = language_states(run)
    h = s[0, -run.rnn.hidden_size :]
    assert len(slow["points"]) == 1
    assert slow["points"][0] == pytest.approx((h.numpy() - space["mean"]) @ space["axes"].T, abs=0.02)
    p = (h @ run.rnn.Why.double().t() + run.rnn.by.double()).softmax(0)
    assert [q for _, q in slow["next"][0]] == pytest.approx(p.topk(3).values.tolist(), abs=0.01)
    assert len(slow["eigenvalues"][0]) == s.shape[1]


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
        h = generator.rnn.states(torch.tensor(written["ids"]))
        assert np.abs(np.array(written["path"]) - in_plane(folder / "report.html", h)).max() < 1e-5
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
    tokens = box.find_elements("css selector", ".given, .drawn")  # a drawn one may be "<unk>"
    assert len(tokens) == len("<b>9 € ☃") + 30
    box.send_keys(Keys.HOME + Keys.ARROW_RIGHT)
    assert box.find_element("class name", "chosen").get_property("textContent") == "b"
    assert browser.find_element("id", "next").text.startswith('After "b" the most probable are these.')
    assert len(browser.find_elements("css selector", "#next .class")) == 5
    points, shown = browser.execute_script("""
        return [JSON.parse(document.getElementById("path").dataset.points), space.path];
    """)
    assert len(points) == len("<b>9 € ☃") + 30
    assert shown["marks"] == ["&lt;", "b"]
    assert [shown["x"], shown["y"]] == [[x for x, _ in points[:2]], [y for _, y in points[:2]]]
    check_nothing_went_wrong(browser, path)


@pytest.mark.browser
def test_the_state_space_shows_kinds_or_uncertainty(browser, trained):
    path = trained("three layers") / "report.html"
    open_page(browser, path)
    space = data_of(path)["states"]
    traces = """
        const element = document.getElementById("path"), choice = arguments[0];
        if (choice) document.querySelector(`[name=space-colour][value=${choice}]`).click();
        const plot = PLOTS.get(element);
        plot.near = true;
        paint(element, plot);
        return element.data.map(({ name, x, mode }) => [name, x.length, mode]);
    """
    kinds = browser.execute_script(traces, None)
    n = len(space["kinds"])
    assert [name for name, *_ in kinds[: n + 1]] == [*space["kinds"], "slow points"]
    assert [size for _, size, _ in kinds[:n]] == [space["kind"].count(k) for k in range(n)]
    bits = browser.execute_script(traces, "bits")
    assert [(name, size) for name, size, _ in bits[:2]] == [
        ("states", len(space["points"])),
        ("slow points", len(space["slow"]["points"])),
    ]
    told = browser.find_element("id", "slow-text").get_property("textContent")
    assert told.startswith("At the slow point: next comes “")
    assert not browser.find_element("id", "slow-point").is_displayed()
    check_nothing_went_wrong(browser, path)


@pytest.mark.browser
def test_a_large_model_shows_a_stored_text_and_its_path(browser, trained, monkeypatch, tmp_path):
    from selenium.webdriver.common.keys import Keys

    monkeypatch.setattr(writing, "MAX_WEIGHTS", 100)
    for module in (slow_points, memory):  # H is 8
        monkeypatch.setattr(module, "MAX_WIDTH", 7)
    path = write_page(trained("three layers"), out=tmp_path / "large.html")
    open_page(browser, path)
    told = browser.find_element("id", "space").get_property("textContent")
    assert "Slow points are not shown: the state is too wide" in told
    assert "iamonds" not in told
    assert not browser.find_elements("id", "slow")
    assert not browser.find_elements("id", "spectrum")
    stored = data_of(path)["writing"]["stored"]
    box = browser.find_element("id", "generated")
    assert box.get_property("textContent") == "".join(stored["tokens"])
    box.send_keys(Keys.HOME + Keys.ARROW_RIGHT)
    assert box.find_element("class name", "chosen").get_property("textContent") == stored["tokens"][1]
    assert len(browser.find_elements("css selector", "#next .class")) == 5
    assert (
        browser.execute_script("return JSON.parse(document.getElementById('path').dataset.points)")
        == (stored["path"])
    )
    check_nothing_went_wrong(browser, path)


@pytest.mark.browser
def test_the_eigenvalues_of_each_layer_can_be_chosen(browser, trained):
    path = trained("three layers") / "report.html"
    open_page(browser, path)
    spectra = data_of(path)["memory"]["spectra"]
    for k in (2, 0, 1):
        shown = browser.execute_script(
            """
            const element = document.getElementById("spectrum"), plot = PLOTS.get(element);
            plot.near = true;
            paint(element, plot);
            document.querySelectorAll("[name=spectrum]")[arguments[0]].click();
            return element.data.map(({ name, x, y }) => [name, x.map((re, i) => [re, y[i]])]);
            """,
            k,
        )
        assert [name for name, _ in shown] == ["before", "after"]
        assert [values for _, values in shown] == [spectra[k]["before"], spectra[k]["after"]]
    labels = [label.text for label in browser.find_elements("css selector", "#spectrum-choice label")]
    assert labels == ["layer 1", "layer 2", "layer 3"]
    check_nothing_went_wrong(browser, path)
