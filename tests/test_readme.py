"""What the READMEs show works, and what they name is there."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "configs", "scripts", "tests", "torch_rnn")
READMES = {folder or ".": (ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in FOLDERS}
MAIN = READMES["."]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_python_of_the_main_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, module, notebook = blocks(MAIN, "python")
    names = {}
    exec(first, names)
    assert names["logits"].shape == (4, 1)
    assert names["h"].shape == (4, 7, 32)
    assert names["rnn"].Whh.grad is not None
    exec(module, names)
    assert names["output"].shape == (50, 8, 128)
    save_a_text_classifier(tmp_path / "runs" / "quickstart")
    exec(notebook, names)
    assert names["model"].probabilities(["a text"]).shape == (1, 2)


def save_a_text_classifier(folder):
    from torch_rnn import RNN

    folder.mkdir(parents=True)
    text = {"maxlen": 4, "vocabulary": ["<unk>", "good"]}
    RNN(2, 3, 1).save(folder / "model.safetensors", classes=["negative", "positive"], text=text)


@pytest.mark.parametrize("folder", [folder for folder in READMES if folder != "."])
def test_the_python_of_the_other_readmes_runs(folder):
    for block in blocks(READMES[folder], "python"):
        exec(block, {})


def test_the_main_readme_is_short_and_has_the_two_commands():
    text = re.sub(r"<!-- benchmark -->.*<!-- /benchmark -->", "", MAIN, flags=re.DOTALL)
    assert len(text.split()) <= 1300
    commands = [line for line in MAIN.splitlines() if line.startswith("pip install -c constraints.txt ")]
    assert commands == [
        "pip install -c constraints.txt -e . && "
        "python scripts/train_imdb.py --config configs/quickstart.yaml",
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("folder", READMES)
def test_links_and_pictures_lead_somewhere(folder):
    links = re.findall(r"\]\(([^)#]+)\)", READMES[folder])
    assert len(links) > 3
    missing = [link for link in links if "://" not in link and not (ROOT / folder / link).exists()]
    assert not missing


@pytest.mark.parametrize("folder", READMES)
def test_commands_can_be_pasted_and_name_files_that_exist(folder):
    for block in blocks(READMES[folder], "bash"):
        assert not re.search(r"\s\[|<\w+>|\.\.\.", block), block
        for word in shlex.split(block.replace("\\\n", " ")):
            if re.match(r"(scripts|configs|tests)/", word):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("folder", READMES)
def test_every_setting_in_a_command_exists(folder):
    from torch_rnn.training.cli import CLI
    from torch_rnn.training.language_model import LanguageModel

    named = set(re.findall(r"--((?:trainer|model|checkpoint)\.[a-z_]+)(?![\w.])", READMES[folder]))
    parser = CLI(["--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.accelerator=cpu"]).parser
    known = {action.dest for action in parser._actions}
    known |= {f"model.{name}" for name in inspect.signature(LanguageModel).parameters}
    assert not named - known


@pytest.mark.parametrize("folder", READMES)
def test_tables_have_the_same_number_of_cells_in_each_row(folder):
    table = []
    for line in [*READMES[folder].splitlines(), ""]:
        if line.startswith("|"):
            table.append(len(re.split(r"(?<!\\)\|", line)))
        else:
            assert len(set(table)) <= 1, line
            table = []


@pytest.mark.parametrize("folder", READMES)
def test_every_test_that_is_named_exists(folder):
    named = set(re.findall(r"`(test_\w+)`", READMES[folder]))
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in written]
    assert folder != "torch_rnn" or len(named) > 15


def test_every_script_and_configuration_is_described():
    for folder, pattern in (("scripts", "*.*"), ("configs", "*.yaml")):
        for path in (ROOT / folder).glob(pattern):
            if path.suffix in (".py", ".sbatch", ".yaml"):
                assert f"[{path.name}]({path.name})" in READMES[folder]


def test_the_equation_is_the_title_of_the_readme_the_reference_and_every_backend():
    equation = "h[t] = tanh("
    assert equation in MAIN[:200]
    assert equation in (ROOT / "torch_rnn/reference.py").read_text(encoding="utf-8")[:200]
    for backend in ("eager", "bptt", "cpu", "triton_backend", "scan"):
        assert equation in (ROOT / f"torch_rnn/ops/{backend}.py").read_text(encoding="utf-8")[:300]
