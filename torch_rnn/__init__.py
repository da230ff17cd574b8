"""torch_rnn: the vanilla RNN, h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh), y = Why h[T] + by.

Start at reference.py, the whole model in NumPy. Then, from below: ops computes the recurrence, nn has the
module around it, data turns texts into batches, training fits a module to them, benchmarks compares it.
"""

from torch_rnn.nn import RNN, compat
from torch_rnn.ops import recurrence
from torch_rnn.reference import NumpyRNN

__all__ = ["RNN", "NumpyRNN", "compat", "recurrence"]
