"""torch.export and ONNX with dynamic batch and time, run at sizes other than the traced ones."""

import numpy as np
import pytest
import torch
from torch.export import Dim

from torch_rnn import RNN

B, T, D, H, C = 3, 7, 10, 4, 2
DIMS = {0: Dim("B", min=2, max=4096), 1: Dim("T", min=2, max=100_000)}
LENGTHS = torch.tensor([11, 3, 0, 4, 9])
SETTINGS = [
    {},
    {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"},
    {"readout": "every", "bias": False},
    {"readout": "mean"},
    {"readout": "max", "backend": "bptt"},
]
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter gives many warnings


def inputs(is_ids, b, t):
    g = torch.Generator().manual_seed(b)
    return torch.randint(D, (b, t), generator=g) if is_ids else torch.randn(b, t, D, generator=g)


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def settings(request):
    return request.param


@pytest.fixture(scope="module", params=[True, False], ids=["ids", "floats"])
def exported(request, settings):
    """Returns a module, whether its input is ids, and its program with lengths."""
    torch.manual_seed(0)
    rnn, is_ids = RNN(D, H, C, **settings), request.param
    given = (inputs(is_ids, B, T), torch.tensor([7, 2, 5]))
    return rnn, is_ids, torch.export.export(rnn, given, dynamic_shapes=(DIMS, {0: DIMS[0]}))


def test_torch_export_at_another_batch_and_time(exported):
    rnn, is_ids, program = exported
    x = inputs(is_ids, 5, 11)
    torch.testing.assert_close(program.module()(x, LENGTHS), rnn(x, LENGTHS), rtol=0, atol=1e-6)


def test_torch_export_without_lengths(settings):
    rnn, x = RNN(D, H, C, **settings), inputs(True, 5, 11)
    program = torch.export.export(rnn, (inputs(True, B, T),), dynamic_shapes=(DIMS,))
    torch.testing.assert_close(program.module()(x), rnn(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str, indirect=True, scope="module")
def test_onnx_at_another_batch_and_time(tmp_path, exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rnn, is_ids, program = exported
    converted = torch.onnx.export(program, input_names=["x", "lengths"], dynamo=True, verbose=False)
    converted.save(tmp_path / "rnn.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "rnn.onnx")
    x = inputs(is_ids, 5, 11)
    (got,) = session.run(None, {"x": x.numpy(), "lengths": LENGTHS.numpy()})
    np.testing.assert_allclose(got, rnn(x, LENGTHS).detach().numpy(), rtol=0, atol=1e-6)
