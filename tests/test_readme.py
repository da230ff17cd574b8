"""What the README shows works, and what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    names = {}
    exec(blocks[0], names)
    assert names["logits"].shape == (4, 1)
    assert names["h"].shape == (4, 7, 32)
    for block in blocks[1:]:
        exec(block, names)
    assert names["output"].shape == (50, 8, 128)


def test_it_has_the_two_commands():
    commands = [line for line in README.splitlines() if line.startswith("pip install -c constraints.txt ")]
    assert commands == [
        "pip install -c constraints.txt -e . && "
        "python scripts/train_imdb.py --config configs/quickstart.yaml",
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ]


def test_every_file_that_it_names_exists():
    named = set(re.findall(r"(?:configs|scripts|tests|torch_rnn)/[\w/]+\.\w+", README))
    assert len(named) > 10
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_test_that_it_names_exists():
    named = set(re.findall(r"`(test_\w+)`", README))
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in written]


def test_the_equation_is_its_title_and_that_of_the_reference_and_of_every_backend():
    equation = "h[t] = tanh("
    assert equation in README[:200]
    assert equation in (ROOT / "torch_rnn/reference.py").read_text(encoding="utf-8")[:200]
    for backend in ("eager", "bptt", "cpu", "triton_backend", "scan"):
        assert equation in (ROOT / f"torch_rnn/ops/{backend}.py").read_text(encoding="utf-8")[:300]
