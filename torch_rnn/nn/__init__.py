"""The modules around the recurrence: x or ids -> states -> logits.

`RNN` holds the weights and the readout, `initial` draws them, `layers` stacks recurrences in one direction or
two, `compat.RNN` takes the place of torch.nn.RNN, `convert` and `weights` move weights to other libraries and
to files, and `members` makes one RNN of several.
"""

from torch_rnn.nn import compat
from torch_rnn.nn.members import joined
from torch_rnn.nn.module import RNN

__all__ = ["RNN", "compat", "joined"]
