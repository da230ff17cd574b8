"""Passes that are replayed end in the same bits as others."""

from types import SimpleNamespace

import pytest
import torch
from graphed_trials import DEVICES, Data, assert_same, record, reviews, trained
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from torch_rnn.data.streams import Streams, StreamSampler
from torch_rnn.errors import RunError
from torch_rnn.training.classifier import Classifier
from torch_rnn.training.graphed import GraphedPasses, record_graph, widened
from torch_rnn.training.language_model import LanguageModel
from torch_rnn.training.trainer_settings import check_cuda_graph


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


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_evidence_ends_in_the_same_bits(graphed, tmp_path, readout):
    batches = reviews([(16, 3, 0), (30, 17, 32)], readout)
    g = torch.Generator().manual_seed(2)
    batches = [batch._replace(evidence=torch.randn(*batch.x.shape, 2, 1, generator=g)) for batch in batches]

    def run(cuda_graph):
        seed_everything(0)
        model = Classifier(
            9, 6, 1, members=2, bidirectional=True, readout=readout, evidence=0.5, learning_rate=0.1,
            cuda_graph=cuda_graph,
        )  # fmt: skip
        return trained(model, Data(batches), "cpu", tmp_path)

    expected = run(False)
    assert_same(run(True), expected, "cpu")


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


def test_beyond_the_limit_the_least_recently_used_graph_is_dropped(monkeypatch):
    monkeypatch.setattr("torch_rnn.training.graphed.MAX_GRAPHS", 2)
    weight, captured = torch.nn.Parameter(torch.ones(1)), []
    passes = GraphedPasses(
        lambda x: ((x * weight).sum(),), [weight], lambda function: captured.append(n) or record(function)
    )
    for n in (1, 2, 1, 3, 1, 2):
        assert passes(torch.ones(n)) == (n,)
    assert captured == [1, 2, 3, 2]
    assert len(passes.graphs) == 2


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
