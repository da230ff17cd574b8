"""The article's first example: its XOR table, and then addition itself; --help lists the settings."""

import re
import sys
from pathlib import Path

from torch_rnn import NumpyRNN
from torch_rnn.page import write_page
from torch_rnn.training import main

X_TRAIN, Y_TRAIN = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]


def xor() -> None:
    """The article's "binary addition", the sum without its carry, printed as the article prints it."""
    rnn = NumpyRNN(2, 16, 1)
    rnn.train(X_TRAIN, Y_TRAIN, epochs=1000, learning_rate=0.1)
    print("XOR, as in the article (x, y_true, y_pred):")
    for x, y_true in zip(X_TRAIN, Y_TRAIN, strict=True):
        print(x, y_true, rnn.predict(x))


if __name__ == "__main__":
    if not any(re.match("-h$|--help|--data.help|--print_config", argument) for argument in sys.argv):
        xor()
    sys.exit(main(Path(__file__).parents[1] / "configs" / "addition.yaml", page=write_page))
