"""The initial weights of an RNN."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_rnn.nn.module import RNN

INITS = ("orthogonal", "seed", "integrator")
ADDED = 0.02
"""The root mean square of what an integrator adds in a step, where that of the other units' states is 1."""


@torch.no_grad()
def draw_weights(rnn: "RNN") -> None:
    """Draws the weights of an RNN by its settings from torch's global generator."""
    for parameter in rnn.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
        elif rnn.init == "seed":
            nn.init.normal_(parameter, std=0.01)
        elif parameter.dtype is torch.bfloat16:  # has no orthogonal decomposition
            parameter.copy_(nn.init.orthogonal_(torch.empty_like(parameter, dtype=torch.float32)))
        else:
            nn.init.orthogonal_(parameter)
    for layer, directions in enumerate(rnn.names):
        for name in directions:
            Wxh, Whh = rnn.get_parameter("Wxh" + name), rnn.get_parameter("Whh" + name)
            if rnn.input_scale != 1 and layer == 0:
                Wxh.mul_(rnn.input_scale)
            if rnn.recurrent_scale != 1:
                Whh.mul_(rnn.recurrent_scale)
            if rnn.init == "integrator":
                _integrate(Wxh, Whh)


def _integrate(Wxh: Tensor, Whh: Tensor) -> None:
    """Turns the first quarter of the units into integrators, which the other units do not read.

    Each keeps its own state and adds a small random combination of the other units' states. Where its state
    is near 0, tanh is nearly linear, and the state is nearly their sum.
    """
    n = len(Whh) // 4
    others = len(Whh) - n
    Wxh[:n] = 0
    Whh[n:, :n] = 0
    Whh[:n, :n] = torch.eye(n, dtype=Whh.dtype, device=Whh.device)
    nn.init.normal_(Whh[:n, n:], std=ADDED / others**0.5)
