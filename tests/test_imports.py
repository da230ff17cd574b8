"""Imports point one way, and `import torch_rnn` is light."""

import ast
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "torch_rnn"
LEVELS = (  # a package imports from itself and from the levels above its own line
    {"devices", "errors", "lazy"},
    {"files"},
    {"reference", "ops"},
    {"losses", "negatives", "softmax", "testing"},
    {"nn"},
    {"data"},
    {"training", "benchmarks"},
    {"page"},
)


def imports() -> set[tuple[str, str]]:
    """Pairs of a package or module directly below torch_rnn and another one that it imports."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_rnn."):
                found.add((importer, node.module.split(".")[1]))
    return {(importer, imported) for importer, imported in found if importer != imported}


def test_imports_between_packages_point_one_way():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    names = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names - {"__init__"} == set(level)
    for importer, imported in imports():
        if importer != "__init__":
            assert level[imported] < level[importer], f"{importer} imports {imported}"


def test_import_is_light():
    code = (
        "import sys, torch_rnn; "
        "texts = ['TextClassifier', 'TextGenerator']; "
        "assert torch_rnn.__all__ == ['RNN', 'NumpyRNN', *texts, 'compat', 'recurrence']; "
        "assert callable(torch_rnn.recurrence); "
        "heavy = {'lightning', 'torchtext', 'matplotlib', 'rich', 'jsonargparse'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_import_changes_how_a_setting_is_read():
    """1 batch must not become 1.0, all batches: typing keeps the order of the first Union of both types."""
    code = (
        "import inspect, pkgutil, typing, torch_rnn.data; "
        "names = [module.name for module in pkgutil.iter_modules(torch_rnn.data.__path__)]; "
        "light = ['download', 'formats', 'progress', 'tokenizing', 'imdb']; "
        "assert set(light) < set(names); "
        "[__import__('torch_rnn.data.' + name) for name in light + names]; "
        "from lightning.pytorch import Trainer; "
        "batches = inspect.signature(Trainer).parameters['limit_test_batches'].annotation; "
        "assert typing.get_args(batches)[:2] == (int, float), batches"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """Such as that of a clone, in the folder that holds it."""
    (tmp_path / "torch_rnn").mkdir()
    command = [sys.executable, "-c", "import torch_rnn; print(torch_rnn.__version__, torch_rnn.RNN)"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert version("torch_rnn") == done.stdout.split()[0]
