"""Every command gives the same bytes wherever and in however many pieces its work is done."""

import json
import os
import re
import subprocess
import sys

import pytest
import work
from commands import COMMANDS, ONE, arguments_of, ask, with_files, write_sources

import rankscope as rs
from rankscope.analysis import engine
from rankscope.errors import RankscopeError


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


def killed_after(path, items):
    """Cut a journal as the death of its process in the middle of a line does."""
    lines = path.read_bytes().split(b"\n")
    assert len(lines) > items + 2
    path.write_bytes(b"\n".join(lines[: items + 1]) + b"\n" + lines[items + 1][:20])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_bytes_in_pieces(command, sources, tmp_path):
    arguments = arguments_of(command, sources)
    expected = with_files(tmp_path / "whole", *arguments, *ONE)
    provenance = json.loads(expected[0])["provenance"]
    assert provenance["threads"] == 1

    journal = (*arguments, *ONE, "--journal", tmp_path / "j")
    assert with_files(tmp_path / "kept", *journal) == expected
    killed_after(tmp_path / "j" / "journal-1-of-1.jsonl", 2)
    left = json.loads(ask(*journal, "--resume", "--dry-run").stdout)
    assert (left["schema"], len(left["rows"])) == ("rankscope.plan/1", 2)
    assert with_files(tmp_path / "resumed", *journal, "--resume") == expected

    for shard in ("1/3", "2/3", "3/3"):
        ask(*arguments, *ONE, "--journal", tmp_path / "shards", "--shard", shard)
    assert with_files(tmp_path / "joined", "join", tmp_path / "shards") == expected


# One start of two processes for all commands: CI has better to do than to import torch.
def test_the_same_bytes_in_processes(sources, tmp_path, monkeypatch):
    for command in ("rank-pair", "similarity"):
        arguments = arguments_of(command, sources)
        expected = with_files(tmp_path / f"{command}-1", *arguments, *ONE)
        assert with_files(tmp_path / f"{command}-2", *arguments, "--jobs", "2") == expected


# Starting processes takes longest here: one more command stands for the others, which the
# cluster's tests send to other processes too.
@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare"])
def test_the_same_bytes_of_the_others_in_processes(command, sources, tmp_path):
    arguments = arguments_of(command, sources)
    expected = with_files(tmp_path / "1", *arguments, *ONE)
    assert with_files(tmp_path / "2", *arguments, "--jobs", "2") == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_plan_of_every_command(command, sources, tmp_path):
    plan = json.loads(ask(*arguments_of(command, sources), "--dry-run", "--json").stdout)
    assert plan["schema"] == "rankscope.plan/1"
    assert [row["module"] for row in plan["rows"]] == [
        f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qv"
    ]
    for row in plan["rows"]:
        assert min(row["bytes"], row["memory"], row["seconds"]) > 0
    shard = ask(*arguments_of(command, sources), "--dry-run", "--json", "--shard", "2/3")
    assert len(json.loads(shard.stdout)["rows"]) == 1


def test_the_bytes_of_a_plan_are_those_of_the_files(sources):
    plan = ask(*arguments_of("rank-pair", sources), "--dry-run", "--json").stdout
    assert {row["bytes"] for row in json.loads(plan)["rows"]} == {2 * 2 * 48 * 32}


class TestInMemory:
    def pair(self, sources):
        from safetensors.torch import load_file

        return load_file(sources["tuned"]), load_file(sources["base"])

    def test_in_processes(self, sources):
        tuned, base = self.pair(sources)
        one = rs.rank(tuned, base=base, threads=1)
        assert rs.rank(tuned, base=base, jobs=2).to_dict() == one.to_dict()

    def test_a_journal_is_refused(self, sources, tmp_path):
        tuned, base = self.pair(sources)
        with pytest.raises(RankscopeError, match="in memory"):
            rs.rank(tuned, base=base, journal=tmp_path / "j")
        with pytest.raises(RankscopeError, match="in memory"):
            rs.rank(tuned, base=sources["base"], journal=tmp_path / "j")
        assert not (tmp_path / "j").exists()


def test_one_of_two_checkpoints_has_changed(sources, tmp_path):
    """Headers tell two checkpoints of one shape not apart: journals key on the content."""
    tuned, base = (sources[name] for name in ("tuned", "base"))
    copy = tmp_path / "base.safetensors"
    copy.write_bytes(base.read_bytes())
    arguments = ("rank", tuned, "--base", copy, *ONE, "--journal", tmp_path / "j")
    ask(*arguments)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert "inputs whose content has changed" in ask(*arguments, "--resume", code=1).stderr


def test_a_log_file_gets_no_control_characters(sources, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "rankscope", *arguments_of("rank-pair", sources)],
            stdout=subprocess.DEVNULL,
            stderr=file,
            check=True,
        )
    written = log.read_bytes()
    assert written  # the notes
    assert all(byte >= 32 or byte == 10 for byte in written)


def test_quiet_is_silent(sources):
    result = ask(*arguments_of("similarity", sources), "-q")
    assert (result.stdout, result.stderr) == ("", "")


def test_memory_names_the_module_that_does_not_fit(sources):
    result = ask(*arguments_of("rank-pair", sources), "--memory", "100MB", code=1)
    assert "where: layers." in result.stderr
    assert re.search(r"fix: give --memory [0-9.]+GB", result.stderr)


def test_a_module_that_kills_its_process_is_exit_3(sources, monkeypatch):
    monkeypatch.setattr("rankscope.analysis.rank.rank_study", work.with_a_killer)
    result = ask(*arguments_of("rank-adapter", sources), "--json", "--jobs", "2", code=3)
    rows = json.loads(result.stdout)["rows"]
    assert [row["module"] for row in rows] == [
        "layers.0.q_proj",
        "layers.1.q_proj",
        "layers.1.v_proj",
    ]
    assert "Error: layers.0.v_proj: the process that measured" in result.stderr


INTERRUPTED = """
import sys
sys.path[:0] = {path!r}
import work
from rankscope.cli import cli, rank
from rankscope.analysis import rank as analysis

def slow(*arguments, **options):
    tasks = [*work.squares(3), work.Task("slow", work.wait_for, ({marker!r},))]
    return work.study(tasks, inputs=arguments[0].inputs)

if __name__ == "__main__":
    analysis.rank_study = slow
    cli(["rank", {source!r}, "--jobs", "2", "--journal", {journal!r}], prog_name="rankscope")
"""


def test_an_interrupt_is_130_and_the_journal_stays(sources, tmp_path):
    import signal
    import time

    script, journal = tmp_path / "script.py", tmp_path / "j" / "journal-1-of-1.jsonl"
    script.write_text(
        INTERRUPTED.format(
            path=sys.path,
            marker=str(tmp_path / "never"),
            source=str(sources["a"]),
            journal=str(journal.parent),
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") == 4):
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, "Interrupted.")
    assert journal.read_bytes().count(b"\n") == 4


def test_every_remote_file_counts():
    from rankscope.analysis.engine.study import Study

    records = [{"path": None, "address": f"hf://a/b/{n}", "commit": "c"} for n in (1, 2)]
    about = {"provenance": {"inputs": {"source": records, "base": records}}}
    assert Study("rank", [], about, engine.finished).inputs == records
