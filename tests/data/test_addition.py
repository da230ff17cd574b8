"""The addition data; exact sums of numbers that are far longer than those of the training."""

from pathlib import Path

import numpy as np
import pytest

from torch_rnn.data.addition import Addition, pairs
from torch_rnn.nn.module import RNN
from torch_rnn.training import main

ADDITION = Path(__file__).parents[2] / "configs" / "addition.yaml"


@pytest.mark.parametrize("bits", [1, 8, 60])
def test_labels_are_the_bits_of_the_sum(bits):
    x, labels = pairs(np.random.default_rng(0), 200, bits)
    assert x.shape == (200, bits + 1, 2)
    weights = 2 ** np.arange(bits + 1, dtype=object)
    a, b = (x[:, :, i].astype(int).astype(object) @ weights for i in (0, 1))
    assert (labels.astype(object) @ weights == a + b).all()
    assert max(a) < 2**bits


def test_training_has_at_most_8_bits():
    data = Addition(train=1001, validation=80)
    data.setup()
    for split, n in (("train", 1001), ("validation", 80)):
        lengths = {len(x) for x in data.splits[split][0]}
        assert len(data.splits[split][0]) == n
        assert lengths == set(range(2, 10))


def test_sums_of_64_and_of_1000_bits_are_exact(tmp_path, capsys):
    assert main(ADDITION, ["--config", str(ADDITION), "--trainer.default_root_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "64 bits: 1,000 of 1,000 sums are exact" in printed
    assert "1000 bits: 100 of 100 sums are exact" in printed


def test_sums_of_an_untrained_model_are_not_exact():
    data = Addition(train=8, validation=8, test={4: 20})
    data.setup()
    assert data.remarks(RNN(2, 4, 1, readout="every", init="seed")) != ["4 bits: 20 of 20 sums are exact"]
