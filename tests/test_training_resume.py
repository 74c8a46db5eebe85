"""Runs repeat to the bit, resume to the bit, and refuse what they cannot do."""

import io
import json
import math
import signal
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import METHODS, SIZE, SMALL, config_of, contents

from rankscope.errors import OutputError, RankscopeError, SourceError
from rankscope.training import TrainingConfig, recorded_config, train
from rankscope.training import loop as loop_module
from rankscope.training.config import ConfigError
from rankscope.training.data import batch


def lines_of(error) -> list[str]:
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    return lines


# --- it repeats, and it resumes --------------------------------------------------------------


@METHODS
def test_the_same_run_gives_the_same_bits(method, base, tmp_path):
    config = config_of(method, base)
    torch.manual_seed(1)
    train(config, tmp_path / "a", progress=False)
    torch.manual_seed(2)
    train(config, tmp_path / "b", progress=False)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@METHODS
@pytest.mark.parametrize("stop", [0, 3, 4, 6])
def test_a_stopped_run_resumes_to_the_same_bits(method, stop, base, tmp_path):
    config = config_of(method, base, save_at=(0, 3, 5))
    whole = train(config, tmp_path / "whole", progress=False)
    part = train(config, tmp_path / "part", progress=False, stop_at=stop)
    assert part.record["step"] == stop
    assert part.record["finished"] == (stop == 6)
    torch.manual_seed(3)
    resumed = train(config, tmp_path / "part", progress=False, resume=True)

    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    timed = ("seconds", "tokens_per_second")
    assert {k: v for k, v in resumed.record.items() if k not in timed} == {
        k: v for k, v in whole.record.items() if k not in timed
    }


def test_a_run_from_before_an_option_existed_is_gone_on_with(base, tmp_path):
    """Its record and its state lack the names of later options."""
    config = config_of("lora", base)
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "part", progress=False, stop_at=4)
    later = ("difficulty", "labels", "method", "init_seed")
    state = tmp_path / "part" / "resume.safetensors"
    with safe_open(state, framework="pt") as file:
        header = file.metadata()
    identity = json.loads(header["identity"])
    for name in later:
        del identity[name]
    save_file(load_file(state), state, header | {"identity": json.dumps(identity)})

    train(config, tmp_path / "part", progress=False, resume=True)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")

    path = tmp_path / "part" / "run.json"
    record = json.loads(path.read_text())
    for name in later:
        del record["config"][name]
    path.write_text(json.dumps(record))
    assert train(config, tmp_path / "part", progress=False, resume=True).record == record


def test_stopping_does_not_change_the_schedule(base, tmp_path):
    config = config_of("lora", base, save_at=(4,))
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "part", progress=False, stop_at=4)

    name = "adapter_model.safetensors"
    kept = tmp_path / "whole" / "checkpoints" / "step-000004" / name
    assert kept.read_bytes() == (tmp_path / "part" / name).read_bytes()


@METHODS
def test_an_interrupt_keeps_the_last_step_and_resumes_to_the_same_bits(
    method, base, tmp_path, monkeypatch
):
    config = config_of(method, base)
    train(config, tmp_path / "whole", progress=False)

    def interrupted_batch(task, seed, split, first, count, **options):
        if (split, first) == ("train", 3 * config.batch):
            signal.raise_signal(signal.SIGINT)  # in the middle of the fourth step
        return batch(task, seed, split, first, count, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "batch", interrupted_batch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "part", progress=False)
    record = json.loads((tmp_path / "part" / "run.json").read_text())
    assert (record["finished"], record["step"]) == (False, 4)
    assert record["evaluation"] is None
    assert (tmp_path / "part" / "resume.safetensors").exists()

    train(config, tmp_path / "part", progress=False, resume=True)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_an_interrupt_while_evaluating_loses_nothing(base, tmp_path, monkeypatch):
    config = config_of("lora", base)
    train(config, tmp_path / "whole", progress=False)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "part", progress=False)
    assert train(config, tmp_path / "part", progress=False, resume=True).record["finished"]
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


class Killed(BaseException):
    """Ends a run as a power cut would: nothing handles it."""


def test_a_killed_run_resumes_from_its_last_state(base, tmp_path):
    config = config_of("full", base)
    train(config, tmp_path / "whole", progress=False)

    def kill(row):
        if row["step"] == 4:  # states were kept after 0, 2 and 4 steps
            raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "part", progress=kill)
    assert not (tmp_path / "part" / "run.json").exists()
    seen = []
    train(config, tmp_path / "part", progress=seen.append, resume=True)
    assert [row["step"] for row in seen] == [4, 5]
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_run_works_outside_the_main_thread(base, tmp_path):
    config, runs = config_of("lora", base), []
    worker = threading.Thread(
        target=lambda: runs.append(train(config, tmp_path / "run", progress=False))
    )
    worker.start()
    worker.join()
    assert runs[0].record["finished"]


def test_neither_threads_nor_random_state_of_the_caller_change(base, tmp_path):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(config_of("lora", base, threads=2), tmp_path / "run", progress=False)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_progress_is_silent_off_a_terminal(base, tmp_path, capsys):
    train(config_of("lora", base), tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_the_loss(base, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    train(config_of("lora", base), tmp_path / "run")
    assert "LoRA on sql" in screen.getvalue()
    assert "loss=" in screen.getvalue()
    assert "6/6" in screen.getvalue()


# --- what is refused -------------------------------------------------------------------------


def test_a_finished_run_is_not_overwritten(base, tmp_path):
    config = config_of("lora", base)
    run = train(config, tmp_path / "run", progress=False)
    before = contents(tmp_path / "run")

    with pytest.raises(OutputError, match="finished run") as caught:
        train(config, tmp_path / "run", progress=False)
    assert "--out" in lines_of(caught)[-1]
    assert train(config, tmp_path / "run", progress=False, resume=True) == run
    with pytest.raises(ConfigError, match="other options"):
        train(config_of("lora", base, seed=9), tmp_path / "run", progress=False, resume=True)
    assert contents(tmp_path / "run") == before


def test_an_unfinished_run_is_not_begun_again_or_resumed_with_other_options(base, tmp_path):
    train(config_of("lora", base), tmp_path / "run", progress=False, stop_at=2)

    with pytest.raises(OutputError, match="unfinished") as caught:
        train(config_of("lora", base), tmp_path / "run", progress=False)
    assert "--resume" in lines_of(caught)[-1]
    with pytest.raises(ConfigError) as caught:
        train(config_of("lora", base, lr=0.5), tmp_path / "run", progress=False, resume=True)
    assert "lr = 0.5" in lines_of(caught)[3]


def test_another_base_under_the_same_name_is_noticed(base, tmp_path):
    moved = tmp_path / "base"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    config = config_of("lora", moved)
    train(config, tmp_path / "run", progress=False, stop_at=2)
    train(TrainingConfig(**SMALL, **SIZE, seed=1), tmp_path / "other", progress=False)
    (tmp_path / "other" / "model.safetensors").replace(moved / "model.safetensors")

    with pytest.raises(ConfigError, match="base_sha256"):
        train(config, tmp_path / "run", progress=False, resume=True)


def test_a_run_tells_its_own_configuration(base, tmp_path):
    config = config_of("lora", base, save_at=(1, 2))
    train(config, tmp_path / "run", progress=False, stop_at=2)
    assert recorded_config(tmp_path / "run") == config
    train(recorded_config(tmp_path / "run"), tmp_path / "run", progress=False, resume=True)
    assert recorded_config(tmp_path / "run") == config

    with pytest.raises(SourceError, match="no run to resume"):
        recorded_config(tmp_path / "nowhere")
    (tmp_path / "resume.safetensors").write_bytes(b"damaged")
    with pytest.raises(SourceError, match="no run to resume"):
        recorded_config(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"not a state"])
def test_nothing_to_resume_is_an_error(base, tmp_path, content):
    if content is not None:
        (tmp_path / "resume.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match="no run to resume") as caught:
        train(config_of("lora", base), tmp_path, progress=False, resume=True)
    lines_of(caught)


@pytest.mark.parametrize("content", ["{", "[]", '{"finished": true}'])
def test_a_damaged_record_is_an_error(base, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SourceError, match="record"):
        train(config_of("lora", base), tmp_path, progress=False, resume=True)


@pytest.mark.parametrize("step", [-1, 7])
def test_a_stop_outside_the_run_is_refused(base, tmp_path, step):
    with pytest.raises(ConfigError, match="stop-at"):
        train(config_of("lora", base), tmp_path / "run", stop_at=step)


def damaged(base, how):
    """Return the tensors of a base with one thing wrong."""
    tensors = load_file(base / "model.safetensors")
    if how == "a tensor less":
        del tensors["head.weight"]
    elif how == "another shape":
        tensors["head.weight"] = tensors["head.weight"][:5].contiguous()
    elif how == "a tensor more":
        tensors["extra"] = torch.zeros(1)
    elif how == "another model":
        tensors = {"linear.weight": torch.zeros(2, 2)}
    elif how == "no norm":
        tensors["norm.weight"] = torch.zeros(0)
    elif how == "infinite":
        tensors["head.weight"][3, 3] = math.inf
    return tensors


@pytest.mark.parametrize(
    "how", ["a tensor less", "another shape", "a tensor more", "another model", "no norm"]
)
def test_a_base_of_another_kind_is_refused(base, tmp_path, how):
    save_file(damaged(base, how), tmp_path / "model.safetensors")
    with pytest.raises(SourceError) as caught:
        train(config_of("full", tmp_path), tmp_path / "run", progress=False)
    assert "tensors that differ" in lines_of(caught)[3]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [None, b"", b"\x08\0\0\0\0\0\0\0{}", b"text, no tensors at all"]
)
def test_a_missing_or_broken_base_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        train(config_of("lora", tmp_path), tmp_path / "run", progress=False)
    assert str(tmp_path / "model.safetensors") in lines_of(caught)[1]


def test_divergence_is_an_error_that_names_the_step(base, tmp_path):
    save_file(damaged(base, "infinite"), tmp_path / "model.safetensors")
    with pytest.raises(RankscopeError, match="diverged") as caught:
        train(config_of("full", tmp_path), tmp_path / "run", progress=False)
    assert "step 0" in lines_of(caught)[1]
