"""A finished run -> what its page shows -> one file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_rnn.files import write_atomically
from torch_rnn.nn.module import RNN
from torch_rnn.page import language
from torch_rnn.page.curves import curves
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.language_states import language_states
from torch_rnn.page.memory import memory
from torch_rnn.page.predictions import predict_test
from torch_rnn.page.reading import reading, words_of_test
from torch_rnn.page.results import result
from torch_rnn.page.slow_points import APART, dynamics, number_of_starts, slow_points
from torch_rnn.page.states import Plane, Sample, joint_states, plane, sample, states
from torch_rnn.page.words import words
from torch_rnn.page.writing import writing

COMPUTED = ("arrays", "tokens", "rnn", "readings", "writing")
PANELS = (
    "result", "language", "curves", "memory", "states", "path", "slow_points",
    "words", "reading", "strip", "writing",
)  # fmt: skip
SCRIPT = (*COMPUTED, "document", "plots", *(f"panels/{name}" for name in PANELS), "main")
"""The files of script/ in their order. The first five compute; they know nothing of the document."""


def write(run: FinishedRun, path: Path) -> None:
    """Writes the page of a run, whole or not at all."""
    with one_thread():
        text = page(run, gather(run))
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes PyTorch compute with one thread.

    In small products threads wait for each other. In large ones, and in eigenvalues above all, they wait for
    the cores where another program uses them: on two shared cores two threads took ten times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gather(run: FinishedRun) -> dict[str, Any]:
    """Returns what the page shows: one entry for each panel that this kind of run has."""
    return gather_language(run) if run.is_language else gather_sequences(run)


def gather_language(run: FinishedRun) -> dict[str, Any]:
    """Returns the panels of a language model."""
    space = language_states(run)
    flat = Plane(space["mean"], space["axes"], space["explained"])
    return {
        "about": about(run),
        "model": {**run.rnn.settings, "classes": []},
        "language": language.result(run),
        "curves": curves(run),
        "states": space,
        "memory": language.memory(run),
        "writing": writing(run, flat),
    }


def gather_sequences(run: FinishedRun) -> dict[str, Any]:
    """Returns the panels of a run on sequences with labels."""
    trained, run = run, with_one_logit(run)
    found = predict_test(run)
    drawn = sample(run, found)
    flat = plane(drawn.h)
    names = words_of_test(run.data) if run.data.vocabulary is not None else None
    panels = {
        "about": about(run),
        "model": {**run.rnn.settings, "classes": list(run.data.classes)},
        "result": result(run, found),
        "curves": curves(run),
        "states": states(run, drawn, flat, names) | {"slow": slow(run, drawn, flat)},
        "memory": memory(trained, found),
    }
    if run.reads_text:
        panels |= {"reading": reading(run, found), "words": words(run, found)}
    if run.writes_text:
        panels["writing"] = writing(run, flat)
    return panels


def slow(run: FinishedRun, drawn: Sample, flat: Plane) -> dict[str, Any] | None:
    """Returns the slow points in the plane; None where the recurrence has none of its own."""
    system, rnn = dynamics(run.rnn), run.rnn
    if system is None:
        return None
    H = rnn.hidden_size
    chosen = np.random.default_rng(3).permutation(len(drawn.h))[: number_of_starts(rnn)]
    starts = joint_states(run, [drawn.places[i] for i in chosen])
    points = slow_points(system, torch.from_numpy(starts), APART * np.sqrt(starts.var(axis=0).sum()))
    top = points.pop("s")[:, -H:].numpy()
    by = 0 if rnn.by is None else rnn.by.detach().double().numpy()
    # With two directions, the logits depend on what the other one has read, too.
    logits = None if rnn.bidirectional else top @ rnn.Why.detach().double().numpy().T + by
    return points | {"points": flat.project(top), "logits": logits, "starts": len(starts)}


def with_one_logit(run: FinishedRun) -> FinishedRun:
    """Returns the run with one logit, y[1] - y[0], in place of two, which gives two classes the same p."""
    rnn = run.rnn
    if rnn.output_size != 2 or len(run.data.classes) != 2:
        return run
    weights = {name: w[1:] - w[:1] if name in ("Why", "by") else w for name, w in rnn.state_dict().items()}
    one = RNN(**{**rnn.settings, "output_size": 1}).eval()
    one.load_state_dict(weights)
    return run._replace(rnn=one)


def about(run: FinishedRun) -> dict[str, Any]:
    """Returns what the page says about the run beside its scores."""
    found = run.results
    names = ("dataset", "parameters", "epochs", "best_epoch", "seed", "seconds", "ms_per_step", "device")
    script = "train_lm.py" if run.is_language else "train_imdb.py"
    command = found.get("command") or f"python scripts/{script} --config {run.folder / 'config.yaml'}"
    return {
        **{name: found[name] for name in names},
        "tokens_per_second": found["tokens_per_second"],
        "versions": found["versions"],
        "command": command,
        "folder": run.folder.name,
        "settings": flat_settings(run.settings),
    }


def flat_settings(settings: Any, name: str = "") -> dict[str, str]:
    """Returns the settings by their dotted names; those that are not set are left out."""
    if not isinstance(settings, dict) or not settings:
        return {} if settings is None else {name: json.dumps(settings, default=str)}
    leaves = {}
    for key, value in settings.items():
        leaves |= flat_settings(value, f"{name}.{key}" if name else str(key))
    return leaves


def page(run: FinishedRun, panels: dict[str, Any]) -> str:
    """Returns the text of the page."""
    import jinja2
    from plotly.offline import get_plotlyjs

    files = resources.files("torch_rnn.page")
    script = [(files / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPT]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files / "template.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=run.results["dataset"],
        panels=panels,
        css=as_is((files / "page.css").read_text(encoding="utf-8")),
        plotly=as_is(get_plotlyjs()),
        script=as_is("\n".join(['"use strict";\n', *script])),
        data=as_is(as_json(panels)),
    )


def as_is(text: str) -> Any:
    """Marks text that the template must not escape. Raises ValueError where it would end its element."""
    from markupsafe import Markup

    if end := re.search("</script|</style|<!--", text, re.IGNORECASE):
        raise ValueError(f"a script or a style sheet has {end[0]}, which would end it")
    return Markup(text)


def as_json(value: Any) -> str:
    """Returns JSON for a <script> element: "<" is escaped, so that no text in it ends the element."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    """Returns a value as JSON knows it: numbers of six digits, null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
