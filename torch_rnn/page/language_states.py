"""The states of a language model's held-out text on their first two principal components, and slow points."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_rnn.data.streams import PADDING
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.language import held_out
from torch_rnn.page.slow_points import APART, dynamics, number_of_starts, slow_points
from torch_rnn.page.states import Plane, plane

STATES = 480
"""States that are shown."""
STEPS = 256
"""Steps of each stream of the held-out text that are read for them."""
MAX_PRODUCTS = 1e10
"""Limit on the products of the weights with the states of these steps."""
CONTEXT = {"characters": 24, "words": 6}
"""Tokens before a state that its label shows."""
NEXT = 3
"""Next tokens that are stored for a slow point."""
KINDS = {
    "characters": (
        "small letter",
        "capital",
        "letter",
        "digit",
        "space",
        "line end",
        "punctuation",
        "unknown",
    ),
    "words": ("word", "punctuation", "unknown"),
}


def language_states(run: FinishedRun) -> dict[str, Any]:
    """Returns what the panel of the state space shows: states of the top layer, and slow points."""
    x, places = drawn_places(run)
    with torch.no_grad():
        h = run.rnn.states(x)[places]
    flat, tokens, words = plane(h.double().numpy()), run.data.tokens, run.data.vocabulary.words
    read = [x[b, max(0, t + 1 - CONTEXT[tokens]) : t + 1].tolist() for b, t in zip(*places, strict=True)]
    kinds = [kind(words[ids[-1]], ids[-1], tokens) for ids in read]
    names = [name for name in KINDS[tokens] if name in kinds]
    between = "" if tokens == "characters" else " "
    return {
        "points": flat.project(h.double().numpy()),
        "kinds": names,
        "kind": [names.index(name) for name in kinds],
        "bits": entropies(next_probabilities(run, h)),
        "labels": [between.join(words[i] for i in ids) for ids in read],
        "mean": flat.mean,
        "axes": flat.axes,
        "explained": flat.explained,
        "split": "test" if "test" in run.data.splits else "validation",
        "slow": language_slow_points(run, x, places, flat),
    }


def drawn_places(run: FinishedRun) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Draws places of the held-out text; returns ids (B, T), and row and step of each place."""
    rnn = run.rnn
    products = run.data.batch_size * rnn.hidden_size**2 * (2 * rnn.num_layers - 1)
    x, targets = held_out(run.data, int(np.clip(MAX_PRODUCTS / products, 16, STEPS)))
    rows, steps = (targets != PADDING).nonzero(as_tuple=True)
    chosen = torch.from_numpy(np.random.default_rng(1).permutation(len(rows))[:STATES])
    return x, (rows[chosen], steps[chosen])


def kind(token: str, number: int, tokens: str) -> str:
    """Returns the name of a token's kind, one of KINDS; id 0 is the unknown token."""
    if number == 0:
        return "unknown"
    if tokens == "words":
        return "word" if any(character.isalnum() for character in token) else "punctuation"
    if token in "\n\r\v\f\x85\u2028\u2029":
        return "line end"
    if token.isspace():
        return "space"
    if token.isalpha():
        return "capital" if token.isupper() else "small letter" if token.islower() else "letter"
    return "digit" if token.isdigit() else "punctuation"


@torch.no_grad()
def next_probabilities(run: FinishedRun, h: Tensor) -> Tensor:
    """Returns the probabilities (N, V) of the next token after states h (N, H), in float64."""
    by = 0 if run.rnn.by is None else run.rnn.by.double()
    return torch.softmax(h.double() @ run.rnn.Why.double().t() + by, dim=1)


def entropies(p: Tensor) -> np.ndarray:
    """Returns the entropies (N,), in bits, of distributions (N, V)."""
    return (torch.special.entr(p).sum(dim=1) / np.log(2)).numpy()


def language_slow_points(
    run: FinishedRun, x: Tensor, places: tuple[Tensor, Tensor], flat: Plane
) -> dict[str, Any] | None:
    """Returns slow points for the mean input, each token counted as often as the training text has it.

    The searches begin at the first of the places. It returns None where H is too large for them.
    """
    rnn = run.rnn
    counts = torch.from_numpy(run.data.counts()).double()
    system = dynamics(rnn, counts / counts.sum().clamp(min=1))
    if system is None:
        return None
    rows, steps = (place[: number_of_starts(rnn)] for place in places)
    with torch.no_grad():
        _, last = rnn.states(x[rows], steps + 1, final=True)
    starts = last.reshape(rnn.num_layers, len(rows), -1).transpose(0, 1).reshape(len(rows), -1)
    starts = starts.double()
    points = slow_points(system, starts, APART * starts.var(dim=0, correction=0).sum().sqrt().item())
    top = points.pop("s")[:, -rnn.hidden_size :]
    best = next_probabilities(run, top).topk(min(NEXT, rnn.output_size))
    words = run.data.vocabulary.words
    following = [
        [[words[i], p] for i, p in zip(ids, probabilities, strict=True)]
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return points | {"points": flat.project(top.numpy()), "next": following, "starts": len(rows)}
