"""torch_rnn: the vanilla RNN, h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh), y = Why h[T] + by.

To read it, start at reference.py; then recurrence/eager.py, recurrence/bptt.py, rnn.py and classifier.py.
"""

from torch_rnn.recurrence import recurrence
from torch_rnn.reference import NumpyRNN
from torch_rnn.rnn import RNN

__all__ = ["RNN", "NumpyRNN", "recurrence"]
