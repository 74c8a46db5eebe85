import os
import sys

import pytest
from click.testing import CliRunner

from rankscope.cli.group import cli
from rankscope.cli.notebook import _folder


@pytest.fixture
def started(monkeypatch):
    """What would have been started in place of the tests."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append(arguments))
    return calls


def test_jupyterlab_opens_in_the_folder_of_the_clone(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rankscope.cli.notebook.find_spec", lambda name: name)
    run = CliRunner().invoke(cli, ["notebook", "--", "--no-browser", "--port", "8899"])
    assert run.exit_code == 0, run.output
    folder = str(_folder())
    assert folder.endswith("notebooks")
    wanted = [sys.executable, "-m", "jupyterlab", folder, "--no-browser", "--port", "8899"]
    assert started == [wanted]


def test_without_jupyterlab_it_says_how_to_get_it(started, monkeypatch):
    monkeypatch.setattr("rankscope.cli.notebook.find_spec", lambda name: None)
    run = CliRunner().invoke(cli, ["notebook"])
    assert run.exit_code == 1
    assert not started
    assert "fix: pip install 'rankscope[notebooks]'" in run.stderr


def test_without_notebooks_it_says_what_to_do(started, monkeypatch, tmp_path):
    monkeypatch.setattr("rankscope.__file__", str(tmp_path / "site" / "rankscope" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(cli, ["notebook"])
    assert run.exit_code == 1
    assert not started
    assert len(run.stderr.splitlines()) == 5
    assert "clone the repository" in run.stderr


def test_the_clone_around_serves_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr("rankscope.__file__", str(tmp_path / "site" / "rankscope" / "__init__.py"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "1.ipynb").touch()
    monkeypatch.chdir(tmp_path)
    assert _folder() == tmp_path / "notebooks"
