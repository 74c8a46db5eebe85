"""A dask cluster on loopback: a scheduler and two workers as processes of their own."""

import json
import os
import threading
from pathlib import Path

import pytest
import work
from commands import COMMANDS, ONE, arguments_of, ask, with_files, write_sources
from loopback import loopback
from work import squares, study

from rankscope.analysis.engine import Task, cluster, run
from rankscope.errors import SourceError, UpdateError

pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.slow,
    # What dask leaves to the garbage collector, and its words about its own future.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("cluster")) as file:
        yield file


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


def content(result):
    return json.dumps(result.to_dict())


def test_the_same_bytes_as_in_process(scheduler):
    expected = content(run(study(squares(48)), {"threads": 1}))
    assert content(run(study(squares(48)), {"scheduler": str(scheduler)})) == expected


def test_by_its_address_and_by_the_environment(scheduler, monkeypatch):
    address = json.loads(scheduler.read_text())["address"]
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    tasks = [Task("where", work.process_of)]
    assert run(study(tasks), {}).table.value[0] != os.getpid()
    assert run(study(tasks), {"jobs": 1}).table.value[0] == os.getpid()


def test_an_item_that_kills_its_worker_is_reported(scheduler, tmp_path):
    tasks = [
        *squares(46),
        Task("killer", work.die, work=1e9),
        Task("fragile", work.die_once, (str(tmp_path / "marker"),), work=1e8),
    ]
    result = run(study(tasks), {"scheduler": str(scheduler)})
    assert len(result.table) == 47
    assert [failure["module"] for failure in result.failures] == ["killer"]
    assert "KilledWorker" in result.failures[0]["got"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gives_the_same_bytes(scheduler, command, sources, tmp_path):
    arguments = arguments_of(command, sources)
    expected = with_files(tmp_path / "here", *arguments, *ONE)
    assert with_files(tmp_path / "there", *arguments, "--scheduler", scheduler) == expected


def test_a_module_that_kills_its_worker_is_exit_3(scheduler, sources, monkeypatch):
    monkeypatch.setattr("rankscope.analysis.rank.rank_study", work.with_a_killer)
    arguments = (*arguments_of("rank-adapter", sources), "--json", "--scheduler", scheduler)
    result = ask(*arguments, code=3)
    assert len(json.loads(result.stdout)["rows"]) == 3
    assert "Error: layers.0.v_proj: the process that measured" in result.stderr


def test_what_cannot_travel(scheduler):
    tasks = [Task("a", work.square, (threading.Lock(),))]
    with pytest.raises(UpdateError, match="other process"):
        run(study(tasks), {"scheduler": str(scheduler)})


def test_other_versions_are_refused(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "_PACKAGES", ("rankscope", "numpy"))
    with pytest.raises(SourceError, match="other versions"):
        run(study(squares()), {"scheduler": str(scheduler)})


def test_a_file_that_workers_do_not_see(scheduler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = [{"path": "missing.safetensors"}]
    with pytest.raises(SourceError, match="does not see") as error:
        run(study(squares(), inputs=inputs), {"scheduler": str(scheduler)})
    assert str(tmp_path) in error.value.expected


def test_nobody_answers(tmp_path):
    with pytest.raises(SourceError, match="cannot be reached"):
        run(study(squares()), {"scheduler": "tcp://127.0.0.1:9"})
    file = tmp_path / "scheduler.json"
    file.write_text("{}")
    with pytest.raises(SourceError, match="cannot be reached"):
        run(study(squares()), {"scheduler": str(file)})
    assert Path(file).exists()
