"""Steps that are replayed end in the same bits as others. Without a GPU, a stand-in records and replays."""

import functools
import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from trials import SMALL, differences, stopped_at, train

from torch_rnn.data.batches import Batch
from torch_rnn.data.streams import Streams, StreamSampler
from torch_rnn.errors import RunError
from torch_rnn.nn.members import clip_members
from torch_rnn.nn.module import RNN
from torch_rnn.training import trained_rnn
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.graphed import GraphedPasses, GraphedUpdate, record_graph, widened
from torch_rnn.training.language_model import LanguageModel
from torch_rnn.training.trainer_settings import check_cuda_graph

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def record(function):
    """Replays by calling the function again. Like a graph, it reads and writes the same memory each time."""
    generator = torch.get_rng_state()
    outputs = function()
    torch.set_rng_state(generator)

    def replay():
        for buffer, value in zip(outputs, function(), strict=True):
            if isinstance(buffer, torch.Tensor):
                buffer.copy_(value)
            else:
                assert buffer == value

    return replay, outputs


@pytest.fixture
def graphed(monkeypatch):
    """The passes and updates that are made; on the CPU they have the stand-in."""
    made = SimpleNamespace(passes=[], updates=[])

    def make_passes(function, parameters):
        on_cpu = parameters[0].device.type == "cpu"
        made.passes.append(GraphedPasses(function, parameters, *([record] if on_cpu else [])))
        return made.passes[-1]

    def make_update(optimizer, clip):
        on_cpu = optimizer.param_groups[0]["params"][0].device.type == "cpu"
        made.updates.append(GraphedUpdate(optimizer, clip, *([record_step(optimizer)] if on_cpu else [])))
        return made.updates[-1]

    monkeypatch.setattr(trained_rnn, "GraphedPasses", make_passes)
    monkeypatch.setattr(trained_rnn, "GraphedUpdate", make_update)
    return made


def record_step(optimizer):
    """Returns `record` for one function that makes steps: each must use the same memory and settings."""
    used = []

    def note(optimizer, args, kwargs):
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        tensors = [group["lr"] for group in groups] + parameters + [p.grad for p in parameters]
        tensors += [value for p in parameters for value in optimizer.state.get(p, {}).values()]
        settings = [(name, group[name]) for group in groups for name in group.keys() - {"params", "lr"}]
        used.append(([tensor.data_ptr() for tensor in tensors], settings))
        assert used[-1] == used[0]

    def record_once(function):
        def noted():
            with optimizer.register_step_pre_hook(note):
                return function()

        assert not used
        return record(noted)

    return record_once


class Data(LightningDataModule):
    def __init__(self, batches, sampler=None):
        super().__init__()
        self.batches, self.sampler = batches, sampler

    def counts(self):
        return torch.ones(9, dtype=torch.int64).numpy()

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None, sampler=self.sampler)


def reviews(lengths, readout):
    """Batches (B, T) of ids as a training makes them; one for each tuple of lengths."""
    g, batches = torch.Generator().manual_seed(0), []
    for row_lengths in lengths:
        B, T = len(row_lengths), max(row_lengths)
        labels = torch.randint(2, (B, T) if readout == "every" else (B,), generator=g)
        x, scored = torch.randint(9, (B, T), generator=g), sum(row_lengths) if readout == "every" else B
        batches.append(Batch(x, torch.tensor(row_lengths), labels, scored, sum(row_lengths)))
    return batches


def trained(model, data, device, tmp_path, **settings):
    """Returns the weights after two epochs, and the sums' metrics."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator=device, devices=1, max_epochs=2, default_root_dir=tmp_path, enable_model_summary=False,
        log_every_n_steps=1, **quiet, **{"gradient_clip_val": 0.5} | settings,
    )  # fmt: skip
    trainer.fit(model, data)
    return dict(model.rnn.named_parameters()), trainer.callback_metrics


def assert_same(found, expected, device):
    (weights, metrics), (wanted, wanted_metrics) = found, expected
    for name, parameter in wanted.items():
        if device == "cpu":
            assert torch.equal(weights[name], parameter), name
        else:  # cuBLAS may choose another algorithm in a graph
            torch.testing.assert_close(weights[name], parameter, rtol=1e-4, atol=1e-6)
    assert metrics.keys() == wanted_metrics.keys()
    for name, value in wanted_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-6 if device == "cpu" else 1e-3), (
            name
        )


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "32-true"), ("cpu", "bf16-mixed"), pytest.param("cuda", "32-true", marks=pytest.mark.cuda)],
)
@pytest.mark.parametrize("readout", ["last", "mean", "max", "every"])
def test_a_classifier_ends_in_the_same_bits(graphed, tmp_path, readout, precision, device):
    lengths = [(16, 3, 0), (30, 17, 32), (9, 16, 12), (16, 16, 16), (5, 16)]

    def run(cuda_graph):
        seed_everything(0)
        model = Classifier(9, 5, 1, 2, readout=readout, learning_rate=0.1, cuda_graph=cuda_graph)
        return trained(model, Data(reviews(lengths, readout)), device, tmp_path, precision=precision)

    expected = run(False)
    assert_same(run(True), expected, device)
    assert len(graphed.passes) == len(graphed.updates) == 1
    assert len(graphed.passes[0].graphs) == 3  # 3 rows of 16 and of 32 steps, 2 rows of 16


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("negatives", [None, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_language_model_ends_in_the_same_bits(graphed, tmp_path, dropout, negatives, device):
    ids = torch.randint(9, (200,), generator=torch.Generator().manual_seed(1)).numpy()

    def run(cuda_graph):
        seed_everything(0)
        model = LanguageModel(
            9, 5, 2, dropout=dropout, output_dropout=dropout, recurrent_dropout=dropout / 2,
            learning_rate=0.02, recurrent_norm=0.8, cuda_graph=cuda_graph,
            softmax="full" if negatives is None else "sampled", negatives=negatives,
        )  # fmt: skip
        streams = Streams(ids, len(ids), 9, streams=3, steps=8, seed=0)
        return trained(model, Data(streams, StreamSampler(len(streams))), device, tmp_path)

    expected = run(False)
    found = run(True)
    if device == "cpu" or not dropout:  # a graph draws from a sequence of its own
        assert_same(found, expected, device)
    assert len(graphed.updates) == 1
    assert len(graphed.passes[0].graphs) == 2  # the first batch has no state before it


def test_a_second_training_captures_anew(graphed, tmp_path):
    """Between two trainings Lightning moves the parameters from the GPU and back to other memory."""
    model = Classifier(9, 5, 1, cuda_graph=True)
    for number in (1, 2):
        trained(model, Data(reviews([(16, 3)], "last")), "cpu", tmp_path)
        assert len(graphed.passes) == len(graphed.updates) == number


def test_widened():
    x = torch.arange(6).reshape(2, 3)
    assert widened(x).shape == (2, 16)
    assert torch.equal(widened(x)[:, :3], x)
    assert not widened(x)[:, 3:].any()
    assert widened(torch.ones(2, 17, 4)).shape == (2, 32, 4)
    assert widened(torch.ones(2, 32)).shape == (2, 32)


@pytest.mark.cuda
def test_a_capture_draws_no_random_numbers():
    x = torch.zeros(3, device="cuda")
    torch.cuda.manual_seed(7)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(7)
    replay, (drawn,) = record_graph(
        lambda: (x + torch.rand(3, device="cuda"),), torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    )
    replay()
    assert torch.equal(drawn, expected)


@pytest.mark.cuda
def test_graphs_share_memory():
    weight = torch.nn.Parameter(torch.ones(1, device="cuda"))
    passes = GraphedPasses(lambda x: ((x * weight).exp().mean(),), [weight])
    reserved = []
    for n in range(1, 9):
        passes(torch.zeros((1 << 24) + n, device="cuda"))  # 64 MiB for the product, and as much for exp
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved() - n * (64 << 20))  # each graph has its own input
    assert reserved[-1] - reserved[0] < 256 << 20


def _of_one_gpu(strategy):
    return strategy(parallel_devices=[torch.device("cuda", 0)], cluster_environment=LightningEnvironment())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategy": SingleDeviceStrategy("cpu")}, "it needs a GPU with CUDA, and the run is on cpu"),
        ({"world_size": 2}, "it needs one process, and there are 2"),
        ({"strategy": _of_one_gpu(DDPStrategy)}, "trainer.strategy must be auto, and is DDPStrategy"),
        ({"strategy": _of_one_gpu(FSDPStrategy)}, "trainer.strategy must be auto, and is FSDPStrategy"),
        ({"accumulate_grad_batches": 4}, "trainer.accumulate_grad_batches must be 1, and is 4"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "leave GradientAccumulationScheduler out"),
        ({"precision": "16-mixed"}, "trainer.precision must be bf16-mixed, and is 16-mixed"),
        ({"_detect_anomaly": True}, "set it false"),
    ],
)
def test_refuses_what_a_graph_cannot_do(changes, sentence):
    settings = {"world_size": 1, "accumulate_grad_batches": 1, "callbacks": [], "precision": "32-true"}
    settings |= {"strategy": SingleDeviceStrategy("cuda"), "_detect_anomaly": False}
    check_cuda_graph(SimpleNamespace(**settings))
    with pytest.raises(RunError, match=f"^model.cuda_graph is true; .*{sentence}$"):
        check_cuda_graph(SimpleNamespace(**settings | changes))


def test_evidence_ends_in_the_same_bits(graphed, tmp_path):
    batches = reviews([(16, 3, 0), (30, 17, 32)], "mean")
    g = torch.Generator().manual_seed(2)
    batches = [batch._replace(evidence=torch.randn(*batch.x.shape, 2, 1, generator=g)) for batch in batches]

    def run(cuda_graph):
        seed_everything(0)
        model = Classifier(
            9, 6, 1, members=2, bidirectional=True, readout="mean", evidence=0.5, learning_rate=0.1,
            cuda_graph=cuda_graph,
        )  # fmt: skip
        return trained(model, Data(batches), "cpu", tmp_path)

    expected = run(False)
    assert_same(run(True), expected, "cpu")
