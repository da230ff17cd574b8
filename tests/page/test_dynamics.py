"""States, slow points, gradients by distance and eigenvalues: against autograd and what is known exactly."""

import numpy as np
import pytest
import torch
from made_runs import make_run

from torch_rnn.data.batches import lengths_of
from torch_rnn.losses import cross_entropy
from torch_rnn.nn.module import RNN
from torch_rnn.page import memory as memory_module
from torch_rnn.page.finished import read_run
from torch_rnn.page.memory import gradient_norms, gradient_rows, initial, memory, reaching, state_gradients
from torch_rnn.page.predictions import predict_test
from torch_rnn.page.slow_points import Dynamics, Layer, dynamics, minimise, slow_points, spectra
from torch_rnn.page.states import joint_states, plane, sample
from torch_rnn.training.cli import CLI


def random_rnn(**settings):
    torch.manual_seed(5)
    rnn = RNN(20, 6, 1, dtype=torch.float64, **settings).eval()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return rnn


def numbers(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "linear"])
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_the_dynamics_are_a_step_of_the_rnn_with_a_constant_input(layers, nonlinearity):
    rnn = random_rnn(num_layers=layers, nonlinearity=nonlinearity)
    s = torch.randn(4, layers * 6, dtype=torch.float64)
    h0 = s.reshape(4, layers, 6).transpose(0, 1)
    mean = torch.rand(20, dtype=torch.float64) / 10
    for x in (None, mean):
        system, Wxh = dynamics(rnn, x), rnn.Wxh.clone()
        rnn.Wxh[:, 0] = 0 if x is None else Wxh @ x  # the id 0 stands for the input
        _, last = rnn.states(torch.zeros(4, 1, dtype=torch.long), h0=h0 if layers > 1 else h0[0], final=True)
        rnn.Wxh.copy_(Wxh)
        last = last.reshape(layers, 4, 6).transpose(0, 1).reshape(4, -1)
        assert (system.step(s) - last).abs().max() < 1e-12
        for row, found in zip(s, spectra(system, s), strict=True):
            unit = 1e-6 * torch.eye(len(row), dtype=torch.float64)
            J = (system.step(row + unit) - system.step(row - unit)).T / 2e-6
            values = np.linalg.eigvals(J.numpy())
            distances = np.abs(values[:, None] - [complex(*pair) for pair in found])
            assert max(distances.min(axis=0).max(), distances.min(axis=1).max()) < 1e-5
            assert [abs(complex(*pair)) for pair in found] == pytest.approx(
                sorted(np.abs(values))[::-1], abs=1e-5
            )


def test_slow_points_lie_along_a_line_attractor():
    # Whh keeps the first unit and lets the second one fade: every state (a, 0) is a fixed point.
    system = Dynamics([Layer(None, numbers([[1, 0], [0, 0.3]]), numbers([0, 0]))], "linear")
    starts = torch.rand(20, 2, dtype=torch.float64) * 2 - 1
    found = slow_points(system, starts)
    assert len(found["s"]) == 20
    assert found["s"][:, 1].abs().max() < 1e-2
    spread = np.ptp(found["s"][:, 0].numpy())
    assert spread > 0.8 * np.ptp(starts[:, 0].numpy())  # each stays near its start
    assert found["eigenvalues"][0] == [[1, 0], [pytest.approx(0.3), 0]]


def test_slow_points_of_two_attractors_are_found_and_those_that_coincide_are_one():
    system = Dynamics([Layer(None, numbers([[2]]), numbers([0]))], "tanh")
    s = minimise(system, numbers([[0.8], [-0.7], [0.9], [0.01]]))
    assert (system.step(s) - s).abs().max() < 1e-3
    fixed = 0.9575040  # tanh(2 h) = h
    assert (s[:3, 0].abs() - fixed).abs().max() < 1e-3
    assert len(slow_points(system, numbers([[0.8], [-0.7], [0.9], [0.85]]))["s"]) <= 3


def test_slow_points_of_several_layers_are_those_of_all_of_them():
    system = dynamics(random_rnn(num_layers=3), torch.full((20,), 0.05, dtype=torch.float64))
    found = slow_points(system, torch.randn(12, 18, dtype=torch.float64))
    assert 1 <= len(found["s"]) <= 12
    assert (system.step(found["s"]) - found["s"]).abs().max() < 3e-3
    assert [len(values) for values in found["eigenvalues"]] == [18] * len(found["s"])
    assert found["q"] == pytest.approx(
        (0.5 * ((system.step(found["s"]) - found["s"]) ** 2).sum(dim=1)).tolist()
    )
    assert len(slow_points(system, found["s"], apart=100)["s"]) == 1


def test_where_a_direction_depends_on_another_there_are_no_slow_points():
    assert dynamics(random_rnn(num_layers=2, bidirectional=True)) is None
    assert len(dynamics(random_rnn(bidirectional=True)).layers) == 1
    assert dynamics(RNN(2, 600, 1)) is None


def test_principal_components_are_those_of_the_covariance():
    h = np.random.default_rng(2).normal(size=(200, 5)) * [3, 2, 1, 0.5, 0.1]
    flat = plane(h)
    values = np.linalg.eigvalsh(np.cov(h.T))[::-1]
    assert flat.explained == pytest.approx((values / values.sum())[:2])
    assert flat.project(h).var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert plane(np.ones((3, 1))).project(np.ones((2, 1))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_the_sampled_states_are_those_of_the_rnn(tmp_path, settings):
    run = read_run(tmp_path, make_run(tmp_path, **settings).data)
    drawn = sample(run, predict_test(run))
    assert len(drawn.h) == len(drawn.places)
    for k in (0, len(drawn.h) // 2, len(drawn.h) - 1):
        number, t = drawn.places[k]
        x = torch.from_numpy(run.data.splits["test"][0][number]).long()
        assert np.abs(drawn.h[k] - run.rnn.states(x)[t, :12].detach().numpy()).max() < 1e-5
        p = torch.sigmoid(run.rnn(x)).item()
        assert drawn.said[k] == pytest.approx([1 - p, p], abs=1e-5)
        assert drawn.last[k] == (t == len(x) - 1)
    joint = joint_states(run, drawn.places)
    assert joint.shape[1] == 12 * run.rnn.num_layers
    if not run.rnn.bidirectional or run.rnn.num_layers == 1:
        assert np.abs(joint[:, -12:] - drawn.h).max() < 1e-5


@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 2}, {"readout": "mean"}, {"readout": "max"}], ids=str
)
def test_state_gradients_agree_with_differences(settings):
    rnn = random_rnn(**settings)
    x, lengths = torch.randint(20, (2, 7)), torch.tensor([7, 4])
    labels = torch.tensor([1, 0])
    (gradient,) = state_gradients(rnn, x, lengths, labels)
    assert gradient.shape == (2, 7, 6)
    assert gradient[1, 4:].abs().max() == 0 or rnn.readout == "last"
    if rnn.num_layers > 1 or rnn.readout != "last":
        return
    with torch.no_grad():  # continue from a changed state
        for t, unit in ((0, 0), (3, 2), (6, 5)):
            h, losses = rnn.states(x[0])[t], []
            for step in (1e-6, -1e-6):
                h0 = h.clone()
                h0[unit] += step
                rest = x[:1, t + 1 :]
                logits = rnn(rest, h0=h0[None]) if rest.shape[1] else h0[None] @ rnn.Why.t() + rnn.by
                losses.append(cross_entropy(logits, labels[:1]).item())
            assert gradient[0, t, unit].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-8)


def test_the_gradient_of_a_rotation_does_not_vanish_and_that_of_a_contraction_halves(tmp_path):
    run = read_run(tmp_path, make_run(tmp_path, nonlinearity="linear").data)
    rows = np.arange(30)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            run.rnn.Whh.copy_(factor * torch.linalg.qr(torch.randn(12, 12))[0])
        (curve,) = gradient_norms(run.rnn, run, rows)
        norms = np.array(curve["norms"][:6])
        assert curve["distances"][0] == 0
        assert norms[1:] / norms[:-1] == pytest.approx(np.full(5, factor), rel=1e-4)


def test_each_distance_is_averaged_over_the_same_sequences(tmp_path):
    made = make_run(tmp_path)
    run = read_run(tmp_path, made.data)
    lengths = lengths_of(made.data.splits["test"][0])
    found = memory(run, predict_test(run))
    rows = reaching(gradient_rows(run, predict_test(run)), run)
    assert found["sequences"] == len(rows) >= 20
    (curve,) = found["gradients"]["after"]
    assert curve["distances"] == list(range(lengths[rows].min()))
    norms = []
    for row in rows:
        x = torch.from_numpy(made.data.splits["test"][0][row]).long()[None]
        label = torch.tensor([made.data.splits["test"][1][row]])
        (gradient,) = state_gradients(run.rnn, x, torch.tensor([x.shape[1]]), label)
        norms.append(gradient[0].norm(dim=1).flip(0)[: len(curve["norms"])])
    assert curve["norms"] == pytest.approx(torch.stack(norms).mean(dim=0).tolist(), rel=1e-5)


def test_where_the_state_moves_on_there_is_no_slow_point():
    """h -> tanh(1.5 h + 0.222) has one fixed point; near -0.587 it moves on by 0.01 a step, with J = 1."""
    system = Dynamics([Layer(None, numbers([[1.5]]), numbers([0.222]))], "tanh")
    s = minimise(system, numbers([[-0.8], [0.9]]))
    q = 0.5 * ((system.step(s) - s) ** 2)[:, 0]
    assert q.tolist() == pytest.approx([4.64e-5, 0], abs=1e-6)
    assert system.jacobian(system.layers[0], system.step(s[:1])).item() == pytest.approx(1, abs=1e-4)
    assert slow_points(system, s)["s"].tolist() == [[pytest.approx(0.922, abs=1e-3)]]


def test_the_initial_weights_of_a_run_that_started_from_another_are_its(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", readout="mean")
    run = read_run(second.folder, second.data)
    run.settings["model"]["start_from"] = str(first.folder)
    assert torch.equal(initial(run).Whh, first.rnn.Whh)
    run.settings["model"]["start_from"] = str(tmp_path / "gone")
    assert initial(run) is None
    assert memory(run, predict_test(run))["gradients"].keys() == {"after"}


@pytest.mark.parametrize("members", [1, 2])
def test_the_initial_weights_are_drawn_again_from_the_seed(tmp_path, members):
    made = make_run(tmp_path, num_layers=2, init="integrator")
    arguments = ["--config", "configs/quickstart.yaml", "--model.init", "integrator"]
    arguments += ["--trainer.accelerator", "cpu", "--model.num_layers", "2"]
    sizes = [f"--data.{split}={n}" for split, n in (("train", 48), ("validation", 10), ("test", 40))]
    cli = CLI([*arguments, *sizes, "--model.hidden_size", "12", f"--model.members={members}"])
    run = read_run(tmp_path, made.data)
    run.settings["model"]["members"] = members
    drawn = initial(run)
    state = cli.model.rnn.state_dict()
    assert state.keys() == drawn.state_dict().keys()
    for name, value in drawn.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, [""]),
        ({"num_layers": 2}, ["layer 1", "layer 2"]),
        ({"bidirectional": True}, ["forward", "backward"]),
        (
            {"num_layers": 2, "bidirectional": True},
            ["layer 1 forward", "layer 1 backward", "layer 2 forward", "layer 2 backward"],
        ),
    ],
    ids=str,
)
def test_each_Whh_has_its_name_and_its_eigenvalues(settings, names):
    rnn = random_rnn(**settings)
    found = memory_module.spectra({"after": rnn})
    assert [one["name"] for one in found] == names
    for one, name in zip(found, [name for layer in rnn.names for name in layer], strict=True):
        values = np.linalg.eigvals(getattr(rnn, f"Whh{name}").detach().numpy())
        assert np.sort_complex([complex(*pair) for pair in one["after"]]) == pytest.approx(
            np.sort_complex(values), abs=1e-12
        )
