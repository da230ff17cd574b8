"""Several processes train the same run as one, also after one of them is lost."""

import json
import sys

import numpy as np
import process_trials
import pytest
import torch
from process_trials import LONGER, unequal
from trials import train

from torch_rnn.data.batches import BatchIndices, RaggedSequences, Sequences, Shard
from torch_rnn.data.grammar import Grammar
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.module import RNN

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo's processes are found under /proc")


def said_of_steps(ids, offsets):
    """Numbers (N, 2, 1) that show the id, before the rare ones become 0, and the place in its sequence."""
    place = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
    return np.stack([ids + 1.0, place], axis=1)[..., None]


@pytest.mark.parametrize("world", [2, 3, 40])
@pytest.mark.parametrize("kind", ["ragged", "evidence", "listed", "every", "distributions"])
def test_the_parts_of_a_batch_are_the_batch(world, kind):
    rng, n = np.random.default_rng(0), 33
    rows = [rng.integers(1, 9, size=int(length)) for length in rng.integers(0, 7, size=n)]
    labels = [np.ones(len(row), dtype=int) for row in rows] if kind == "every" else rng.integers(2, size=n)
    if kind == "distributions":  # as the labels of teachers are
        labels = rng.dirichlet((1, 1), size=n).astype(np.float32)
    if kind in ("ragged", "evidence"):
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        rows = RaggedSequences(np.concatenate(rows), offsets, np.arange(n), maxlen=5, max_features=8)
    dropout = 0.0 if kind == "every" else 0.5
    draw = BatchIndices((1, 2, 3), rng.permutation(n)[:20])
    evidence = said_of_steps if kind == "evidence" else None
    whole = Sequences(rows, labels, dropout, evidence=evidence)[draw]
    parts = [Sequences(rows, labels, dropout, Shard(rank, world), evidence)[draw] for rank in range(world)]
    assert {(part.scored, part.tokens) for part in parts} == {(whole.scored, whole.tokens)}
    assert sum(int(part.lengths.sum()) for part in parts) == whole.tokens == int(whole.lengths.sum())
    for rank, part in enumerate(parts):
        assert torch.equal(part.lengths, whole.lengths[rank::world])
        for mine, row, length in zip(part.x, whole.x[rank::world], part.lengths, strict=True):
            assert torch.equal(mine[:length], row[:length])
        if kind == "evidence":
            own = whole.evidence[rank::world, : part.x.shape[1]]
            assert torch.equal(part.evidence, own)
            assert part.evidence.any() == part.lengths.any()
        if kind != "every":
            assert torch.equal(part.labels, whole.labels[rank::world])


@pytest.mark.parametrize("backend", ["eager", "bptt", "auto"])
@pytest.mark.parametrize("empty", ["no row", "a row without a step"])
def test_a_part_with_nothing_in_it_gives_every_weight_a_gradient(backend, empty):
    rows = [np.array([3, 1]), np.array([], dtype=int)]
    chosen = np.array([0] if empty == "no row" else [0, 1])
    part = Sequences(rows, np.array([1, 0]), shard=Shard(1, 2))[BatchIndices((0,), chosen)]
    rnn = RNN(9, 4, 1, backend=backend)
    cross_entropy(rnn(part.x, part.lengths), part.labels).sum().backward()
    assert all(parameter.grad is not None for parameter in rnn.parameters())
    assert not rnn.Wxh.grad.any()


def test_without_a_trainer_a_loader_has_everything():
    data = Grammar(train=50, validation=10, test=10)
    data.setup()
    assert sum(len(batch.labels) for batch in data.train_dataloader()) == 50


@pytest.mark.bad_input
def test_a_restart_that_would_hang_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    status, error = train(tmp_path / "run", LONGER)
    assert status == 2
    assert "set the environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" in error


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """The trial of a run in two processes that loses one to SIGTERM and one to SIGKILL, and its folder."""
    work = tmp_path_factory.mktemp("processes")
    return process_trials.lost_workers(work, 1), work


def test_a_lost_process_costs_nothing(lost):
    found, _ = lost
    assert found.failures == []


def test_two_processes_make_the_run_of_one(lost, tmp_path):
    _, work = lost
    assert train(tmp_path / "one", LONGER)[0] == 0
    assert unequal(work / "undisturbed", tmp_path / "one", steps=40) < 1e-12
    assert unequal(work / "undisturbed", tmp_path / "one") < 1e-6
    two, one = (
        json.loads((folder / "results.json").read_text())["test"]
        for folder in (work / "undisturbed", tmp_path / "one")
    )
    assert two["n"] == one["n"] == 99
    assert two["accuracy"] == one["accuracy"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
