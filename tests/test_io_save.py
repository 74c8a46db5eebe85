"""Writing adapters: they read back to the same ΔW, and PEFT merges the same."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian
from safetensors.torch import load_file
from torch import nn

import rankscope as rs
from rankscope.errors import AdapterError, OutputError
from rankscope.io import write


def assert_same(one, other):
    assert one.names == other.names
    for (_, a), (_, b) in zip(one.items(), other.items(), strict=True):
        assert (a - b).norm() <= 1e-6 * a.norm()


def factors(rng, module, out, in_, rank, dtype=torch.float32):
    return {
        f"{module}.lora_A.weight": torch.randn(rank, in_, generator=rng).to(dtype),
        f"{module}.lora_B.weight": torch.randn(out, rank, generator=rng).to(dtype),
    }


class Net(nn.Module):
    """Names that end alike, an embedding, a convolution."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 5), "xfc": nn.Linear(6, 5)})
        self.wte = nn.Embedding(9, 6)
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv1 = nn.Conv2d(3, 4, 1)


def trained(config):
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model


def merged_by_peft(folder):
    torch.manual_seed(0)
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(net, folder).merge_and_unload()
    return {name: tensor - before[name] for name, tensor in merged.state_dict().items()}


def assert_peft_merges(updates, folder):
    deltas = merged_by_peft(folder)
    for name, update in updates.items():
        delta = deltas.pop(f"{name}.weight").flatten(1).double()
        assert torch.allclose(delta, update.dense(), atol=2e-6 * max(1.0, update.norm()))
    assert all(not delta.any() for delta in deltas.values())


@pytest.mark.filterwarnings("ignore")
def test_names_that_end_alike_keep_their_ranks_and_scales(tmp_path):
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["fc", "block.xfc", "wte", "conv", "conv1"],
        rank_pattern={"^fc": 3, "wte": 4, "conv": 1},
        alpha_pattern={"block.fc": 5, "wte": 7, "conv": 11},
    )
    trained(config).save_pretrained(tmp_path / "peft")
    updates = rs.open_updates(tmp_path / "peft")
    assert len(updates) == 6
    updates.save(tmp_path / "ours")
    again = rs.open_updates(tmp_path / "ours")
    assert_same(updates, again)
    assert [s.scale for s in again.sites] == pytest.approx([s.scale for s in updates.sites])
    assert_peft_merges(updates, tmp_path / "ours")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "rslora", "adalora", "loha"])
def test_peft_merges_what_was_written(kind, tmp_path):
    linears = ["fc", "block.xfc"]
    config = {
        "lora": peft.LoraConfig(r=4, lora_alpha=3, target_modules=linears),
        "rslora": peft.LoraConfig(r=3, lora_alpha=8, target_modules=linears, use_rslora=True),
        "adalora": peft.AdaLoraConfig(init_r=3, target_modules=linears, total_step=10),
        "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=linears),
    }[kind]
    model = trained(config)
    for name, parameter in model.named_parameters():
        if "hada" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "peft")
    updates = rs.open_updates(tmp_path / "peft")
    updates.save(tmp_path / "ours")
    assert_same(updates, rs.open_updates(tmp_path / "ours"))
    assert_peft_merges(updates, tmp_path / "ours")


@given(
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    alpha=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_ranks_scales_and_dtypes_read_back(ranks, alpha, dtype, tmp_path_factory):
    rng = torch.Generator().manual_seed(len(ranks))
    adapter = {}
    for n, rank in enumerate(ranks):
        adapter |= factors(rng, f"h.{n}.q", 7, 5, rank, dtype)
    updates = rs.open_updates(adapter, alpha=alpha)
    folder = tmp_path_factory.mktemp("adapter")
    updates.save(folder)
    assert_same(updates, rs.open_updates(folder))


def test_half_precision_is_written_bit_by_bit(rng, tmp_path):
    adapter = factors(rng, "h.0.q", 7, 5, 2, torch.bfloat16)
    rs.open_updates(adapter, alpha=4).save(tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")
    for name, tensor in adapter.items():
        assert torch.equal(written[f"base_model.model.{name}"], tensor)


def test_factors_that_cancel_keep_their_digits(rng, tmp_path):
    class Cancelling:
        def build(self):
            big = rs.FactoredUpdate(*(1e4 * torch.randn(6, 6, generator=g).double() for g in gens))
            small = rs.FactoredUpdate(torch.ones(6, 1), torch.ones(1, 6))
            return big + small - big

    gens = (rng, rng)
    updates = rs.open_updates(factors(rng, "h.0.q", 6, 6, 1), alpha=1)
    rng.manual_seed(1)
    exact = Cancelling().build()
    site = replace(updates.sites[0], recipe=type("One", (), {"build": lambda _: exact})())
    updates = replace(updates, sites=(site,))
    updates.save(tmp_path)
    assert_same(updates, rs.open_updates(tmp_path))


@pytest.mark.parametrize("scale", [-2.0, 0.0])
def test_scales_that_no_alpha_says(scale, rng, tmp_path):
    updates = rs.open_updates(factors(rng, "h.0.q", 6, 4, 2), alpha=2)
    recipe = replace(updates.sites[0].recipe, scale=scale)
    updates = replace(updates, sites=(replace(updates.sites[0], recipe=recipe),))
    updates.save(tmp_path)
    assert_same(updates, rs.open_updates(tmp_path))


def test_an_unknown_scale_is_written_as_one(rng, tmp_path):
    adapter = factors(rng, "h.0.q", 6, 4, 2)
    updates = rs.open_updates(adapter)
    assert updates.site("h.0.q").scale is None
    updates.save(tmp_path)
    again = rs.open_updates(tmp_path)
    assert again.site("h.0.q").scale == 1.0
    assert_same(updates, again)


def test_shared_factors_and_what_the_source_says(rng, tmp_path):
    adapter = factors(rng, "h.0.q", 4, 4, 2)
    adapter |= {name.replace(".q.", ".v."): tensor for name, tensor in adapter.items()}
    said = {
        "base_model_name_or_path": "org/base",
        "task_type": float("nan"),
        "layer_replication": [[0, 4], [2, 6]],
        "use_rslora": True,
    }
    updates = replace(rs.open_updates(adapter, alpha=2), config=said)
    updates.save(tmp_path)
    assert_same(updates, rs.open_updates(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["layer_replication"] == [[0, 4], [2, 6]]
    assert not {"task_type", "use_rslora"} & set(config)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert (config["r"], config["lora_alpha"]) == (2, 2)


def test_selections_of_real_adapters_read_back(data, tmp_path):
    updates = rs.open_updates(data / "sql-r8-seed0").select(kind="q")
    updates.save(tmp_path)
    assert_same(updates, rs.open_updates(tmp_path))


def test_what_is_not_low_rank_is_refused(tmp_path):
    base, tuned = {"h.0.q.weight": torch.zeros(2, 2)}, {"h.0.q.weight": torch.eye(2)}
    with pytest.raises(AdapterError, match="only low-rank updates can be written") as caught:
        rs.open_updates(tuned, base).save(tmp_path / "out")
    assert str(caught.value).count("\n") == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mlp.experts.down_proj[3]", "attn.in_proj_weight"])
def test_parts_of_fused_parameters_are_refused(name, rng, tmp_path):
    updates = rs.open_updates(factors(rng, "h.0.q", 6, 4, 2), alpha=2)
    updates = replace(updates, sites=(replace(updates.sites[0], module=name),))
    with pytest.raises(AdapterError, match="low-rank") as caught:
        updates.save(tmp_path)
    assert name in caught.value.got


def test_an_empty_set_is_refused(rng, tmp_path):
    updates = rs.open_updates(factors(rng, "h.0.q", 6, 4, 2)).select(kind="v")
    with pytest.raises(AdapterError, match="only low-rank"):
        updates.save(tmp_path)


def test_a_failure_leaves_both_files_as_they_were(rng, tmp_path, monkeypatch):
    rs.open_updates(factors(rng, "h.0.q", 6, 4, 2), alpha=2).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(OutputError, match="cannot write"):
        rs.open_updates(factors(rng, "h.0.q", 6, 4, 3), alpha=9).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestRowOrders:
    """q and k of llama.cpp and torchtune: saved so that nobody mistakes their rows."""

    def turned(self, rng, order):
        tensors = {
            "blk.0.attn_q.lora_A.weight": gaussian(2, 8, rng=rng),
            "blk.0.attn_q.lora_B.weight": gaussian(8, 2, rng=rng),
        }
        updates = rs.open_updates(tensors, alpha=2)
        return replace(updates, sites=(replace(updates.sites[0], row_order=order),))

    def test_in_hugging_faces_order_under_hugging_faces_name(self, tmp_path, rng):
        updates = self.turned(rng, "halves")
        updates.save(tmp_path / "a")
        assert rs.open_updates(tmp_path / "a").names == ["model.layers.0.self_attn.q_proj"]
        rs.resize(updates, rank=1).save(tmp_path / "b")
        assert rs.open_updates(tmp_path / "b").names == ["model.layers.0.self_attn.q_proj"]

    @pytest.mark.parametrize("order", ["rotary", "unknown"])
    def test_in_another_order_not_at_all(self, tmp_path, rng, order):
        with pytest.raises(AdapterError, match="PEFT") as error:
            self.turned(rng, order).save(tmp_path / "a")
        assert "rotary order" in str(error.value)
        assert not (tmp_path / "a").exists()
