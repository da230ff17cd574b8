"""The language model against NumpyRNN: steps, scores, the carried state, and runs in several processes."""

import json
import math
import sys

import numpy as np
import process_trials
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from test_faults import mutant
from trials import TEXT, language, train

from torch_rnn.data import streams, textstream
from torch_rnn.data.textstream import TextStream
from torch_rnn.nn.module import RNN
from torch_rnn.reference import PARAMETERS, NumpyRNN
from torch_rnn.testing import TOLERANCES, assert_parity
from torch_rnn.training import language_model
from torch_rnn.training.language_model import LanguageModel, interleaved

H, B, T, LEARNING_RATE, CLIP = 6, 3, 7, 2.0, 0.02
TOLERANCE = 10 * TOLERANCES[torch.float64]  # each of ten steps adds its own rounding


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT[:280], encoding="utf-8")
    data = TextStream(str(path), cache=str(tmp_path / "cache"), batch_size=B, steps=T, validation=0.2, seed=3)
    data.setup()
    return data


def trainer(**settings) -> Trainer:
    return Trainer(
        accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


def model_and_reference(data: TextStream, module=language_model) -> tuple[LanguageModel, NumpyRNN]:
    model = module.LanguageModel(data.input_size, H, optimizer="sgd", learning_rate=LEARNING_RATE).double()
    reference = NumpyRNN(data.input_size, H, data.input_size, readout="every")
    model.rnn = RNN.from_numpy(reference)
    return model, reference


def check_ten_steps(data: TextStream, module=language_model) -> None:
    """Compares losses and weights of ten clipped steps, with the state carried on, with NumPy's."""
    model, reference = model_and_reference(data, module)
    losses, step = [], model.training_step
    model.training_step = lambda *batch: losses.append(step(*batch)) or losses[-1]
    run = trainer(max_epochs=1, gradient_clip_val=CLIP, gradient_clip_algorithm="value")
    run.fit(model, datamodule=data)
    expected, clipped, states = [], 0, np.zeros((B, H))
    counts = np.maximum(data.counts(), 1)
    reference.by = np.log(counts / counts.sum())
    for x, targets, *_ in data.loader("train"):
        gradients, total = dict.fromkeys((f"d{name}" for name in PARAMETERS), 0), 0.0
        for b, (row, y_true) in enumerate(zip(x.numpy(), targets.numpy(), strict=True)):
            y = reference.forward(row, states[b])
            total += reference.loss(y_true, y) / (B * T)
            found, states[b] = reference.backward(row, y_true, y), reference.hs[-1]
            gradients = {name: mean + found[name] / (B * T) for name, mean in gradients.items()}
        expected.append(total)
        clipped += any(np.abs(gradient).max() > 2 * CLIP for gradient in gradients.values())
        reference.update(gradients, LEARNING_RATE, CLIP)
    assert len(expected) == 10
    assert clipped > 5
    assert_parity("losses", torch.stack(losses), np.array(expected), torch.float64, TOLERANCE)
    for name in PARAMETERS:
        assert_parity(name, getattr(model.rnn, name), getattr(reference, name), torch.float64, TOLERANCE)


def check_scores(data: TextStream, module=language_model) -> None:
    """Compares the validation loss with that of the reference, which reads each stream as one sequence."""
    model, reference = model_and_reference(data, module)
    (found,) = trainer().validate(model, datamodule=data, verbose=False)
    ids = data._ids["validation"]
    length, loss = -(-(len(ids) - 1) // B), 0.0
    for start in range(0, len(ids) - 1, length):
        row = ids[start : start + length + 1]
        loss += reference.loss(row[1:], reference.forward(row[:-1]))
    loss /= len(ids) - 1
    assert model.scored["validation"] == len(ids) - 1
    assert found["validation/loss"] == pytest.approx(loss, rel=1e-6)
    assert found["validation/bits_per_character"] == pytest.approx(loss / math.log(2), rel=1e-6)


def test_ten_clipped_steps_equal_the_reference(data):
    check_ten_steps(data)


@pytest.mark.parametrize("steps", [1, 7, 10, 50])
def test_the_score_is_that_of_the_whole_text(data, steps):
    data.steps = steps
    check_scores(data)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('h0 = None if batch.first else self._states["train"]', "h0 = None"),
        ("total.detach(), hT.detach()", "total.detach(), hT"),
        ("total.detach(), hT.detach()", "total.detach(), h.unflatten(0, x.shape)[:, 0].detach()"),
        (
            "total = linear_cross_entropy(h, Why, by, targets)",
            "total = linear_cross_entropy(h, Why, None, targets)",
        ),
        ("return self._mean(total, scored)", "return self._mean(total, len(x))"),
    ],
)
def test_finds_a_fault_of_the_training(data, right, wrong):
    with pytest.raises((AssertionError, RuntimeError)):
        check_ten_steps(data, mutant(language_model, right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("None if batch.first else self._states[split]", "None"),
        ("real = targets != PADDING", "real = targets >= 0 * targets - 2"),
        ("loss = loss / scored\n", "loss = loss / (scored + 1)\n"),
    ],
)
def test_finds_a_fault_of_the_scores(data, right, wrong):
    with pytest.raises((AssertionError, ValueError)):
        check_scores(data, mutant(language_model, right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("targets[row, :length] = ids[:-1], ids[1:]", "targets[row, :length] = ids[:-1], ids[:-1]"),
        ("self.n - 1 - np.arange", "self.n - 2 - np.arange"),
        ("begin = place.step * self.steps", "begin = place.step * (self.steps - 1)"),
    ],
)
def test_finds_a_fault_of_the_streams(data, monkeypatch, right, wrong):
    monkeypatch.setattr(textstream, "Streams", mutant(streams, right, wrong).Streams)
    with pytest.raises(AssertionError):
        check_scores(data)


def test_words_have_a_perplexity(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    data = TextStream(str(tmp_path / "text.txt"), tokens="words", cache=str(tmp_path / "cache"), batch_size=4)
    model = LanguageModel(data.input_size, H, tokens="words")
    (found,) = trainer().validate(model, datamodule=data, verbose=False)
    assert found["validation/perplexity"] == pytest.approx(math.exp(found["validation/loss"]), rel=1e-5)


def test_a_sampled_softmax_learns_and_is_scored_exactly(data):
    """With as many negatives as ids, it is the full one: the same steps, then the same score."""
    losses = []
    for settings in ({"softmax": "sampled", "negatives": data.input_size}, {}):
        seed_everything(0)
        model = LanguageModel(data.input_size, H, learning_rate=0.01, **settings)
        run = trainer(max_epochs=2)
        run.fit(model, datamodule=data)
        losses.append(float(run.callback_metrics["validation/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    seed_everything(0)
    model = LanguageModel(data.input_size, H, learning_rate=0.01, softmax="sampled", negatives=8)
    (before,) = trainer().validate(model, datamodule=data, verbose=False)
    run = trainer(max_epochs=20)
    run.fit(model, datamodule=data)
    assert float(run.callback_metrics["validation/loss"]) < before["validation/loss"] - 0.5


def test_the_spectral_norm_is_limited_and_logged(data):
    largest = []
    for limit in (None, 0.5):
        seed_everything(0)
        model = LanguageModel(data.input_size, H, num_layers=2, learning_rate=0.1, recurrent_norm=limit)
        run = trainer(max_epochs=3)
        run.fit(model, datamodule=data)
        norms = [float(torch.linalg.svdvals(Whh.detach())[0]) for Whh in (model.rnn.Whh, model.rnn.Whh_l1)]
        assert float(run.callback_metrics["train/recurrent_norm"]) == pytest.approx(
            float(max(norms)), rel=1e-6
        )
        largest.append(max(norms))
    assert largest[0] > 1
    assert largest[1] == pytest.approx(0.5)  # the last of the 30 steps has limited it


def test_states_of_processes_are_put_in_the_order_of_the_rows():
    state = torch.randn(2, 6, 5)
    parts = torch.stack([state[:, rank::3] for rank in range(3)])
    assert torch.equal(interleaved(parts), state)
    assert torch.equal(interleaved(parts[:, 0]), state[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
def test_two_processes_make_the_run_of_one(tmp_path):
    settings = language(tmp_path) | {
        "trainer.precision": "64-true", "trainer.accelerator": "cpu", "model.dropout": 0.0,
        "model.num_layers": 1, "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    assert train(tmp_path / "one", settings) == (0, "")
    assert process_trials.statuses(process_trials.together(tmp_path / "two", 2, settings)) == [0, 0]
    assert process_trials.unequal(tmp_path / "two", tmp_path / "one") < 1e-12
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["validation"]["n"] == 128


@pytest.mark.bad_input
def test_refuses_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="output_dropout is 1; it must be at least 0 and below 1"):
        LanguageModel(9, 5, output_dropout=1)
    with pytest.raises(ValueError, match="recurrent_norm is 0; it must be above 0"):
        LanguageModel(9, 5, recurrent_norm=0)
    with pytest.raises(ValueError, match="softmax is sampled, and negatives is None"):
        LanguageModel(9, 5, softmax="sampled")
    with pytest.raises(ValueError, match="softmax is full, and negatives is 3"):
        LanguageModel(9, 5, negatives=3)
    with pytest.raises(ValueError, match=r"negatives is 10; it must be in 1\.\.9, the number of ids"):
        LanguageModel(9, 5, softmax="sampled", negatives=10)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"checkpoint.monitor": "validation/accuracy"},
            "checkpoint.monitor is validation/accuracy; it must be",
        ),
        ({"data.path": "none.txt"}, "none.txt cannot be read: No such file or directory"),
        ({"data.batch_size": 500}, "the train text has 516 characters; 500 streams of 8 steps need at least"),
        ({"model.negatives": "null"}, "softmax is sampled, and negatives is None"),
        ({"data.tokens": "bytes"}, "data.init_args.tokens is bytes; it must be one of characters, words"),
    ],
)
def test_a_run_refuses_bad_settings(tmp_path, settings, message, capsys):
    try:
        status, error = train(tmp_path / "run", language(tmp_path) | settings)
    except SystemExit as exit:
        status, error = exit.code, message
    assert status == 2
    assert message in error
    assert not (tmp_path / "run" / "results.json").exists()
