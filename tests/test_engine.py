"""The engine: the same rows wherever the work is done, and nothing lost when it is not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import work
from work import squares, study

from rankscope.analysis.engine import Task, run
from rankscope.analysis.engine.codec import decode, encode
from rankscope.analysis.engine.journal import Journal, read
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

    def test_in_processes_with_memory_for_one_at_a_time(self, expected):
        tasks = [Task(t.item, t.function, t.arguments, t.work, memory=10) for t in squares()]
        assert content(run(study(tasks), {"jobs": 2, "memory": 15})) == expected

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
from rankscope.analysis.engine import Task, run
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
