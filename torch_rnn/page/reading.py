"""What the page needs to read a text: the weights, the vocabulary, and texts of the test split.

Beyond MAX_WEIGHTS bytes of weights the page gets the readings of these texts in their place.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torch_rnn.data.batches import RaggedSequences, lengths_of
from torch_rnn.data.corpus import Corpus
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.data.text import tokenize
from torch_rnn.data.tokens import read_tokens
from torch_rnn.nn.module import RNN
from torch_rnn.page.contributions import contributions_of_states, running_logits
from torch_rnn.page.finished import FinishedRun
from torch_rnn.page.originals import original_texts
from torch_rnn.page.predictions import Predictions

MAX_WEIGHTS = 20_000_000
"""Limit on the bytes of the weights in the page, in float32."""
TEXTS = 8
"""Texts of each kind that the page offers."""
UNITS = 64
"""Limit on the units of a stored reading: those with the largest weights in Why."""


def reading(run: FinishedRun, found: Predictions) -> dict[str, Any]:
    """Returns what the reading panel needs."""
    rnn, V = run.rnn, len(run.data.vocabulary)
    texts = chosen_texts(run, found)
    shipped = size(rnn, V) <= MAX_WEIGHTS
    return {
        "tokens": "words",
        "maxlen": run.data.maxlen,
        "vocabulary": run.data.vocabulary.words,
        "weights": weights(rnn, V) if shipped else None,
        "order": rnn.Why.detach().numpy()[:, kept_units(rnn) if not shipped else slice(None)],
        "megabytes": size(rnn, V) / 1e6,
        "texts": texts if shipped else [text | {"reading": stored(run, text["text"])} for text in texts],
    }


def weights(rnn: RNN, V: int) -> dict[str, Any]:
    """Returns the weights as `packed` arrays.

    Wxh of the first layer is transposed and has only the columns of the first V ids: (V, H). The other arrays
    have the shapes of the module's parameters.
    """
    layers = []
    for number, names in enumerate(rnn.names):
        directions = []
        for name in names:
            Wxh, Whh, bh = (getattr(rnn, kind + name) for kind in ("Wxh", "Whh", "bh"))
            Wxh = Wxh[:, :V].t() if number == 0 else Wxh
            bh = torch.zeros(len(Whh)) if bh is None else bh
            directions.append({"Wxh": packed(Wxh), "Whh": packed(Whh), "bh": packed(bh)})
        layers.append(directions)
    by = torch.zeros(len(rnn.Why)) if rnn.by is None else rnn.by
    return {"layers": layers, "Why": packed(rnn.Why), "by": packed(by)}


def packed(array: torch.Tensor | np.ndarray, dtype: str = "<f4") -> dict[str, Any]:
    """Returns the shape and the numbers, in base64, of an array."""
    array = np.asarray(array.detach() if isinstance(array, torch.Tensor) else array)
    numbers = base64.b64encode(np.ascontiguousarray(array, dtype=dtype).data)
    return {"shape": list(array.shape), "dtype": dtype, "base64": numbers.decode()}


def chosen_texts(run: FinishedRun, found: Predictions) -> list[dict[str, Any]]:
    """Returns test texts of four kinds, each with its label and the probabilities of the classes.

    They are the original texts where these can be had, and else their words with spaces between.
    """
    right = found.chosen == found.labels
    top = np.sort(found.probabilities, axis=1)
    lengths = lengths_of(run.data.splits["test"][0])[found.rows]
    kinds = {
        "confident mistakes": np.flatnonzero(~right)[np.argsort(-top[~right, -1], kind="stable")],
        "least certain": np.argsort(top[:, -1] - top[:, -2], kind="stable"),
        "longest": np.argsort(-lengths, kind="stable"),
        "at random": np.random.default_rng(0).permutation(len(right)),
    }
    words, chosen, read = words_of_test(run.data), [], {}
    for kind, order in kinds.items():
        places = []
        for i in order[: 4 * TEXTS].tolist():
            tokens = words(int(found.rows[i]))
            if tokens and tokenize(" ".join(tokens)) == tokens and len(places) < TEXTS:
                places.append(i)
                read[int(found.rows[i])] = tokens
        chosen += [(kind, i) for i in places]
    texts = {number: " ".join(tokens) for number, tokens in read.items()} | original_texts(run.data, read)
    return [
        {
            "kind": kind,
            "text": texts[int(found.rows[i])],
            "label": int(found.labels[i]),
            "p": found.probabilities[i].tolist(),
        }
        for kind, i in chosen
    ]


def words_of_test(data: SequenceData) -> Callable[[int], list[str]]:
    """Returns a function from the number of a test text to its words, the unknown ones too."""
    words, sequences = data.vocabulary.words, data.splits["test"][0]
    if isinstance(data, Corpus) and not data.labels_steps:
        words = json.loads((data.tokens / "words.json").read_text(encoding="utf-8"))
        tokens = read_tokens(data.tokens, "test")
        every = np.arange(len(tokens.labels))
        sequences = RaggedSequences(tokens.ids, tokens.offsets, every, data.maxlen, len(words))
    return lambda i: [words[number] for number in sequences[i].tolist()]


@torch.no_grad()
def stored(run: FinishedRun, text: str) -> dict[str, Any]:
    """Returns the reading of a text as the page computes it where it has the weights."""
    rnn, data = run.rnn, run.data
    every = tokenize(text)
    tokens = every[-data.maxlen :]
    ids = torch.from_numpy(data.vocabulary.encode(tokens)).long()[None]
    lengths = torch.tensor([len(tokens)])
    h = rnn.states(ids, lengths)
    parts = contributions_of_states(rnn, h, lengths)[0]
    units = kept_units(rnn)
    running = running_logits(rnn, h[0], parts)
    return {
        "tokens": tokens,
        "skipped": every[: len(every) - len(tokens)],
        "ids": ids[0].tolist(),
        "contributions": packed(parts),
        "running": packed(running),
        "logits": rnn(ids, lengths)[0].tolist(),
        "by": [0.0] * len(rnn.Why) if rnn.by is None else rnn.by.tolist(),
        "states": packed(h[0][:, units]),
        "path": packed(h[0][:, : rnn.hidden_size]),
    }


def kept_units(rnn: RNN) -> np.ndarray:
    """Returns the numbers of the units whose states a stored reading has."""
    return np.sort(np.argsort(-rnn.Why.detach().abs().sum(dim=0).numpy(), kind="stable")[:UNITS])


def size(rnn: RNN, V: int) -> int:
    """Returns the bytes of the weights that the page needs for V ids, in float32."""
    unused = len(rnn.names[0]) * rnn.hidden_size * (rnn.input_size - V)
    return 4 * (sum(value.numel() for value in rnn.state_dict().values()) - unused)
