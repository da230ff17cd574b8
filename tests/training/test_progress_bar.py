"""The progress bar in a terminal of 80 columns."""

import re
from contextlib import redirect_stdout
from io import StringIO

from trials import CONFIG, SMALL, arguments

from torch_rnn.training import main


def test_the_bar_fits_on_one_line_and_names_the_last_scores(tmp_path):
    console = ["--trainer.callbacks=torch_rnn.training.ProgressBar", "--trainer.callbacks.refresh_rate=1"]
    console += ['--trainer.callbacks.console_kwargs={"width": 80, "force_terminal": true}']
    settings = SMALL | {"trainer.max_epochs": 3, "trainer.enable_progress_bar": True}
    with redirect_stdout(StringIO()) as output:
        assert main(CONFIG, [*arguments(tmp_path / "run", settings), *console]) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown) if line.startswith("Epoch")]
    assert max(map(len, lines)) <= 80
    assert re.search(r"^Epoch 2/2 .* \d+/\d+ .*it/s loss: \d\.\d+ val: \d\.\d+ acc: \d\.\d+$", lines[-1])
    assert not re.search(r"^ *(val|acc):", shown, re.MULTILINE)  # which would be a second line
