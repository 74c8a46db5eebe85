"""``rankscope train``: a tiny model through the command line, from pre-training to comparison."""

import json

import pytest
from click.testing import CliRunner

from rankscope.cli import cli

TINY = "layers = 1\nwidth = 16\nsteps = 4\nbatch = 2\nheld_out = 2\nthreads = 1\n"


def run(*arguments):
    return CliRunner().invoke(cli, ["train", *map(str, arguments)], prog_name="rankscope")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    result = run("--config", tmp_path / "tiny.toml", "--out", tmp_path / "base")
    assert result.exit_code == 0, result.output
    assert "held-out mixture: loss" in result.stdout
    return tmp_path / "base"


def adapt(base, out, *flags):
    common = ["--base", base, "--steps", "4", "--batch", "2", "--threads", "1", "--seed", "3"]
    return run(*common, "--out", out, *flags)


def test_adapters_and_full_fine_tunes_are_read_by_the_other_commands(base, tmp_path):
    assert adapt(base, tmp_path / "r2", "--rank", "2", "--alpha", "4").exit_code == 0
    more = ["--rank", "full", "--save-at", "0,2"]
    assert adapt(base, tmp_path / "full", *more).exit_code == 0
    assert (tmp_path / "full" / "checkpoints" / "step-000002" / "model.safetensors").is_file()
    result = CliRunner().invoke(
        cli,
        [
            "similarity",
            str(tmp_path / "r2"),
            str(tmp_path / "full"),
            "--base",
            str(base),
            "--json",
        ],
    )
    rows = json.loads(result.stdout)["rows"]
    assert {row["module"] for row in rows} == {"blocks.0.attn.q", "blocks.0.attn.v"}
    info = CliRunner().invoke(cli, ["info", str(tmp_path / "r2"), "--json"])
    assert json.loads(info.stdout)["rows"][0]["scale"] == 2


def test_another_method_task_and_labels_are_chosen_by_flags(base, tmp_path):
    flags = ["--method", "IA3", "--task", "slots", "--difficulty", "1", "--labels", "shuffled"]
    result = adapt(base, tmp_path / "ia3", *flags, "--init-seed", "1", "--json")
    record = json.loads(result.stdout)["rows"][0]
    names = ("method", "task", "difficulty", "labels", "init_seed", "rank")
    assert [record["config"][name] for name in names] == [
        "IA3",
        "slots",
        1,
        "shuffled",
        1,
        None,
    ]
    assert set(record["evaluation"]) == {"slots", "mixture"}
    info = CliRunner().invoke(cli, ["info", str(tmp_path / "ia3"), "--base", str(base), "--json"])
    assert json.loads(info.stdout)["rows"][0]["modules"] == 3  # k, v and down of one block


def test_flags_go_before_the_file(base, tmp_path):
    (tmp_path / "x.toml").write_text('rank = 2\ntargets = ["o"]\nseed = 9\n')
    result = adapt(base, tmp_path / "x", "--config", tmp_path / "x.toml", "--json")
    record = json.loads(result.stdout)["rows"][0]
    assert record["config"]["seed"] == 3
    assert record["config"]["targets"] == ["o"]


def test_a_finished_run_is_not_overwritten_and_resumes_as_it_is(base, tmp_path):
    assert adapt(base, tmp_path / "r2", "--rank", "2").exit_code == 0
    again = adapt(base, tmp_path / "r2", "--rank", "2")
    assert again.exit_code == 1
    assert again.stderr.startswith("Error: ")
    assert run("--out", tmp_path / "r2", "--resume").exit_code == 0
    other = adapt(base, tmp_path / "r2", "--rank", "3", "--resume")
    assert other.exit_code == 1
    assert len(other.stderr.splitlines()) == 5


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--rank", "2"], 1),
        (["--base", "nowhere", "--rank", "2"], 1),
        (["--steps", "0"], 1),
        (["--rank", "half"], 2),
        (["--save-at", "x"], 2),
        (["--method", "chess"], 2),
        (["--method", "bias"], 1),
        (["--difficulty", "4"], 2),
        (["--difficulty", "1"], 1),
        (["--labels", "shuffled"], 1),
        (["--config", "nowhere.toml"], 1),
    ],
)
def test_bad_options(tmp_path, flags, code):
    result = run("--out", tmp_path / "x", *flags)
    assert result.exit_code == code
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x" / "run.json").exists()
