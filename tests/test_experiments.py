"""The experiment: what is trained, that nothing stops it for good, and what it adds up to."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import ask
from safetensors.torch import safe_open
from small_runs import contents

from rankscope.analysis.engine.task import Outcome, lost
from rankscope.errors import OutputError, RankscopeError, SourceError
from rankscope.experiments import running, serving
from rankscope.experiments.costs import parameters
from rankscope.experiments.design import BASE, Design, RunSpec, adapter, full, quick, whole
from rankscope.experiments.draw import TABLES
from rankscope.experiments.evidence import judged, untested
from rankscope.experiments.figures import FIGURES
from rankscope.experiments.folder import alone, prepared
from rankscope.experiments.index import COLUMNS, index
from rankscope.experiments.measured import Runs
from rankscope.experiments.published import PUBLISHED
from rankscope.experiments.running import remaining, train_all

SMALL = {"batch": 2, "held_out": 4, "save_every": 20}
BOTTLENECK = {"base": "runs/base", "method": "bottleneck", "rank": 2}
LONG = "sql-qv-r2-s0"  # long enough to be stopped in its middle


def tiny() -> Design:
    runs = (
        adapter(2, "qv", 0, "main", "drift", steps=400, **SMALL),
        adapter(4, "q", 1, "main", steps=4, **SMALL),
        whole(0, "full", steps=4, save_at=(2,), **SMALL),
        RunSpec("sql-r2-s0-bottleneck", {**BOTTLENECK, "steps": 4, **SMALL}, ("methods",)),
        RunSpec("lost", {"base": "runs/nowhere", "rank": 2, "steps": 4, **SMALL}),
    )
    base = RunSpec(BASE, {"steps": 4, "layers": 1, "width": 32, "threads": 1, **SMALL})
    return Design("tiny", base, runs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of the tiny experiment, and which runs of it failed."""
    out = tmp_path_factory.mktemp("experiment") / "out"
    return out, train_all(tiny(), out)


@pytest.fixture
def halted(trained, tmp_path):
    """Return a copy of it in which the long run is still to be trained."""
    out = tmp_path / "elsewhere"
    shutil.copytree(trained[0], out)
    shutil.rmtree(out / "runs" / LONG)
    return out


def same(out, other):
    """Whether two experiments agree in every byte but the times, and in their index."""
    tables = [index(one).drop(columns=["seconds", "folder"]) for one in (out, other)]
    pd.testing.assert_frame_equal(*tables)
    return contents(out) == contents(other)


def wait_for_the_middle(out):
    """Wait until the long run has been saved after some of its steps."""
    until = time.monotonic() + 900
    path = out / "runs" / LONG / "resume.safetensors"
    while not (path.exists() and int(safe_open(path, "pt").metadata()["step"])):
        assert time.monotonic() < until
        time.sleep(0.005)
    assert not (path.parent / "run.json").exists()


# --- training --------------------------------------------------------------------------------


def test_a_run_that_fails_costs_no_other(trained):
    out, failures = trained
    assert [failure["module"] for failure in failures] == ["lost"]
    assert "runs/nowhere/model.safetensors" in failures[0]["where"]
    assert list(index(out).name) == [BASE, *(spec.name for spec in tiny().runs[:-1])]


def test_the_index_says_what_each_run_is_and_scored(trained):
    table = index(trained[0]).set_index("name")
    assert (*table.index.names, *table.columns) == COLUMNS
    long = table.loc[LONG]
    assert (long.groups, long.targets, long["rank"], long.alpha) == ("main,drift", "q,v", 2, 2.0)
    assert (long.task, long.method, long.labels, long.steps) == ("sql", "LoRA", "true", 400)
    assert list(table["rank"]) == [0, 2, 4, 0, 2]
    assert list(table.targets) == ["", "q,v", "q", "", ""]
    assert list(table.trained_parameters)[1:4] == [256, 256, long.parameters]
    record = json.loads((Path(long.folder) / "run.json").read_text())
    assert long.loss == record["evaluation"]["sql"]["loss"]
    assert long.mixture_loss == record["evaluation"]["mixture"]["loss"]
    assert table.loc[BASE].loss == table.loc[BASE].mixture_loss


def test_a_killed_process_goes_on_by_itself(halted, trained):
    def kill():
        wait_for_the_middle(halted)
        for child in active_children():
            child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    failures = train_all(tiny(), halted, resume=True)
    killer.join()
    assert [failure["module"] for failure in failures] == ["lost"]
    assert same(halted, trained[0])


SCRIPT = """
import sys
sys.path[:] = {path}
from pathlib import Path
from test_experiments import tiny
from rankscope.experiments.running import train_all
if __name__ == "__main__":
    train_all(tiny(), Path({out!r}), resume=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_a_killed_experiment_goes_on_to_the_same_bytes(halted, trained):
    script = halted.parent / "script.py"
    script.write_text(SCRIPT.format(path=sys.path, out=str(halted)))
    with subprocess.Popen([sys.executable, str(script)], start_new_session=True) as process:
        wait_for_the_middle(halted)
        os.killpg(process.pid, signal.SIGKILL)

    train_all(tiny(), halted, resume=True)
    assert same(halted, trained[0])


def test_a_full_disk_stops_the_rest_and_says_so(tmp_path, monkeypatch):
    error = OutputError("cannot write", where="f", expected="room", got="no space", fix="none")

    def in_processes(tasks, *_):
        for task in tasks:
            yield Outcome(task.item, error=None if task.item == BASE else error)

    monkeypatch.setattr(running, "in_processes", in_processes)
    with pytest.raises(OutputError, match="no space") as caught:
        train_all(tiny(), tmp_path / "out")
    assert "--resume: what is finished is kept" in caught.value.fix


def test_a_base_that_fails_stops_everything(tmp_path, monkeypatch):
    def in_processes(tasks, *_):
        assert [task.item for task in tasks] == [BASE]
        yield lost(tasks[0], "killed")

    monkeypatch.setattr(running, "in_processes", in_processes)
    with pytest.raises(RankscopeError, match="could not be trained") as caught:
        train_all(tiny(), tmp_path / "out")
    assert "--resume --jobs 1" in caught.value.fix


# --- drawing ---------------------------------------------------------------------------------


def test_everything_is_drawn_again_wherever_the_runs_are(trained, tmp_path):
    out = tmp_path / "moved"
    shutil.copytree(trained[0], out)
    shown = ask("reproduce", "--only-draw", "--out", out).stdout

    claims = json.loads((out / "claims.json").read_text())["rows"]
    readme = (out / "README.md").read_text()
    assert all(row["claim"] in shown and row["claim"] in readme for row in claims)
    tables = {path.stem for path in (out / "tables").glob("*.csv")}
    assert tables == {"index", *TABLES, *FIGURES}
    printed = {path.stem for path in (out / "tables" / "published").iterdir()}
    assert printed == set(PUBLISHED)
    assert {path.name for path in (out / "figures").iterdir()} == {f"{n}.svg" for n in FIGURES}
    named = re.findall(r"`((?:tables|figures)/\S+)`", readme)
    assert all(list(out.glob(name)) for name in named)
    assert len(pd.read_csv(out / "tables" / "index.csv")) == 5


def test_only_an_experiment_can_be_drawn(tmp_path):
    assert "no experiment" in ask("reproduce", "--only-draw", "--out", tmp_path, code=1).stderr


def test_a_merged_adapter_predicts_as_one_apart_and_is_what_times_are_compared_with(trained):
    runs = Runs(index(trained[0]))
    models = {name: model for name, (model, _) in serving._models(runs).items()}
    tokens = torch.arange(64).view(2, 32)
    merged, apart, bottleneck = (models[name](tokens) for name in models)
    torch.testing.assert_close(merged, apart, rtol=0, atol=1e-5)
    assert (merged - bottleneck).abs().max() > 1e-3

    table = serving.latency_table(runs, repeats=2)
    assert list(table.model) == ["merged", "apart", "bottleneck"] * 4
    assert (table.ratio[table.model == "merged"] == 1).all()
    assert (table.milliseconds > 0).all()
    paper = table.dropna().set_index(["model", "batch", "length"]).published_ratio
    assert paper.loc["bottleneck", 1].unique() == pytest.approx([25.8 / 19.8])
    assert set(paper.index.get_level_values("model")) == {"bottleneck"}


def test_switching_leaves_no_more_than_its_roundings(data):
    names = ("base", "r8-s0", "r8-s1", "r64-s0")
    folders = ("base", "sql-r8-seed0", "sql-r8-seed1", "sql-r64-seed0")
    rows = {"name": names, "folder": [str(data / folder) for folder in folders]}
    more = {"method": ["pre-training", *["LoRA"] * 3], "rank": [0, 8, 8, 64], "seed": [0, 0, 1, 0]}
    runs = Runs(pd.DataFrame({**rows, **more, "task": "sql", "targets": "q,v"}))

    table = serving.switching_table(runs).set_index(["dtype", "switches"])
    assert set(table.a) | set(table.b) == {"r8-s0", "r8-s1"}
    weights = [runs.updates("r8-s0").weight(name) for name in runs.updates("r8-s0").names]
    largest = 1.5 * max(weight.abs().max().item() for weight in weights)
    for (dtype, switches), row in table.iterrows():
        half_a_step = torch.finfo(getattr(torch, dtype)).eps / 2 * largest
        assert 0 < row.max_error <= (2 * switches + 1) * half_a_step
    assert table.relative_error["float32"].max() < 1e-4 < table.relative_error["bfloat16", 1]
    assert table.relative_error["bfloat16", 100] > table.relative_error["bfloat16", 1]


# --- the folder ------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_not_written_to(trained, tmp_path):
    with pytest.raises(OutputError, match="taken"):
        train_all(tiny(), trained[0])
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="taken"):
        train_all(tiny(), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(SourceError, match="no experiment"):
        train_all(tiny(), tmp_path, resume=True)


def test_a_design_may_grow(trained):
    more = adapter(1, "q", 5, "main", steps=4, **SMALL)
    grown = replace(tiny(), runs=(more, *tiny().runs))
    configs = prepared(trained[0], grown, resume=True)
    assert {task.item for task in remaining(trained[0], configs)} == {more.name, "lost"}


@pytest.mark.parametrize(
    ("change", "where", "expected", "got"),
    [
        ({"runs": tiny().runs[1:]}, LONG, "a run of this name", "no such run in this design"),
        ({"base": replace(tiny().base, options={"layers": 2})}, BASE, "steps = 4", "steps = 600"),
    ],
)
def test_another_design_is_refused_with_its_first_difference(
    change, where, expected, got, trained
):
    with pytest.raises(OutputError, match="another experiment") as caught:
        train_all(replace(tiny(), **change), trained[0], resume=True)
    error = caught.value
    assert error.where.endswith(where)
    assert (error.expected, error.got) == (expected, got)


def test_two_cannot_train_in_one_folder(trained):
    pytest.importorskip("fcntl")
    with alone(trained[0]), pytest.raises(OutputError, match="in use"):
        train_all(tiny(), trained[0], resume=True)


# --- the designs -----------------------------------------------------------------------------


@pytest.mark.parametrize("design", [quick(), full()], ids=lambda design: design.name)
def test_every_run_of_a_design_is_possible_and_has_a_name_of_its_own(design):
    names = [spec.name for spec in design.runs]
    assert len(set(names)) == len(names)
    configs = [spec.config(threads=1) for spec in design.runs]
    assert {config.base for config in configs} == {"runs/base"}
    # Only what trains differs between the adapters of a task.
    assert len({(config.steps, config.batch) for config in configs}) == 1


def test_the_full_design_holds_what_the_paper_compares():
    design = full()
    base = design.base.config(threads=1)
    configs = {spec.name: spec.config(threads=1) for spec in design.runs}
    for rank in (1, 2, 4, 8, 64, 256):
        for targets in ("q", "qv", "qkvo"):
            assert {f"sql-{targets}-r{rank}-s{seed}" for seed in range(3)} <= configs.keys()
    budget = [spec.name for spec in design.runs if "budget" in spec.groups]
    assert len(budget) == 7 * 3
    assert {parameters(configs[name], base) for name in budget} == {4 * 8 * (256 + 256)}
    held = [configs[spec.name] for spec in design.runs if "alpha" in spec.groups]
    assert [config.alpha for config in held] == [8.0] * 6
    twin = configs["sql-qv-r8-s1-init0"]
    assert (twin.seed, twin.init_seed) == (1, 0)


# --- the command -----------------------------------------------------------------------------


def test_a_dry_run_lists_runs_time_and_bytes(tmp_path):
    text = ask("reproduce", "--dry-run", "--jobs", "2", "--out", tmp_path / "out").stdout
    assert text.splitlines()[1].split()[0] == BASE
    assert "7 runs, about" in text
    assert not (tmp_path / "out").exists()


def test_a_processor_without_bfloat16_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("rankscope.training.config.native_bfloat16", lambda: False)
    monkeypatch.setattr(running, "train_all", lambda *_, **__: [])
    nothing = judged([untested("a claim", "a number", "too few runs")])
    monkeypatch.setattr("rankscope.experiments.draw.draw", lambda *_: nothing)
    assert "float32" in ask("reproduce", "--out", tmp_path).stderr
    assert quick().runs[0].config(threads=1).precision == "float32"
