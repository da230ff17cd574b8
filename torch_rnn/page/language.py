"""What the page shows of a language model beside curves and writing: its scores, and how far back it looks.

No panel reads the text as labelled sequences: windows of the held-out text take their place.
"""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_rnn.data.streams import PADDING, Place
from torch_rnn.data.textstream import TextStream
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.module import RNN
from torch_rnn.ops.nonlinearities import NONLINEARITIES
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.memory import initial, spectra, unrolled

WINDOWS, STEPS = 32, 128
"""Windows of the held-out text whose gradients are averaged, and the steps of each."""
LEAST = 1e-10
"""A curve of gradients ends where this part of the largest is left."""


def result(run: FinishedRun) -> dict[str, Any]:
    """Returns what each split costs, and what it costs two models that read nothing of the text before.

    One says what is most frequent in the training text, the other calls all V tokens equally probable.
    """
    data, found = run.data, run.results
    split = "test" if "test" in found else "validation"
    rows = [{"name": name, **found[name]} for name in ("test", "validation") if name in found]
    read = data.counts().clip(min=1)
    frequencies = read / read.sum()
    counts = data.counts(split)
    losses = {
        "frequencies alone": -float(counts @ np.log(frequencies)) / max(1, int(counts.sum())),
        "every token equally": math.log(len(data.vocabulary)),
    }
    return {
        "measure": "bits per character" if data.tokens == "characters" else "perplexity",
        "split": split,
        "rows": [row | {"score": score(data.tokens, row["loss"])} for row in rows],
        "references": [
            {"name": name, "loss": loss, "score": score(data.tokens, loss)} for name, loss in losses.items()
        ],
        "tokens": data.tokens,
        "V": len(data.vocabulary),
        "sizes": found["sizes"],
        "unknown": found["unknown"],
    }


def score(tokens: str, loss: float) -> float:
    """Returns bits per character, or the perplexity of words, of a loss in nats a token."""
    return loss / math.log(2) if tokens == "characters" else math.exp(min(loss, 700))


def memory(run: FinishedRun) -> dict[str, Any]:
    """Returns, before and after training, the gradient norms by distance and the eigenvalues of Whh."""
    before = initial(run)
    models = {"after": run.rnn} if before is None else {"before": before, "after": run.rnn}
    x, targets = windows(run)
    gradients = {when: gradient_norms(rnn, x, targets) for when, rnn in models.items()}
    return {"gradients": gradients, "sequences": len(x), "spectra": spectra(models), "steps": run.data.steps}


def windows(run: FinishedRun) -> tuple[Tensor, Tensor]:
    """Returns windows of the held-out text, ids (n, T), and the id after each, (n,)."""
    x, targets = held_out(run.data, STEPS)
    whole = (targets != PADDING).all(dim=1)
    return x[whole][:WINDOWS], targets[whole][:WINDOWS, -1]


def held_out(data: TextStream, steps: int) -> tuple[Tensor, Tensor]:
    """Returns the first steps of each stream of the test, else of validation: ids and targets (B, steps).

    A short text has fewer steps.
    """
    streams = data.loader("test" if "test" in data.splits else "validation").dataset
    count = min(-(-steps // data.steps), len(streams))
    batches = [streams[Place(0, step)] for step in range(count)]
    x, targets = (torch.cat([batch[i] for batch in batches], dim=1) for i in (0, 1))
    return x[:, :steps], targets[:, :steps]


def gradient_norms(rnn: RNN, x: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """Returns for each layer the mean norm of dL/dh[t] by the number of steps from t to the last one."""
    curves = []
    for number, gradient in enumerate(layer_gradients(rnn, x, targets), start=1):
        norms = gradient.norm(dim=2).mean(dim=0).flip(0)
        norms = norms[: int((norms > LEAST * norms.max()).nonzero().max()) + 1] if norms.max() > 0 else norms
        distances = list(range(len(norms)))
        curves.append({"name": f"layer {number}", "distances": distances, "norms": norms.tolist()})
    return curves


def layer_gradients(rnn: RNN, x: Tensor, targets: Tensor) -> list[Tensor]:
    """Returns dL/dh (B, T, H) of each layer, in float64; L is the loss of the last prediction alone."""
    rnn = deepcopy(rnn).double()
    f, real = NONLINEARITIES[rnn.nonlinearity].function, torch.ones_like(x, dtype=torch.bool)
    h, layers = x, []
    for (name,) in rnn.names:
        layers.append(unrolled(rnn, name, h, real, f, backwards=False))
        h = torch.stack(layers[-1], dim=1)
    logits = h[:, -1] @ rnn.Why.t() + (0 if rnn.by is None else rnn.by)
    states = [state for layer in layers for state in layer]
    flat = torch.autograd.grad(cross_entropy(logits, targets).sum(), states)
    T = x.shape[1]
    return [torch.stack(flat[start : start + T], dim=1) for start in range(0, len(flat), T)]
