"""What a saved RNN is after its attributes were changed, and files, folders and dtypes that are refused."""

import numpy as np
import pytest
import torch

from torch_rnn import RNN
from torch_rnn.nn.weights import save_weights

ids = torch.tensor([[3, 1, 4, 1], [5, 0, 2, 2]])


@pytest.mark.parametrize(
    ("name", "value"), [("readout", "mean"), ("nonlinearity", "relu"), ("recurrent_dropout", 0.25)]
)
def test_an_attribute_that_was_changed_is_saved(tmp_path, name, value):
    rnn = RNN(6, 4, 3)
    setattr(rnn, name, value)
    rnn.save(tmp_path / "rnn.safetensors")
    loaded = RNN.load(tmp_path / "rnn.safetensors")
    assert getattr(loaded, name) == value
    assert torch.equal(loaded.eval()(ids), rnn.eval()(ids))
    assert f"{name}={value!r}" in repr(loaded)


def test_saving_draws_no_random_numbers(tmp_path):
    rnn, state = RNN(6, 4, 3), torch.get_rng_state()
    rnn.save(tmp_path / "rnn.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_load_takes_the_folder_of_a_run(tmp_path):
    rnn = RNN(6, 4, 3)
    rnn.save(tmp_path / "model.safetensors")
    assert torch.equal(RNN.load(tmp_path)(ids), rnn(ids))


def test_numbers_of_numpy_are_saved(tmp_path):
    rnn = RNN(np.int64(6), np.int32(4), np.int64(3), num_layers=2, dropout=np.float32(0.5))
    rnn.save(tmp_path / "rnn.safetensors")
    assert torch.equal(RNN.load(tmp_path / "rnn.safetensors").eval()(ids), rnn.eval()(ids))


@pytest.mark.bad_input
def test_other_data_and_settings_are_refused(tmp_path):
    path = tmp_path / "rnn.safetensors"
    with pytest.raises(TypeError, match=r"the data 'mean' cannot be kept as JSON \(Object of type Tensor"):
        RNN(6, 4, 3).save(path, mean=ids)
    assert not path.exists()
    rnn = RNN(6, 4, 3)
    save_weights(path, rnn.state_dict(), {"rnn": {**rnn.settings, "gates": 3}})
    with pytest.raises(ValueError, match=r"rnn\.safetensors has the settings gates, which no RNN here has"):
        RNN.load(path)


@pytest.mark.bad_input
def test_settings_that_do_not_fit_the_weights_are_not_saved(tmp_path):
    for name, value, message in (
        ("readout", "first", "readout is 'first'; it must be one of"),
        (
            "num_layers",
            2,
            r"this RNN holds Whh \(4, 4\), .*; its settings need .*, Whh_l1 \(4, 4\)",
        ),
        ("hidden_size", 5, r"its settings need Whh \(5, 5\)"),
    ):
        rnn = RNN(6, 4, 3)
        setattr(rnn, name, value)
        with pytest.raises(ValueError, match=message):
            rnn.save(tmp_path / "rnn.safetensors")
    with pytest.raises(TypeError, match=r"dtype is torch\.float16; it must be one of torch\.float32"):
        RNN(6, 4, 3).half().save(tmp_path / "rnn.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_half_precision_and_texts_are_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"Wxh is torch\.float16; .*\.bfloat16\(\)"):
        RNN(6, 4, 3).half()(ids)
    for text in ("a text", ["a text", "another"]):
        with pytest.raises(TypeError, match=r"x is text; .*torch_rnn\.TextClassifier labels texts"):
            RNN(6, 4, 3).predict(text)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        RNN.load("tests")


@pytest.mark.bad_input
def test_a_checkpoint_is_refused_with_what_to_name(tmp_path):
    torch.save({}, tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"last\.ckpt is not a weights file .*; name the run's folder, or its"
    ):
        RNN.load(tmp_path / "last.ckpt")
