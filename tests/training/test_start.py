"""start_from: what is taken over from another run, what is drawn anew, and what is refused."""

import json

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from trials import TEXT, language, train

from torch_rnn.data.textstream import TextStream
from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN
from torch_rnn.nn.weights import load_weights
from torch_rnn.training.language_model import LanguageModel
from torch_rnn.training.start import start_from


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def data(work):
    (work / "text.txt").write_text(TEXT, encoding="utf-8")
    data = TextStream(str(work / "text.txt"), cache=str(work / "cache"), batch_size=4, steps=8)
    data.setup()
    return data


@pytest.fixture(scope="module")
def source(work, data):
    """The file of a language model with one layer."""
    rnn = RNN(data.input_size, 8, data.input_size, readout="every")
    rnn.save(work / "source.safetensors", **data.about())
    return str(work / "source.safetensors")


def test_what_fits_is_taken_over(source, data):
    rnn = RNN(data.input_size, 8, 2, num_layers=2, bidirectional=True)
    before = {name: parameter.clone() for name, parameter in rnn.named_parameters()}
    started = start_from(source, rnn, data)
    weights, _ = load_weights(source)
    assert started.taken == ("Wxh", "Whh", "bh")
    for name, parameter in rnn.named_parameters():
        assert torch.equal(parameter, weights[name] if name in started.taken else before[name])
    assert set(started.taken) | set(started.drawn) == set(before)
    assert str(started).startswith(f"started from {source}: Wxh, Whh, bh taken over, ")
    assert str(started).endswith(" drawn anew")
    whole = start_from(source, RNN(data.input_size, 8, data.input_size, readout="every"), data)
    assert whole.drawn == ()
    assert str(whole).endswith("Wxh, Whh, Why, bh, by taken over, nothing drawn anew")


def test_what_was_taken_over_has_its_own_learning_rate(source, data):
    seed_everything(0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    model = LanguageModel(
        data.input_size, 8, num_layers=2, start_from=source, start_learning_rate=0.0, optimizer="adamw",
        weight_decay=0.1,
    )  # fmt: skip
    model.started = start_from(source, model.rnn, data)
    before = {name: parameter.clone() for name, parameter in model.rnn.named_parameters()}
    Trainer(accelerator="cpu", max_steps=3, enable_model_summary=False, **quiet).fit(model, datamodule=data)
    for name, parameter in model.rnn.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in model.started.taken), name


def test_a_run_says_what_it_started_from(tmp_path):
    settings = language(tmp_path) | {"trainer.max_epochs": 1}
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(first, settings) == (0, "")
    assert train(second, settings | {"model.start_from": first, "model.start_learning_rate": 0.0005}) == (
        0,
        "",
    )
    started = json.loads((second / "results.json").read_text())["started_from"]
    assert started["path"] == str(first)
    assert started["drawn"] == []
    assert load_weights(second / "model.safetensors")[1]["started_from"] == started
    assert yaml.safe_load((second / "config.yaml").read_text())["model"]["start_from"] == str(first)
    assert json.loads((first / "results.json").read_text())["started_from"] is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 9}, "whose hidden_size is 8; that of this run is 9"),
        ({"nonlinearity": "relu"}, "whose nonlinearity is tanh; that of this run is relu"),
        ({"input_size": 20}, "whose input_size is 30; that of this run is 20"),
    ],
)
def test_another_model_is_refused(source, data, settings, message):
    sizes = {"input_size": data.input_size, "hidden_size": 8, "output_size": 2} | settings
    with pytest.raises(RunError, match=message):
        start_from(source, RNN(**sizes), data)


@pytest.mark.bad_input
def test_other_vocabularies_and_files_are_refused(source, data, work):
    rnn = RNN(data.input_size, 8, 2)
    other = TextStream(str(work / "other.txt"), cache=str(work / "cache"), batch_size=1, steps=1)
    (work / "other.txt").write_text(TEXT.replace("sheep", "SHEEP"), encoding="utf-8")
    other.prepare_data()
    with pytest.raises(RunError, match=f"whose vocabulary of {data.input_size} tokens is not the"):
        start_from(source, rnn, other)
    RNN(data.input_size, 8, 2).save(work / "numbers.safetensors")
    with pytest.raises(
        RunError, match=f"which has none as its vocabulary; this run has one of {data.input_size}"
    ):
        start_from(str(work / "numbers.safetensors"), rnn, data)
    with pytest.raises(RunError, match=r"model.start_from is none; none cannot be read \(No such file"):
        start_from("none", rnn, data)
    (work / "damaged.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"model.start_from is .*damaged.safetensors; "):
        start_from(str(work / "damaged.safetensors"), rnn, data)
    with pytest.raises(ValueError, match=r"start_learning_rate is 0.1, and start_from is null; set both"):
        LanguageModel(9, 8, start_learning_rate=0.1)
    with pytest.raises(ValueError, match="start_learning_rate is -1; it must be at least 0"):
        LanguageModel(9, 8, start_from="x", start_learning_rate=-1)
