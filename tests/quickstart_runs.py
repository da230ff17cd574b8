"""Short runs of the quickstart, for tests of the command line."""

from pathlib import Path

from torch_rnn.training import main

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = [
    *("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "2"),
    *("--data.train", "300", "--data.validation", "100", "--data.test", "100"),
]


def quickstart(folder: Path, *arguments: str) -> int:
    """Runs the quickstart with less data; returns its exit status."""
    config = CONFIGS / "quickstart.yaml"
    folder = ["--trainer.default_root_dir", str(folder)]
    return main(config, ["--config", str(config), *SHORT, *folder, *arguments])
