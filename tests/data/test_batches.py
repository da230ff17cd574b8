"""Batches of similar length, in an order that is a function of (seed, epoch)."""

import numpy as np
import torch

from torch_rnn.data.batches import BatchIndices, BucketBatchSampler, RaggedSequences, Sequences, collate

LENGTHS = np.random.default_rng(0).integers(1, 200, size=1000)


def make_sampler(shuffle=True, seed=1):
    return BucketBatchSampler(LENGTHS, batch_size=16, seed=seed, shuffle=shuffle)


def test_every_sequence_is_in_one_batch_of_an_epoch():
    for shuffle in (True, False):
        sampler = make_sampler(shuffle=shuffle)
        batches = [indices.rows for indices in sampler]
        assert len(batches) == len(sampler) == 63
        assert sorted(np.concatenate(batches)) == list(range(1000))


def test_the_sequences_of_a_batch_have_similar_lengths():
    padded = sum(len(indices.rows) * LENGTHS[indices.rows].max() for indices in make_sampler())
    assert padded < 1.1 * LENGTHS.sum()
    padded_unsorted = LENGTHS[:992].reshape(-1, 16).max(axis=1).sum() * 16
    assert padded_unsorted > 1.7 * LENGTHS[:992].sum()


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = make_sampler(seed=seed)
        sampler.set_epoch(epoch)
        return [(indices.seed, indices.rows.tolist()) for indices in sampler]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_ragged_sequences_have_the_last_maxlen_ids_and_0_for_rare_words():
    ids, offsets = np.array([1, 2, 3, 9, 5, 6]), np.array([0, 4, 4, 6])
    ragged = RaggedSequences(ids, offsets, np.array([2, 0, 1]), maxlen=3, max_features=6)
    assert [ragged[i].tolist() for i in range(len(ragged))] == [[5, 0], [2, 3, 0], []]
    assert ragged.lengths.tolist() == [2, 3, 0]


def test_word_dropout_removes_half_of_the_words_and_never_all():
    data = Sequences([np.arange(1000), np.array([7])], [0, 1], word_dropout=0.5)
    first, again, next_step = (data[BatchIndices((0, 0, step), np.array([0, 1]))] for step in (0, 0, 1))
    assert 400 < first.lengths[0] < 600
    assert first.lengths[1] == 1
    kept = first.x[0, : first.lengths[0]]
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.lengths, next_step.lengths)


def test_distributions_are_labels_of_sequences_and_not_of_steps():
    labels = np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]], dtype=np.float32)
    rows = [np.array([1, 2]), np.array([3]), np.array([4, 5, 6])]
    batch = Sequences(rows, labels)[BatchIndices((0,), np.array([2, 1]))]
    assert torch.equal(batch.labels, torch.from_numpy(labels[[2, 1]]))
    assert (batch.scored, batch.tokens) == (2, 4)


def test_collate_pads_sequences_and_labels():
    x, lengths, labels, *_ = collate([np.array([3, 1], dtype=np.int32), np.array([2])], [1, 0])
    assert x.tolist() == [[3, 1], [2, 0]]
    assert x.dtype == labels.dtype == torch.int64
    assert lengths.tolist() == [2, 1]
    assert labels.tolist() == [1, 0]
    x, _, labels, *_ = collate([np.ones((2, 3)), np.ones((1, 3))], [np.array([1, 0]), np.array([1])])
    assert x.shape == (2, 2, 3)
    assert labels.tolist() == [[1, 0], [1, 0]]
