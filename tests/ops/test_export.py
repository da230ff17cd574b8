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


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("is_ids", [True, False])
def test_torch_export_at_another_batch_and_time(is_ids, settings):
    rnn = RNN(D, H, C, **settings)
    given = (inputs(is_ids, B, T), torch.tensor([7, 2, 5]))
    program = torch.export.export(rnn, given, dynamic_shapes=(DIMS, {0: DIMS[0]}))
    x = inputs(is_ids, 5, 11)
    torch.testing.assert_close(program.module()(x, LENGTHS), rnn(x, LENGTHS), rtol=0, atol=1e-6)
    without = torch.export.export(rnn, given[:1], dynamic_shapes=(DIMS,))
    torch.testing.assert_close(without.module()(x), rnn(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
@pytest.mark.parametrize("is_ids", [True, False])
def test_onnx_at_another_batch_and_time(tmp_path, is_ids, settings):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rnn = RNN(D, H, C, **settings).eval()
    given = (inputs(is_ids, B, T), torch.tensor([7, 2, 5]))
    program = torch.onnx.export(
        rnn,
        given,
        dynamo=True,
        dynamic_shapes=(DIMS, {0: DIMS[0]}),
        input_names=["x", "lengths"],
        verbose=False,
    )
    program.save(tmp_path / "rnn.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "rnn.onnx")
    x = inputs(is_ids, 5, 11)
    (got,) = session.run(None, {"x": x.numpy(), "lengths": LENGTHS.numpy()})
    np.testing.assert_allclose(got, rnn(x, LENGTHS).detach().numpy(), rtol=0, atol=1e-6)
