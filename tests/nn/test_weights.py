"""Weights files are loaded as they were saved, and files with a changed bit are refused."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from torch_rnn import RNN
from torch_rnn.nn.weights import load_weights, save_weights


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(path, {"a": torch.arange(6.0).reshape(2, 3).t()}, {"words": ["é", "0" * 64], "n": 3})
    return path


def test_tensors_and_data_come_back(path):
    tensors, data = load_weights(path)
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3).t())
    assert data == {"words": ["é", "0" * 64], "n": 3}


def test_safetensors_can_read_the_file_and_the_digest_can_be_checked_by_hand(path):
    with safe_open(path, "pt") as file:
        digest = json.loads(file.metadata()["torch_rnn"])["sha256"]
        assert file.get_tensor("a").shape == (3, 2)
    unsigned = path.read_bytes().replace(digest.encode(), b"0" * 64, 1)
    assert hashlib.sha256(unsigned).hexdigest() == digest


@pytest.mark.bad_input
def test_every_flipped_bit_and_every_truncation_is_refused(path):
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=path.name):
            load_weights(path)
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match=path.name):
            load_weights(path)


def test_the_same_weights_give_the_same_bytes(path, tmp_path):
    twin = tmp_path / "twin"
    tensors, data = load_weights(path)
    save_weights(twin, tensors, data)
    assert twin.read_bytes() == path.read_bytes()


@pytest.mark.bad_input
def test_foreign_files_are_refused_and_pickle_is_never_run(tmp_path):
    for name, write in {
        "pickle": lambda path: torch.save({"Wxh": torch.zeros(2)}, path),
        "text": lambda path: path.write_text("<html>404</html>"),
        "empty": lambda path: path.write_bytes(b""),
        "other": lambda path: save_weights(path, {"w": torch.zeros(1)}, {}),
    }.items():
        path = tmp_path / name
        write(path)
        with pytest.raises(ValueError, match=name):
            RNN.load(path)
    with pytest.raises(FileNotFoundError):
        RNN.load(tmp_path / "missing")
