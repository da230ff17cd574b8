"""torch_rnn: the vanilla RNN, h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh), y = Why h[T] + by.

To read it, start at reference.py; then ops/eager.py, ops/bptt.py, nn/module.py and training/classifier.py.
"""

from torch_rnn.nn import compat
from torch_rnn.nn.module import RNN
from torch_rnn.ops import recurrence
from torch_rnn.reference import NumpyRNN

__all__ = ["RNN", "NumpyRNN", "compat", "recurrence"]
