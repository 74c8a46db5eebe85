"""The engine: the same rows wherever the work is done, and nothing lost when it is not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import work
from work import squares, study

from rankscope.analysis.engine import Task, planned, run
from rankscope.analysis.engine.codec import decode, encode
from rankscope.analysis.engine.journal import Journal, read
from rankscope.analysis.engine.memory import BASE, room_for
from rankscope.analysis.engine.pools import in_processes, on_executor
from rankscope.analysis.engine.task import perform
from rankscope.errors import OutputError, RankscopeError, SourceError, UpdateError


def content(result):
    return json.dumps(result.to_dict())


@pytest.fixture(scope="module")
def expected():
    return content(run(study(squares()), {}))


class TestEverywhereAlike:
    def test_in_natural_order(self, expected):
        rows = json.loads(expected)["rows"]
        assert [row["value"] for row in rows] == [i**2 for i in range(12)]

    def test_on_an_executor(self, expected):
        with ThreadPoolExecutor(3) as executor:
            assert content(run(study(squares()), {"executor": executor})) == expected
            assert executor.submit(int, "3").result() == 3  # it stays open

    def test_in_processes_with_memory_for_one_at_a_time(self):
        size = 10**9
        tasks = [Task(t.item, t.function, t.arguments, t.work, memory=size) for t in squares()]
        room = int(1.5 * size)
        found = list(in_processes(tasks[:4], 2, 1, room))
        assert sorted(one.item for one in found) == [f"m.{i}" for i in range(4)]

    def test_with_a_journal(self, expected, tmp_path):
        assert content(run(study(squares()), {"journal": tmp_path / "j"})) == expected

    def test_no_items_is_an_empty_table(self):
        assert run(study([]), {}).table.empty


class TestFailures:
    def test_one_item_costs_no_other(self):
        tasks = [*squares(4), Task("bad", work.refuse), Task("odd", work.stumble)]
        result = run(study(tasks), {})
        assert len(result.table) == 4
        assert [failure["module"] for failure in result.failures] == ["bad", "odd"]
        assert "ZeroDivisionError: by zero" in result.failures[1]["got"]

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
    def test_memory_that_is_full_is_named(self, error):
        result = run(study([*squares(2), Task("big", work.fill, (error,), memory=9 * 10**9)]), {})
        [failure] = result.failures
        assert "not enough memory" in failure["what"]
        assert "--memory" in failure["fix"]
        assert failure["expected"] == "about 9.0 GB"

    def test_a_module_too_large_for_the_device_is_measured_on_the_cpu(self, tmp_path):
        tasks = [Task(f"m.{i}", work.fit, (10 * i,), device="cuda:0") for i in range(4)]
        result = run(study(tasks), {"journal": tmp_path})
        assert list(result.table.device) == ["cuda:0", "cuda:0", "cpu", "cpu"]
        assert result.notes == ("measured on the CPU, since the device had no room: m.2, m.3",)
        again = run(study(tasks), {"journal": tmp_path, "resume": True})
        assert again.notes == result.notes

    def test_a_module_too_large_for_the_cpu_as_well_fails(self):
        result = run(study([*squares(1), Task("big", work.fit, (99,), device="cuda:0")]), {})
        assert "not enough memory" in result.failures[0]["what"]

    def test_all_failures_are_the_first_one(self):
        with pytest.raises(UpdateError, match="no"):
            run(study([Task("bad", work.refuse), Task("odd", work.stumble)]), {})

    def test_a_killed_worker_costs_at_most_its_own_item(self, tmp_path):
        tasks = [
            Task("fragile", work.die_once, (str(tmp_path / "marker"),), work=1e9),
            Task("killer", work.die, work=1e6),
            *squares(6),
        ]
        result = run(study(tasks), {"jobs": 2})
        assert set(result.table.module) == {"fragile", *(f"m.{i}" for i in range(6))}
        assert [failure["module"] for failure in result.failures] == ["killer"]
        assert "died, twice" in result.failures[0]["what"]

    def test_what_cannot_travel_is_an_error(self):
        tasks = [Task("a", work.square, (threading.Lock(),))]
        with pytest.raises(RankscopeError, match="other process"):
            run(study(tasks), {"jobs": 2})


class TestJournal:
    def test_a_second_run_does_only_what_is_left(self, tmp_path, expected):
        def logged(broken):
            return [
                Task(f"m.{i}", work.refuse)
                if i in broken
                else Task(f"m.{i}", work.log_and_square, (i, str(tmp_path)))
                for i in range(12)
            ]

        run(study(logged({3, 4})), {"journal": tmp_path / "j"})
        assert len((tmp_path / "done").read_text().split()) == 10
        # What failed is tried again.
        result = run(study(logged(())), {"journal": tmp_path / "j", "resume": True})
        assert sorted((tmp_path / "done").read_text().split()[10:]) == ["m.3", "m.4"]
        assert content(result) == expected

    @pytest.mark.parametrize("cut", [1, 40, 400])
    def test_a_cut_line_is_done_again(self, tmp_path, expected, cut):
        run(study(squares()), {"journal": tmp_path})
        path = tmp_path / "journal-1-of-1.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        assert content(run(study(squares()), {"journal": tmp_path, "resume": True})) == expected
        assert len(read(path)[1]) == 12

    def test_a_cut_first_line_begins_again(self, tmp_path, expected):
        path = tmp_path / "journal-1-of-1.jsonl"
        path.write_text('{"schema": "rankscope.jour')
        assert content(run(study(squares()), {"journal": tmp_path, "resume": True})) == expected

    def test_another_journal_is_not_overwritten(self, tmp_path):
        run(study(squares()), {"journal": tmp_path})
        with pytest.raises(OutputError, match="already"):
            run(study(squares()), {"journal": tmp_path})

    @pytest.mark.parametrize("other", ["options", "items", "content"])
    def test_a_journal_of_another_run_is_refused(self, tmp_path, other):
        file = tmp_path / "input"
        file.write_text("one")
        inputs = [{"path": str(file)}]
        run(study(squares(), inputs=inputs), {"journal": tmp_path / "j"})
        if other == "content":
            file.write_text("two")
        changed = study(
            squares(13 if other == "items" else 12),
            inputs=inputs,
            options={"k": 3} if other == "options" else {},
        )
        with pytest.raises(OutputError, match="of another run"):
            run(changed, {"journal": tmp_path / "j", "resume": True})

    def test_a_damaged_line_is_an_error(self, tmp_path):
        run(study(squares()), {"journal": tmp_path})
        path = tmp_path / "journal-1-of-1.jsonl"
        lines = path.read_text().splitlines()
        lines[3] = lines[3][:-5]
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(SourceError, match="damaged"):
            run(study(squares()), {"journal": tmp_path, "resume": True})

    def test_what_is_in_memory_has_no_journal(self, tmp_path):
        with pytest.raises(SourceError, match="in memory"):
            run(study(squares(), inputs=[{"path": None}]), {"journal": tmp_path})

    def test_a_full_disk_is_an_error_that_keeps_what_is_there(self):
        if not os.path.exists("/dev/full"):  # noqa: PTH110
            pytest.skip("no /dev/full")
        journal = object.__new__(Journal)
        journal.path, journal._synced = "/dev/full", 0.0
        journal._file = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(OutputError, match="no space left"):
            journal.append(perform(squares(1)[0], 1))
        os.close(journal._file)

    def test_another_number_of_threads_is_named(self, tmp_path):
        run(study(squares()), {"journal": tmp_path, "threads": 1})
        with pytest.raises(OutputError) as error:
            run(study(squares()), {"journal": tmp_path, "threads": 2, "resume": True})
        assert error.value.got == "threads 1 then, 2 now"

    def test_of_the_hub_keys_on_the_commit(self, tmp_path):
        def remote(commit, sha256):
            one = {"path": None, "address": "hf://a/b", "commit": commit, "sha256": sha256}
            return study(squares(), inputs=[one, {**one, "address": "hf://a/c"}])

        assert len(remote("c0ffee", "1").inputs) == 2
        run(remote("c0ffee", "1"), {"journal": tmp_path})
        run(remote("c0ffee", "1"), {"journal": tmp_path, "resume": True})
        with pytest.raises(OutputError, match="of another run"):
            run(remote("decade", "1"), {"journal": tmp_path, "resume": True})

    def test_the_journal_is_closed_when_it_is_refused(self, tmp_path):
        fcntl = pytest.importorskip("fcntl")
        path = tmp_path / "journal-1-of-1.jsonl"
        with path.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            before = len(os.listdir("/dev/fd"))  # noqa: PTH208
            with pytest.raises(OutputError, match="in use"):
                run(study(squares()), {"journal": tmp_path})
            assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
        assert not path.read_bytes()


class TestMemory:
    GB = 10**9

    def tasks(self, *gigabytes):
        return [Task(f"m.{i}", work.square, (i,), memory=g * self.GB)
                for i, g in enumerate(gigabytes)]  # fmt: skip

    def test_as_many_processes_as_work_at_once(self, monkeypatch):
        # What this process holds depends on the tests before.
        monkeypatch.setattr("rankscope.analysis.engine.memory._held", lambda: BASE)
        free = BASE + 4 * BASE + 4 * self.GB
        room = room_for(self.tasks(4, 1, 1, 1, 1), 4, max(free, 6 * self.GB))
        assert (room.jobs, room.notes) == (4, [])
        assert room_for(self.tasks(4, 4, 4), 2, 6 * self.GB).jobs == 1
        assert room_for(self.tasks(9), 3, None).memory is None

    def test_fewer_processes_are_a_note(self):
        result = run(study(self.tasks(3, 3)), {"jobs": 2, "memory": 5 * self.GB})
        assert result.notes == ("5 GB of memory have room for 1 of 2 processes",)

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_what_cannot_fit_is_named_before_the_work(self, jobs):
        with pytest.raises(UpdateError, match="does not fit") as error:
            run(study(self.tasks(1, 7, 2)), {"jobs": jobs, "memory": 4 * self.GB})
        assert error.value.where == "m.1"
        needed = float(error.value.fix.split("--memory ")[1].split("GB")[0])
        assert 7 + BASE / self.GB <= needed < 10
        run(study(self.tasks(1, 7, 2)), {"memory": int(needed * self.GB)})

    def test_other_machines_are_not_bounded(self):
        with ThreadPoolExecutor(1) as executor, pytest.raises(UpdateError, match="not in this"):
            run(study(squares()), {"executor": executor, "memory": 4 * self.GB})


class TestPlan:
    def test_only_what_is_left_of_a_shard(self, tmp_path):
        how = {"journal": tmp_path / "j", "shard": (1, 2)}
        assert planned(study(squares()), how).table.module.tolist() == [
            f"m.{i}" for i in range(0, 12, 2)
        ]
        assert not (tmp_path / "j").exists()
        tasks = [Task("m.4", work.refuse) if t.item == "m.4" else t for t in squares()]
        tasks = [Task(t.item, t.function, t.arguments, float(12 - i)) for i, t in enumerate(tasks)]
        run(study(tasks), how)
        left = planned(study(squares()), {**how, "resume": True})
        assert left.table.module.tolist() == ["m.4"]
        assert left.notes[0].startswith("1 items")

    def test_refused_as_the_run_would_be(self, tmp_path):
        run(study(squares()), {"journal": tmp_path})
        with pytest.raises(OutputError, match="already"):
            planned(study(squares()), {"journal": tmp_path})
        with pytest.raises(UpdateError, match="does not fit"):
            planned(study(TestMemory().tasks(9)), {"memory": 2 * 10**9})


class _Flaky(ThreadPoolExecutor):
    """Loses some work as dask does when a worker dies: once, or whenever it is given."""

    def __init__(self, once=(), always=()):
        super().__init__(1)
        self.once, self.always = set(once), always

    def submit(self, function, task, *arguments):
        if task.item in self.always or task.item in self.once:
            self.once.discard(task.item)
            future = Future()
            future.set_exception(type("KilledWorker", (Exception,), {})(task.item))
            return future
        return super().submit(function, task, *arguments)


class TestExecutors:
    def test_what_was_lost_beside_a_killer_is_done_again(self):
        with _Flaky(once={"m.1", "m.2"}, always={"m.5"}) as executor:
            found = {one.item: one for one in on_executor(squares(), executor, 1)}
        assert len(found) == 12
        assert [item for item, one in found.items() if one.error is not None] == ["m.5"]

    def test_an_executor_that_has_ended(self):
        class Ended(ThreadPoolExecutor):
            def submit(self, function, *arguments):
                future = Future()
                future.cancel()
                future.set_running_or_notify_cancel()
                return future

        with Ended(1) as executor, pytest.raises(SourceError, match="dropped"):
            run(study(squares()), {"executor": executor})


def test_threads_stay_as_they_were():
    before = torch.get_num_threads()
    result = run(study(squares()), {"threads": before + 1})
    assert result.provenance["threads"] == before + 1
    assert run(study(squares()), {}).provenance["threads"] == before


def test_a_script_without_a_main_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(path=sys.path))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["no other process can be started"]


UNGUARDED = """
import sys
sys.path[:0] = {path!r}
import work
from rankscope.analysis.engine import run
from rankscope.errors import UpdateError
try:
    run(work.study(work.squares(3)), {{"jobs": 2}})
except UpdateError as error:
    print(error.what, flush=True)
"""


class TestShards:
    def test_every_item_is_in_one(self):
        whole = set(run(study(squares()), {}).table.module)
        parts = [set(run(study(squares()), {"shard": (i, 4)}).table.module) for i in (1, 2, 3, 4)]
        assert set.union(*parts) == whole
        assert sum(map(len, parts)) == len(whole)

    @pytest.mark.parametrize("shard", [(0, 4), (5, 4), (1, 0)])
    def test_there_is_no_such_shard(self, shard):
        with pytest.raises(UpdateError, match="no such shard"):
            run(study(squares()), {"shard": shard})


def test_rows_come_back_to_the_bit():
    rng = np.random.default_rng(0)
    row = {
        "floats": rng.standard_normal(50) * 10.0 ** rng.integers(-300, 300, 50),
        "nothing": np.array([np.nan, np.inf, -0.0]),
        "grid": rng.standard_normal((3, 2)),
        "empty": np.zeros((0, 4)),
        "count": np.int64(3),
        "word": "φ",
        "none": None,
    }
    back = decode(encode(row))
    for name in ("floats", "nothing", "grid"):
        assert back[name].tobytes() == row[name].tobytes()
        assert back[name].dtype == row[name].dtype
    assert (back["count"], back["word"], back["none"]) == (3, "φ", None)


INTERRUPTED = """
import sys
sys.path[:0] = {path!r}
import work
from rankscope.analysis.engine import Task, planned, run
if __name__ == "__main__":
    print("ready", flush=True)
    tasks = [*work.squares(3), Task("slow", work.wait_for, ({marker!r},))]
    try:
        run(work.study(tasks), {how!r})
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_ends_the_run_and_keeps_the_journal(tmp_path, jobs):
    script = tmp_path / "script.py"
    how = {"jobs": jobs, "journal": str(tmp_path / "j")}
    marker = str(tmp_path / "never")
    script.write_text(INTERRUPTED.format(path=sys.path, marker=marker, how=how))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    path = tmp_path / "j" / "journal-1-of-1.jsonl"
    until = time.monotonic() + 60
    while not (path.exists() and len(path.read_text().splitlines()) == 4):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=60)
    assert out.splitlines() == ["ready", "interrupted"]
    assert len(read(path)[1]) == 3


def test_a_killed_command_goes_on_where_it_was(tmp_path):
    jobs = 2
    if not os.path.exists("/proc/self/task"):  # noqa: PTH110
        pytest.skip("no /proc to find processes in")
    script, marker = tmp_path / "script.py", tmp_path / "marker"
    how = {"jobs": jobs, "threads": 1, "journal": str(tmp_path / "j")}
    script.write_text(INTERRUPTED.format(path=sys.path, marker=str(marker), how=how))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    path = tmp_path / "j" / "journal-1-of-1.jsonl"
    until = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") == 4):
        assert time.monotonic() < until
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait(60)
    until = time.monotonic() + 60
    while any(_alive(child) for child in children):  # they end with their parent
        assert time.monotonic() < until
        time.sleep(0.05)
    marker.touch()
    tasks = [*squares(3), Task("slow", work.wait_for, (str(marker),))]
    resumed = run(study(tasks), {**how, "jobs": 1, "resume": True})
    assert content(resumed) == content(run(study(tasks), {"threads": 1}))


def _alive(process):
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
