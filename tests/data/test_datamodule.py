"""SequenceData checks the values of a split when it is added."""

import numpy as np
import pytest

from torch_rnn.data.batches import RaggedSequences
from torch_rnn.data.datamodule import SequenceData
from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN


class Data(SequenceData):
    name, input_size, classes = "made", 3, ("a", "b")

    def __init__(self):
        super().__init__(batch_size=2, seed=0)


def ragged(ids):
    return RaggedSequences(np.array(ids), np.array([0, len(ids)]), np.array([0]), maxlen=9, max_features=3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("sequences", "labels", "message"),
    [
        ([np.array([0, 3])], [0], r"the test data: x has ids in 0\.\.3; they must be in 0\.\.2"),
        ([np.array([[0.0, np.nan, 1.0]])], [0], "the test data: x has NaN"),
        ([np.array([0])], [2], r"the test data: labels are in 2\.\.2; they must be in 0\.\.1"),
        ([np.array([0])], [0.5], r"the test data: labels are torch\.float64"),
        ([np.array([0])], np.array([[0.5, 0.3, 0.2]]), r"the test data: labels have shape \(1, 3\)"),
        ([np.array([0])], np.array([[1.5, -0.5]]), "the test data: labels have a distribution with a negat"),
        (ragged([1, -1]), [0], r"the test data: x has ids in -1\.\.-1; they must be at least 0"),
    ],
)
def test_bad_values_are_refused(sequences, labels, message):
    with pytest.raises(RunError, match=message):
        Data().add_split("test", sequences, labels)


def test_good_values_are_kept():
    data = Data()
    data.add_split("train", [np.array([0, 2]), np.array([], dtype=int)], [0, 1])
    data.add_split("test", ragged([0, 99]), [1])
    (batch,) = data.train_dataloader()
    assert sorted(batch.x.tolist()) == [[0, 0], [0, 2]]
    assert sorted(batch.lengths.tolist()) == [0, 2]
    assert next(iter(data.test_dataloader())).x.tolist() == [[0, 0]]


def test_the_fingerprint_knows_the_sequences():
    fingerprints = []
    for x in ([0, 1], [0, 2], [0, 1]):
        data = Data()
        data.add_split("train", [np.array(x)], [1])
        fingerprints.append(data.fingerprint())
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_the_fingerprint_knows_distributions():
    fingerprints = set()
    for p in (0.3, 0.4):
        data = Data()
        data.add_split("train", ragged([1, 2]), np.array([[p, 1 - p]]))
        fingerprints.add(data.fingerprint()["sequences"])
    assert len(fingerprints) == 2


@pytest.mark.bad_input
def test_the_outputs_of_the_rnn_must_match_the_labels():
    Data().check_compatible(RNN(3, 2, 1))
    Data().check_compatible(RNN(3, 2, 2, readout="max"))
    for rnn, message in (
        (RNN(3, 2, 3), "output_size is 3; 2 classes need 1 or 2"),
        (RNN(3, 2, 1, readout="every"), "readout is every; the labels of made need last, mean or max"),
    ):
        with pytest.raises(RunError, match=message):
            Data().check_compatible(rnn)
