"""Streams: every id is read in its order, once, with the next one as its target."""

import numpy as np
import pytest

from torch_rnn.data.batches import Loader, Shard
from torch_rnn.data.streams import PADDING, Place, Streams, StreamSampler
from torch_rnn.data.tokens import IdsOnDisk

IDS = np.arange(1000, 1101, dtype=np.int32)  # 101 ids, 100 targets


def batches(streams, epoch=0):
    return [streams[Place(epoch, step)] for step in range(len(streams))]


@pytest.fixture(params=["memory", "disk"])
def ids(request, tmp_path):
    if request.param == "memory":
        return IDS
    np.save(tmp_path / "ids.npy", IDS)
    return IdsOnDisk(tmp_path / "ids.npy")


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 7), (1, 100), (3, 7), (4, 25), (8, 5), (7, 64), (100, 9)])
def test_evaluation_reads_all_ids_in_order(ids, B, T):
    rows = [[] for _ in range(B)]
    first = True
    for batch in batches(Streams(ids, 101, 2000, B, T)):
        assert batch.first is first
        assert batch.scored == (batch.targets != PADDING).sum()
        first = False
        for row, x, targets in zip(rows, batch.x.numpy(), batch.targets.numpy(), strict=True):
            real = targets != PADDING
            assert (np.diff(real.astype(int)) <= 0).all()  # padding is at the end
            assert (x[~real] == 0).all()
            row += zip(x[real].tolist(), targets[real].tolist(), strict=True)
    assert [pair for row in rows for pair in row] == list(
        zip(range(1000, 1100), range(1001, 1101), strict=True)
    )


@pytest.mark.parametrize(("B", "T"), [(1, 7), (3, 7), (4, 5), (20, 5)])
def test_training_reads_a_ring_from_a_place_of_the_epoch(ids, B, T):
    streams, begins = Streams(ids, 101, 2000, B, T, seed=3), set()
    assert len(streams) == 100 // (B * T)
    for epoch in range(20):
        found = batches(streams, epoch)
        x = np.concatenate([batch.x.numpy() for batch in found], axis=1)
        targets = np.concatenate([batch.targets.numpy() for batch in found], axis=1)
        begin, n = x[0, 0] - 1000, B * T * len(streams)
        ring = 1000 + (begin + np.arange(n + 1)) % 101
        assert x.ravel().tolist() == ring[:-1].tolist()
        assert targets.ravel().tolist() == ring[1:].tolist()
        assert [batch.first for batch in found] == [True] + [False] * (len(found) - 1)
        assert all(batch.scored == batch.tokens == B * T for batch in found)
        begins.add(int(begin))
    assert len(begins) > 10
    assert begins != {
        int(batches(Streams(ids, 101, 2000, B, T, seed=4), epoch)[0].x[0, 0]) - 1000 for epoch in range(20)
    }


def test_processes_share_the_streams(ids):
    for seed in (None, 5):
        whole = batches(Streams(ids, 101, 2000, 6, 4, seed))
        for rank in range(3):
            for batch, part in zip(
                whole, batches(Streams(ids, 101, 2000, 6, 4, seed, Shard(rank, 3))), strict=True
            ):
                assert part.x.tolist() == batch.x[rank::3].tolist()
                assert part.targets.tolist() == batch.targets[rank::3].tolist()
                assert part[2:] == batch[2:]


def test_ids_beyond_the_vocabulary_are_unknown(ids):
    (batch,) = batches(Streams(ids, 101, 1050, 1, 100))
    assert batch.x[0].tolist() == [*range(1000, 1050), *[0] * 50]
    assert batch.targets[0].tolist() == [*range(1001, 1050), *[0] * 51]


def test_a_loader_goes_on_in_the_middle_of_an_epoch(ids):
    def loader():
        return Loader(streams := Streams(ids, 101, 2000, 4, 5, seed=1), StreamSampler(len(streams)))

    whole = loader()
    whole.sampler.set_epoch(2)
    expected = [batch.x.tolist() for batch in whole]
    for step in range(len(expected)):
        resumed = loader()
        resumed.sampler.set_epoch(2)
        resumed.load_state_dict({"step": step})
        assert [batch.x.tolist() for batch in resumed] == expected[step:]
        assert len([batch.x.tolist() for batch in resumed]) == len(expected)  # the next epoch is whole
