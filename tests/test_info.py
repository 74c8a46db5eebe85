"""``rankscope info``: what every tensor is, and adapters whose updates need a base."""

import json

import pytest
import torch
from click.testing import CliRunner
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import SourceError
from rankscope.io.names import expert_number, kind_of, layer_of, natural_key
from rankscope.io.roles import role_of
from rankscope.io.tensors import TensorInfo


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "role"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "float32", (8,), "bias"),
        ("lora_unet_x.diff_b", "float32", (8,), "bias"),
        ("model.layers.0.input_layernorm.weight", "bfloat16", (8,), "norm"),
        ("ln_f.gamma", "float32", (8,), "norm"),
        ("transformer.h.0.attn.bias", "float32", (1, 1, 8, 8), "buffer"),
        ("transformer.h.0.attn.masked_bias", "float32", (), "buffer"),
        ("model.rotary_emb.inv_freq", "float32", (4,), "buffer"),
        ("bn.running_mean", "float32", (4,), "buffer"),
        ("bn.num_batches_tracked", "int64", (), "buffer"),
        ("embeddings.position_ids", "int64", (1, 9), "buffer"),
        ("<s1>", "float32", (768,), "tokens"),
        ("lora_unet_x.alpha", "float32", (), "setting"),
        ("classifier.dense.weight", "float32", (8, 8), "matrix"),
        ("mystery", "float32", (8, 8), "not understood"),
        ("mystery", "float32", (8,), "not understood"),
    ],
)
def test_roles(name, dtype, shape, role):
    assert role_of(name, TensorInfo(dtype, shape)) == role


def test_every_tensor_has_a_role(tmp_path, rng):
    tensors = peft_tensors(["h.0.q"], 4, rng) | {
        "base_model.model.h.0.q.bias": torch.ones(12),
        "mystery": torch.ones(3),
    }
    result = rs.info(write_peft(tmp_path / "a", tensors), tensors=True)
    roles = dict(zip(result.tensors.tensor, result.tensors.role, strict=True))
    assert set(roles) == set(tensors)
    assert roles.pop("base_model.model.h.0.q.bias") == "bias"
    assert roles.pop("mystery") == "not understood"
    assert set(roles.values()) == {"update"}
    assert any("1 bias, 1 not understood" in note for note in result.notes)


def test_a_checkpoint_alone_holds_weights(rng):
    content = {"h.0.q.weight": gaussian(3, 3, rng=rng), "norm.weight": torch.ones(3)}
    assert rs.info(content, tensors=True).tensors.role.tolist() == ["weight", "norm"]


@pytest.fixture
def dora(tmp_path, rng):
    tensors = peft_tensors(["h.0.q", "h.1.q"], 4, rng)
    for layer in range(2):
        tensors[f"base_model.model.h.{layer}.q.lora_magnitude_vector"] = torch.ones(12)
    return write_peft(tmp_path / "dora", tensors, use_dora=True)


def test_an_adapter_that_needs_its_base_is_described_without(dora):
    run = CliRunner().invoke(cli, ["info", str(dora), "--json", "--tensors", "--modules"])
    assert run.exit_code == 0, run.output
    content = json.loads(run.stdout)
    row = content["rows"][0]
    assert (row["format"], row["modules"], row["rank"], row["alpha"]) == ("peft", None, None, 8)
    assert row["parameters"] == 2 * (4 * 8 + 12 * 4 + 12)
    assert content["modules"] == []
    assert len(content["tensors"]) == 6
    assert "depends on its base weight" in content["notes"][0]
    assert "--base" in content["notes"][0]


def test_and_in_full_with_it(dora, rng):
    base = {f"h.{layer}.q.weight": gaussian(12, 8, rng=rng) for layer in range(2)}
    row = rs.info(dora, base=base).table.iloc[0]
    assert (row.modules, row["rank"], row.scale) == (2, 4, 2.0)


def test_printed_lists_name_the_source_once(dora, tmp_path, rng):
    plain = write_peft(tmp_path / "plain", peft_tensors(["h.0.k"], 4, rng))
    run = CliRunner().invoke(cli, ["info", str(plain), str(dora), "--modules", "--tensors"])
    lines = run.stdout.splitlines()
    path = str(plain / "adapter_model.safetensors")
    assert sum(line == path for line in lines) == 2
    assert "h.0.k   (12, 8)     4      2  peft" in lines


def test_names_longer_than_any_path_are_refused(tmp_path):
    save_file({"attn." * 300 + "x": torch.ones(2, 2)}, tmp_path / "long.safetensors")
    with pytest.raises(SourceError, match="too long"):
        rs.info(tmp_path / "long.safetensors")


@pytest.mark.parametrize("name", ["h.1²2.q", "h." + "9" * 5000 + ".q", "h.experts." + "9" * 40])
def test_digits_that_count_nothing_are_no_error(name):
    assert natural_key(name)
    assert layer_of(name) is None
    assert expert_number(f"{name}.w1") is None


def test_litgpts_names_of_gate_and_up():
    kinds = {
        n: kind_of(f"transformer.h.0.mlp.{n}") for n in ("fc_1", "fc_2", "proj", "fc1", "fc2")
    }
    assert kinds == {"fc_1": "gate", "fc_2": "up", "proj": "down", "fc1": "up", "fc2": "down"}


def test_replicated_layers_have_no_weight_in_the_base(tmp_path, rng):
    tensors = peft_tensors(["model.layers.2.q"], 2, rng)
    folder = write_peft(tmp_path / "a", tensors, r=2, layer_replication=[[0, 2], [1, 3]])
    base = {f"model.layers.{n}.q.weight": gaussian(12, 8, rng=rng) for n in range(3)}
    updates = rs.open_updates(folder, base)
    with pytest.raises(SourceError, match="replicated stack"):
        updates.weight("model.layers.2.q")
    assert rs.rank(updates).table.relative_norm.isna().all()


def test_one_source_that_cannot_be_read_costs_no_other(data, tmp_path):
    nothing = tmp_path / "nothing"
    result = rs.info(data / "base", nothing, data / "sql-r8-seed0")
    assert result.table.format.tolist() == ["checkpoint", "peft"]
    assert [failure["module"] for failure in result.failures] == [str(nothing)]
    with pytest.raises(SourceError, match="cannot open"):
        rs.info(nothing, nothing)
    broken = {"x.lora_A.weight": torch.ones(2, 9)}
    assert len(rs.info(broken, dict(broken), data / "base").failures) == 2
