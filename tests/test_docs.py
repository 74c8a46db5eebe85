"""The README: its commands run, its table is what the data give, every command is in it."""

import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise

import pytest
from click.testing import CliRunner
from conftest import ROOT

import rankscope as rs
from rankscope.cli import cli
from rankscope.tables import as_markdown

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in re.sub(r"^pip install .*? && ", "", block, flags=re.MULTILINE).splitlines()
    if line.startswith("rankscope")
]

# What is printed, with the first command of the block before it.
SHOWN = [
    (block.splitlines()[0].split("#")[0].strip(), lines)
    for (kind, block), (after, lines) in pairwise(
        re.findall(r"```(sh|text)\n(.*?)```", README, re.DOTALL)
    )
    if (kind, after) == ("sh", "text")
]


def test_two_commands_on_top():
    assert BLOCKS[0].startswith("pip install -e '.[notebooks]' && rankscope similarity data/")
    assert BLOCKS[1] == "pip install -e '.[test]' && pytest\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all commands, in their order: some go on with what others left."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data").symlink_to(ROOT / "data")
    return folder


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.split()[1] not in ("train", "reproduce", "notebook")]
)
def test_commands_run_as_written(command, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "118")
    result = CliRunner().invoke(cli, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout
    for line in dict(SHOWN).get(command, "").splitlines():
        assert " ".join(line.split()) in " ".join(result.stdout.split())


def test_every_output_has_its_command():
    assert len(SHOWN) == 8
    assert {command for command, _ in SHOWN} <= set(COMMANDS)


def test_python_block_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("name", cli.list_commands(None))
def test_every_command_is_in_the_readme_and_has_help(name):
    assert f"rankscope {name}" in README
    assert cli.get_command(None, name).help


@pytest.mark.parametrize(
    ("label", "a", "b"),
    [
        ("r = 8, r = 64", "sql-r8-seed0", "sql-r64-seed0"),
        ("r = 8, two seeds", "sql-r8-seed0", "sql-r8-seed1"),
        ("r = 64, two seeds", "sql-r64-seed0", "sql-r64-seed1"),
    ],
)
def test_the_numbers_in_the_table(data, label, a, b):
    lines = README.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {label} |"))
    table = rs.similarity(data / a, data / b).table
    for line, side in zip(lines[start : start + 2], ("right", "left"), strict=True):
        first, _, full, chance, shared = (
            float(cell.split()[0]) for cell in line.strip("|").split("|")[2:]
        )
        mean = table[table.side == side].mean(numeric_only=True)
        assert first == pytest.approx(mean.phi_first, abs=0.0051)
        assert full == pytest.approx(mean.phi_full, abs=0.0051)
        assert chance == pytest.approx(mean.chance_full, abs=0.0051)
        assert shared == pytest.approx(mean.shared_directions, abs=0.051)
        # The claims around the table: far above chance, and the random control at it.
        assert mean.phi_first > 50 / 256
    control = rs.similarity(data / a, data / b).random
    for row in control.itertuples():
        assert row.phi[-1, -1] == pytest.approx(table.chance_full[0], abs=0.05)


def test_the_table_of_formats_is_the_commands():
    assert as_markdown(rs.formats().table) in README


def test_the_changelog_names_this_version():
    assert f"**{rs.__version__}**" in README.split("## Changelog")[1]


def test_the_gallery_is_what_its_command_draws(place, monkeypatch):
    spec = spec_from_file_location("gallery", ROOT / "figures" / "gallery.py")
    gallery = module_from_spec(spec)
    spec.loader.exec_module(gallery)
    drawn = {command.split(" -o ")[1] for command in gallery.COMMANDS}
    assert drawn == set(re.findall(r"\((figures/gallery/.*?\.svg)\)", README))
    monkeypatch.chdir(place)
    gallery.write_rounded()
    for command in gallery.COMMANDS:
        asked, picture = command.split(" -o ")
        names = [(ROOT / picture).with_suffix(suffix) for suffix in (".svg", ".csv", ".json")]
        assert all(name.is_file() for name in names)
        result = CliRunner().invoke(cli, [*shlex.split(asked), "--dry-run"])
        assert result.exit_code == 0, result.output
