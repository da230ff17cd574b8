"""Replays of steps, where a test asks for them."""

from types import SimpleNamespace

import pytest
from graphed_trials import record, record_step

from torch_rnn.training import trained_rnn
from torch_rnn.training.graphed import GraphedPasses, GraphedUpdate


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
