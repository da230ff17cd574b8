"""Updates that are replayed end in the same bits as others, also where a run goes on in the other mode."""

import functools
import io
import itertools

import pytest
import torch
from graphed_trials import DEVICES, Data, assert_same, record_step, reviews, trained
from lightning.pytorch import Callback, seed_everything
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trials import SMALL, differences, stopped_at, train

from torch_rnn.nn.members import clip_members
from torch_rnn.nn.module import RNN
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.graphed import GraphedUpdate

UPDATES = {
    "adam": {"optimizer": "adam"},
    "adam, cosine": {"optimizer": "adam", "schedule": "cosine"},
    "adamw, cosine": {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.3},
    "sgd": {"optimizer": "sgd"},
    "sgd, cosine": {"optimizer": "sgd", "schedule": "cosine"},
}
CLIPS = {
    "norm": {"gradient_clip_val": 0.05},
    "value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "none": {"gradient_clip_val": None},
}
CASES = [
    *((*case, "cpu") for case in itertools.product(UPDATES, CLIPS, (1, 2))),
    pytest.param("adamw, cosine", "norm", 2, "cuda", marks=pytest.mark.cuda),
    pytest.param("adam", "value", 1, "cuda", marks=pytest.mark.cuda),
    pytest.param("sgd, cosine", "none", 1, "cuda", marks=pytest.mark.cuda),
]


@pytest.mark.parametrize(("update", "clip", "members", "device"), CASES)
def test_every_update_ends_in_the_same_bits(graphed, tmp_path, update, clip, members, device):
    dropout = 0.2 if device == "cpu" else 0.0  # a graph draws from a sequence of its own

    def run(cuda_graph):
        seed_everything(0)
        model = Classifier(
            9, 6, 1, members=members, recurrent_dropout=dropout, learning_rate=0.02, cuda_graph=cuda_graph,
            **UPDATES[update],
        )  # fmt: skip
        data = Data(reviews([(16, 3, 0, 9), (30, 17, 32, 8)] * 2, "mean"))
        return trained(model, data, device, tmp_path, **CLIPS[clip])

    expected = run(False)
    assert_same(run(True), expected, device)
    assert len(graphed.updates) == 1
    assert len(graphed.passes[0].graphs) == 2  # for which the update is the same


@pytest.mark.cuda
def test_bf16_mixed_on_a_gpu(graphed, tmp_path):
    """Its optimiser is not fused, and counts its steps on the CPU until they are captured."""

    def run(cuda_graph):
        seed_everything(0)
        model = Classifier(9, 6, 1, learning_rate=0.02, schedule="cosine", cuda_graph=cuda_graph)
        data = Data(reviews([(16, 3, 0, 9), (30, 17, 32, 8)] * 2, "mean"))
        return trained(model, data, "cuda", tmp_path, precision="bf16-mixed")[1]

    expected = run(False)
    assert float(run(True)["train/loss"]) == pytest.approx(float(expected["train/loss"]), rel=0.02)
    assert len(graphed.updates) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_updates_with_and_without_a_graph_take_turns(kind, fused, device):
    """Each optimiser goes on from the checkpoint of the one before it."""

    def run(with_graph):
        g = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(n, 5, generator=g).to(device)) for n in (3, 4)]
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        clip = functools.partial(torch.nn.utils.clip_grad_norm_, parameters, 2.0)
        file = None
        for replays in with_graph:
            groups = [{"params": [parameter], "weight_decay": 0.2} for parameter in parameters]
            optimizer, update = kind(groups, lr=0.1, fused=fused), None
            if file:
                file.seek(0)
                optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            for step in range(4):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient.copy_(torch.randn(gradient.shape, generator=g))
                optimizer.param_groups[step % 2]["lr"] *= 0.7
                if update:
                    update()
                else:
                    clip()
                    optimizer.step()
                if replays and step == 0:
                    stand_in = [record_step(optimizer)] if device == "cpu" else []
                    update = GraphedUpdate(optimizer, clip, *stand_in)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
        assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
        return [*parameters, *gradients, *(v for state in optimizer.state.values() for v in state.values())]

    for found, expected in zip(run([True, False, True]), run([False] * 3), strict=True):
        if device == "cpu":
            assert torch.equal(found, expected)
        else:  # a graph reads rates in float32, and its kernels are fused
            torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", ["norm", "value", "members"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_on_a_gpu_an_update_reads_nothing_of_the_host(monkeypatch, kind, clip):
    """Runs what would be captured, on tensors without memory; to read a number of these is an error."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)  # which they do not need
    fused = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "_fused_" not in str(function):
                return function(*args, **(kwargs or {}))
            assert kwargs["lr"].dtype is torch.float32
            assert all(group["capturable"] for group in optimizer.param_groups)  # else a capture is refused
            used = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            assert all(tensor.is_cuda for tensor in used)
            fused.append(function)  # which does not run on such tensors

    def record(function):
        with Calls():
            return function, function()

    with FakeTensorMode():
        rnn = RNN(9, 8, 1, init="seed", device="cuda")
        parameters = list(rnn.parameters())
        optimizer = kind([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.1)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
            if kind is not torch.optim.SGD:  # what a step that is not fused leaves
                moments = {name: torch.empty_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
        clips = {
            "norm": functools.partial(torch.nn.utils.clip_grad_norm_, parameters, 0.5),
            "value": functools.partial(torch.nn.utils.clip_grad_value_, parameters, 0.5),
            "members": functools.partial(clip_members, rnn, 2, 0.5),
        }
        GraphedUpdate(optimizer, clips[clip], record)
    assert len(fused) == len(optimizer.param_groups)
    assert all("tensor_lr" in str(function) for function in fused)


@pytest.mark.parametrize("device", DEVICES)
def test_callbacks_see_the_gradients(graphed, tmp_path, device):
    class Gradients(Callback):
        def __init__(self):
            self.seen, self.had_some = [], []

        def on_before_optimizer_step(self, trainer, model, optimizer):
            assert isinstance(optimizer, torch.optim.Adam)
            self.seen += [parameter.grad.clone() for parameter in model.rnn.parameters()]  # before clipping

        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            self.seen += [parameter.grad.clone() for parameter in model.rnn.parameters()]  # after it

        def on_before_zero_grad(self, trainer, model, optimizer):
            self.had_some.append(all(parameter.grad is not None for parameter in model.rnn.parameters()))

    def run(cuda_graph):
        seed_everything(0)
        callback, model = Gradients(), Classifier(9, 5, 1, learning_rate=0.02, cuda_graph=cuda_graph)
        data = Data(reviews([(16, 3, 0, 9), (30, 17, 32, 8)], "mean"))
        trained(model, data, device, tmp_path, gradient_clip_val=0.05, callbacks=[callback])
        assert callback.had_some == [False, True, True, True]
        return callback.seen

    expected, found = run(False), run(True)
    assert len(found) == len(expected) == 4 * 2 * 5
    for gradient, wanted in zip(found, expected, strict=True):
        if device == "cpu":
            assert torch.equal(gradient, wanted)
        else:
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"model.optimizer": "adam"},
        {"model.optimizer": "adamw", "model.weight_decay": 0.1, "model.members": 2},
        {"model.optimizer": "sgd", "model.schedule": "constant", "model.learning_rate": 0.1},
        {"model.optimizer": "adam", "trainer.precision": "bf16-mixed"},  # its optimiser is not fused
    ],
    ids=str,
)
def test_a_run_goes_on_in_the_other_mode(graphed, tmp_path, monkeypatch, settings):
    monkeypatch.setattr("torch_rnn.training.cli.check_cuda_graph", lambda trainer: None)
    monkeypatch.setattr("torch_rnn.training.graphed.WIDTH", 1)  # padding changes the rounding and the dropout
    settings = SMALL | {"trainer.accelerator": "cpu", "model.schedule": "cosine"} | settings
    settings["trainer.callbacks+"] = "lightning.pytorch.callbacks.LearningRateMonitor"
    folder = tmp_path / "run"
    assert train(tmp_path / "undisturbed", settings)[0] == 0
    assert not graphed.updates
    for point, cuda_graph in ((7, True), (22, False), (39, True)):
        with stopped_at(point):
            assert train(folder, settings, f"--model.cuda_graph={cuda_graph}", "--resume", "auto")[0] == 143
    assert train(folder, settings, "--resume", "auto")[0] == 0
    assert differences(folder, tmp_path / "undisturbed") == []
    assert len(graphed.updates) == 2
