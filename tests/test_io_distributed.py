"""Distributed checkpoints: what torch writes is read, and only where that is allowed."""

import json
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from oracles import gaussian, peft_tensors
from safetensors.torch import save_file

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import SourceError
from rankscope.io.sources import open_source, open_weights

MODULES = [f"layers.{n}.self_attn.{kind}_proj" for n in range(2) for kind in "qv"]


def weights(seed):
    rng = torch.Generator().manual_seed(seed)
    tensors = {f"{module}.weight": gaussian(6, 4, rng=rng).float() for module in MODULES}
    return tensors | {"norm.weight": gaussian(4, rng=rng).bfloat16()}


def write(folder, content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=folder)
    return folder


@pytest.fixture
def pair(tmp_path):
    base, tuned = weights(0), weights(1)
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return base, tuned


SHAPES = {
    "flat": lambda t: t,
    "nested": lambda t: {
        "model": t,
        "optimizer": {"state": {"0": {"exp_avg": torch.ones(6, 4)}}, "lr": 0.1},
        "step": 3,
    },
    "wrapped": lambda t: {"state_dict": {f"module._orig_mod.{n}": x for n, x in t.items()}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_difference_is_that_of_safetensors(tmp_path, pair, shape):
    base, tuned = (
        write(tmp_path / name, SHAPES[shape](tensors))
        for name, tensors in zip(("base", "tuned"), pair, strict=True)
    )
    expected = rs.open_updates(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors")
    found = rs.open_updates(tuned, base, allow_pickle=True)
    found = pickle.loads(pickle.dumps(found))
    assert found.names == expected.names
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.dense(), other.dense())
    assert found.site(MODULES[0]).dtype == "float32"
    paths = [os.path.relpath(record["path"], tmp_path) for record in found.inputs]
    assert paths == [f"{d}/{f}" for d in ("tuned", "base") for f in (".metadata", "__0_0.distcp")]


def test_an_adapter(tmp_path, rng):
    tensors = peft_tensors(MODULES, 2, rng)
    folder = write(tmp_path / "adapter", {"model": tensors})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    updates = rs.open_updates(folder, allow_pickle=True)
    assert {site.scale for site in updates.sites} == {3.0}
    key = f"base_model.model.{MODULES[0]}.lora_"
    expected = 3 * tensors[f"{key}B.weight"].double() @ tensors[f"{key}A.weight"].double()
    torch.testing.assert_close(updates[MODULES[0]].dense(), expected)
    assert all("content_sha256" in record for record in updates.inputs)


WORKER = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(7, 5)
dcp.save({"model": {"h.0.q.weight": distribute_tensor(whole, mesh, [Shard(0)])}},
         checkpoint_id=f"{sys.argv[2]}/dcp")
"""


@pytest.mark.slow
def test_a_tensor_in_shards(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=400)
        assert run.returncode == 0, errors.decode()
    store = open_source(tmp_path / "dcp", allow_pickle=True).store
    assert len(store.files) == 3
    assert torch.equal(store.read("h.0.q.weight"), torch.arange(35.0).reshape(7, 5))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def evil(tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    (folder / "__0_0.distcp").write_bytes(b"x")
    return folder


def test_nothing_is_executed_without_the_flag(tmp_path, evil):
    save_file(weights(0), tmp_path / "base.safetensors")
    calls = [
        lambda: open_source(evil),
        lambda: open_weights(evil),
        lambda: rs.info(evil),
        lambda: rs.open_updates(evil, tmp_path / "base.safetensors"),
        lambda: rs.open_updates(tmp_path / "base.safetensors", evil),
    ]
    for call in calls:
        with pytest.raises(SourceError, match="can execute code") as caught:
            call()
        assert "--allow-pickle" in caught.value.fix
    for command in ("info", "rank", "spectrum"):
        result = CliRunner().invoke(cli, [command, str(evil)])
        assert result.exit_code == 1
        assert "--allow-pickle" in result.output
    assert not (tmp_path / "marker").exists()
    # The flag is what stands between: with it torch obeys the file.
    with pytest.raises(SourceError, match="not a readable distributed checkpoint"):
        open_source(evil, allow_pickle=True)
    assert (tmp_path / "marker").exists()


def test_the_flag_loosens_nothing_else(tmp_path):
    torch.save({"w": torch.ones(2, 2), "x": Evil(tmp_path / "marker")}, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="not a readable torch file"):
        open_source(tmp_path / "x.pt", allow_pickle=True)
    assert not (tmp_path / "marker").exists()


def test_safetensors_beside_it_are_meant(tmp_path, evil):
    save_file(weights(0), evil / "model.safetensors")
    assert open_source(evil, allow_pickle=True).label.endswith("model.safetensors")
    assert not (tmp_path / "marker").exists()


def test_damaged_folders(tmp_path, pair):
    folder = write(tmp_path / "dcp", pair[0])
    shard = folder / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    store = open_source(folder, allow_pickle=True).store
    with pytest.raises(SourceError, match="not a readable distributed checkpoint"):
        [store.read(name) for name in store.tensors]
    (folder / ".metadata").write_bytes(pickle.dumps(Exception("no checkpoint")))
    with pytest.raises(SourceError, match="not a readable distributed checkpoint"):
        open_source(folder, allow_pickle=True)
    (folder / ".metadata").unlink()
    with pytest.raises(SourceError, match="not a readable distributed checkpoint") as caught:
        open_source(folder, allow_pickle=True)
    assert len(str(caught.value).splitlines()) == 5


def test_the_commands(tmp_path, pair):
    folders = [
        str(write(tmp_path / name, {"model": tensors}))
        for name, tensors in zip(("base", "tuned"), pair, strict=True)
    ]
    base, tuned = folders
    for command in (
        ["rank", tuned],
        ["spectrum", tuned],
        ["similarity", tuned, tuned],
        ["info", tuned],
    ):
        arguments = [*command, "--base", base, "--allow-pickle", "--json"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["rows"]


def test_one_of_several_models(tmp_path, pair):
    folder = write(tmp_path / "dcp", {"model": pair[0], "ema": pair[1]})
    with pytest.raises(SourceError, match="several models"):
        open_source(folder, allow_pickle=True)
    store = open_source(f"{folder}::ema", allow_pickle=True).store
    assert all(torch.equal(store.read(name), tensor) for name, tensor in pair[1].items())
