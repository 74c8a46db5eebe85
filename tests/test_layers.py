"""The rooms: imports point down, and light imports stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

import rankscope

HEAVY = ("torch", "scipy", "pandas", "matplotlib", "seaborn")


def loaded_after(code):
    """Which heavy packages a fresh interpreter has loaded after running `code`."""
    probe = f"{code}\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1].split()


def test_imports_point_down():
    pytest.importorskip("importlinter")
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_importing_the_package_and_its_command_loads_nothing_heavy():
    assert loaded_after("import rankscope, rankscope.cli") == []


@pytest.mark.parametrize("arguments", [["--help"], ["similarity", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "from rankscope.cli import cli\n"
        f"try:\n    cli.main({arguments!r}, prog_name='rankscope')\n"
        "except SystemExit as end:\n    assert end.code == 0"
    )
    assert loaded_after(code) == []


def test_readers_need_neither_peft_nor_transformers():
    code = "import rankscope as rs; rs.open_updates\nimport sys\n"
    code += "assert not {'peft', 'transformers'} & set(sys.modules)"
    assert "torch" in loaded_after(code)


@pytest.mark.parametrize("name", rankscope.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(rankscope, name)
    assert name in dir(rankscope)
    if callable(value):
        assert value.__doc__
        assert len(value.__doc__) > 30


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rankscope.nothing


def test_no_module_bears_the_name_of_a_public_function():
    folder = Path(rankscope.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert not modules & set(rankscope.__all__)
