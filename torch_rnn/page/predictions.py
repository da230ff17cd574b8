"""The test split, read once: logits, labels, and how far each word has moved the logits."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_rnn.data.batches import Batch, BatchIndices, Sequences, lengths_of
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.losses import most_probable_label, probabilities
from torch_rnn.nn.module import RNN
from torch_rnn.nn.readout import read
from torch_rnn.ops.inputs import real_steps
from torch_rnn.page.contributions import contributions_of_states
from torch_rnn.page.finished import FinishedRun

MAX_SEQUENCES = 25_000
"""Limit on the test sequences that are read."""
MAX_STEPS = 8_000_000
"""Limit on their steps."""
MAX_PRODUCTS = 4e10
"""Limit on the products of Whh with the states of these steps."""
BATCH_STEPS = 1 << 16
"""Limit on the steps of a batch, with padding."""


class Predictions(NamedTuple):
    """What the model says about N outputs of n test sequences (N = n unless each step has an output)."""

    rows: np.ndarray
    """(n,), the numbers of the sequences in the test split."""
    of: int
    """The number of sequences in the whole test split."""
    logits: np.ndarray
    """(N, C) float64."""
    probabilities: np.ndarray
    """(N, max(C, 2)) float64."""
    labels: np.ndarray
    """(N,)"""
    word_sums: np.ndarray | None
    """(V, C), the sum of the contributions of each id; None without words."""
    word_counts: np.ndarray | None
    """(V,), how often each id was read."""

    @property
    def chosen(self) -> np.ndarray:
        """The most probable class of each output, (N,)."""
        if self.logits.shape[1] == 1:
            return (self.logits[:, 0] > 0).astype(int)
        return self.logits.argmax(axis=1)


def batches(data: SequenceData, split: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields some sequences of a split in batches of similar length, each batch with their numbers."""
    sequences, labels = data.splits[split]
    lengths, source = lengths_of(sequences), Sequences(sequences, labels)
    order = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    for end in range(1, len(order) + 1):
        full = end < len(order) and (end + 1 - start) * lengths[order[end]] > BATCH_STEPS
        if full or end == len(order):
            yield order[start:end], source[BatchIndices((0,), order[start:end])]
            start = end


@torch.no_grad()
def predict_test(run: FinishedRun) -> Predictions:
    """Reads the test split, or as many of its sequences as the limits allow."""
    data, rnn = run.data, run.rnn
    lengths = lengths_of(data.splits["test"][0])
    rows = np.random.default_rng(0).permutation(len(lengths))[:MAX_SEQUENCES]
    products = rnn.hidden_size**2 * rnn.num_layers * len(rnn.names[0])
    limit = min(MAX_STEPS, MAX_PRODUCTS / products)
    rows = np.sort(rows[: max(1, int(np.searchsorted(np.cumsum(lengths[rows]), limit)))])
    order, logits, labels = [], [], []
    V = len(data.vocabulary) if run.reads_text else 0
    sums, counts = np.zeros((V, rnn.output_size)), np.zeros(V, dtype=np.int64)
    for numbers, (x, n, y, *_) in batches(data, "test", rows):
        h = rnn.states(x, n)
        out = logits_of_states(rnn, h, n)
        real = real_steps(n, x.shape[1])
        if rnn.readout == "every":
            out, y = out[real], y[real]
        elif V:
            _add_words(sums, counts, x[real], contributions_of_states(rnn, h, n)[real])
        order.append(numbers)
        logits.append(out)
        labels.append(most_probable_label(y).reshape(-1))
    logits = torch.cat(logits).double()
    order, labels = np.concatenate(order), torch.cat(labels).numpy()
    if rnn.readout != "every":  # back into the order of the rows
        back = np.argsort(order, kind="stable")
        logits, labels, order = logits[back], labels[back], rows
    return Predictions(
        order, len(lengths), logits.numpy(), probabilities(logits).numpy(), labels,
        sums if V else None, counts if V else None,
    )  # fmt: skip


def logits_of_states(rnn: RNN, h: Tensor, lengths: Tensor) -> Tensor:
    """Returns the logits (B, C), or (B, T, C), of what `rnn.states` has returned."""
    forward, *backward = h.split(rnn.hidden_size, dim=2)  # a row without steps repeats h0
    last = torch.cat([forward[:, -1], *(states[:, 0] for states in backward)], dim=1)
    logits = read(rnn.readout, h, last, lengths) @ rnn.Why.t()
    return logits if rnn.by is None else logits + rnn.by


def _add_words(sums: np.ndarray, counts: np.ndarray, ids: Tensor, parts: Tensor) -> None:
    """Adds the contributions (N, C) of the ids (N,) to the sums (V, C), and counts the ids (V,)."""
    ids = ids.numpy()
    counts += np.bincount(ids, minlength=len(counts))
    for c, column in enumerate(parts.double().numpy().T):
        sums[:, c] += np.bincount(ids, weights=column, minlength=len(counts))
