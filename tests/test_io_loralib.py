"""loralib, early PEFT's MergedLinear, and LitGPT: ΔW is what the layers themselves merge."""

import json
import pickle

import pytest
import torch
from oracles import gaussian
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError
from rankscope.io.adapters import loralib
from rankscope.io.tensors import StateDict


@pytest.fixture
def lora():
    return pytest.importorskip("loralib")


def merged_difference(lora, layers):
    """The factors' file, and what loralib adds to each weight when it goes to eval mode."""
    model = torch.nn.ModuleDict(layers).double()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    after = model.state_dict()
    delta = {name: after[name] - before[name] for name in before if name.endswith("weight")}
    return {n: t.clone() for n, t in lora.lora_state_dict(model).items()}, before, delta


def test_linear_and_embedding_are_what_loralib_merges(lora):
    torch.manual_seed(0)
    file, _, delta = merged_difference(
        lora,
        {
            "query": lora.Linear(8, 12, r=4, lora_alpha=6),
            "turned": lora.Linear(8, 12, r=2, lora_alpha=6, fan_in_fan_out=True),
            "embed": lora.Embedding(20, 8, r=2, lora_alpha=6),
        },
    )
    updates = rs.open_updates(file, alpha=6)
    assert updates.format == "loralib"
    assert [site.rank for site in updates.sites] == [2, 4, 2]
    torch.testing.assert_close(updates["query"].dense(), delta["query.weight"])
    torch.testing.assert_close(updates["turned"].dense(), delta["turned.weight"].T)
    torch.testing.assert_close(updates["embed"].dense(), delta["embed.weight"])
    assert not updates.unread


def test_alpha_is_unknown_until_given(rng):
    tensors = {"h.0.q.lora_A": gaussian(2, 8, rng=rng), "h.0.q.lora_B": gaussian(12, 2, rng=rng)}
    tensors["head.weight"] = torch.ones(3, 12)
    updates = rs.open_updates(tensors)
    assert updates.sites[0].scale is None
    assert any("scale is unknown" in note for note in updates.notes)
    assert updates.unread == ("head.weight",)
    told = rs.open_updates(tensors, alpha=6)
    assert told.sites[0].scale == 3
    assert not told.notes
    product = tensors["h.0.q.lora_B"] @ tensors["h.0.q.lora_A"]
    torch.testing.assert_close(updates["h.0.q"].dense(), product)
    torch.testing.assert_close(told["h.0.q"].dense(), 3 * product)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "enabled", [(True, False, True), (True, True, True), (True, True)], ids=str
)
def test_merged_linear_with_its_base(lora, enabled, turned):
    torch.manual_seed(0)
    layer = lora.MergedLinear(
        8, 12 * len(enabled), r=2, lora_alpha=6, enable_lora=list(enabled), fan_in_fan_out=turned
    )
    file, before, delta = merged_difference(lora, {"c_attn": layer})
    updates = rs.open_updates(
        file, {"c_attn.weight": before["c_attn.weight"]}, alpha=6, split="none"
    )
    truth = delta["c_attn.weight"].T if turned else delta["c_attn.weight"]
    update = updates["c_attn"]
    torch.testing.assert_close(update.dense(), truth)
    assert updates.sites[0].shape == update.shape == (12 * len(enabled), 8)
    assert updates.sites[0].rank == update.up.shape[1] == 2 * sum(enabled)
    assert updates.sites[0].scale == 3
    assert bool(updates.notes) == (not all(enabled))
    assert updates.weight("c_attn").shape == update.shape


def test_merged_linear_without_its_base_is_the_authors_recipe(lora):
    torch.manual_seed(0)
    layer = lora.MergedLinear(8, 36, r=2, lora_alpha=2, enable_lora=[True, False, True])
    file, _, delta = merged_difference(lora, {"c_attn": layer})
    updates = rs.open_updates(file, alpha=2)
    assert any("taken for q and v" in note for note in updates.notes)
    torch.testing.assert_close(updates["c_attn"].dense(), delta["c_attn.weight"])
    assert not updates["c_attn"].dense()[12:24].any()
    again = pickle.loads(pickle.dumps(updates))
    torch.testing.assert_close(again["c_attn"].dense(), delta["c_attn.weight"])


def test_enabled_blocks_of_a_configuration_win(tmp_path, lora):
    torch.manual_seed(0)
    layer = lora.MergedLinear(8, 36, r=2, lora_alpha=2, enable_lora=[False, True, True])
    file, _, delta = merged_difference(lora, {"c_attn": layer})
    save_file(file, tmp_path / "lora.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"enable_lora": [false, true, true]}')
    updates = rs.open_updates(tmp_path, alpha=2, split="none")
    assert not updates.notes
    torch.testing.assert_close(updates["c_attn"].dense(), delta["c_attn.weight"])


def test_merged_linear_that_could_be_several_things(rng):
    tensors = {"c.lora_A": gaussian(4, 8, rng=rng), "c.lora_B": gaussian(24, 2, rng=rng)}
    with pytest.raises(AdapterError, match="which part of the weight"):
        rs.open_updates(tensors, {"c.weight": torch.zeros(48, 8)})
    tensors = {"c.lora_A": gaussian(8, 8, rng=rng), "c.lora_B": gaussian(24, 2, rng=rng)}
    with pytest.raises(AdapterError, match="which part of the weight"):
        rs.open_updates(tensors)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_is_what_loralib_merges(lora, groups):
    torch.manual_seed(0)
    layer = lora.Conv2d(4, 6, kernel_size=3, r=2, lora_alpha=6, groups=groups)
    file, before, delta = merged_difference(lora, {"conv1": layer})
    truth = delta["conv1.conv.weight"].flatten(1)
    for base in (
        {"conv1.weight": before["conv1.conv.weight"]},
        {"conv1.conv.weight": before["conv1.conv.weight"]},
    ):
        updates = rs.open_updates(file, base, alpha=6)
        torch.testing.assert_close(updates["conv1"].dense(), truth)
        assert (updates.sites[0].rank, updates.sites[0].scale) == (2, 3)
        assert updates.sites[0].shape == tuple(truth.shape)


def test_full_state_dict_in_eval_mode_does_not_add_the_update_twice(lora):
    torch.manual_seed(0)
    layers = {"q": lora.Linear(8, 12, r=2, lora_alpha=2), "c": lora.Conv2d(2, 3, 3, r=1)}
    _, before, delta = merged_difference(lora, layers)
    model = torch.nn.ModuleDict(layers)
    updates = rs.open_updates(model.state_dict(), alpha=2)
    torch.testing.assert_close(updates["q"].dense(), delta["q.weight"])
    torch.testing.assert_close(updates["c"].dense() / 2, delta["c.conv.weight"].flatten(1))
    assert set(updates.unread) == {name for name in before if "lora_" not in name}


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_adalora_is_not_taken_for_it(rng, prefix):
    shapes = {"A": (2, 8), "B": (12, 2), "E": (2, 1)}
    tensors = {f"{prefix}h.0.q.lora_{x}": gaussian(*shapes[x], rng=rng) for x in shapes}
    assert not loralib.FAMILY.recognises(StateDict(tensors, "").tensors)


@pytest.mark.parametrize("missing", ["A", "B"])
def test_half_a_pair(rng, missing):
    tensors = {"h.0.q.lora_A": gaussian(2, 8, rng=rng), "h.0.q.lora_B": gaussian(12, 2, rng=rng)}
    del tensors[f"h.0.q.lora_{missing}"]
    with pytest.raises(AdapterError, match=f"without its lora_{missing}") as caught:
        rs.open_updates(tensors)
    assert f"h.0.q.lora_{missing}" in caught.value.expected


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 8)])
def test_factors_that_do_not_fit(rng, shape):
    tensors = {"h.0.q.lora_A": torch.ones(shape), "h.0.q.lora_B": gaussian(12, 2, rng=rng)}
    with pytest.raises(AdapterError):
        rs.open_updates(tensors)


def early_peft(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "adapter_model.bin")
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "enable_lora": [True, False, True]}
    (folder / "adapter_config.json").write_text(json.dumps(content | config))
    return folder


def early_tensors(rng):
    key = "base_model.model.transformer.h.0.self_attention.query_key_value"
    return key, {
        f"{key}.lora_A.weight": gaussian(4, 8, rng=rng),
        f"{key}.lora_B.weight": gaussian(16, 2, 1, rng=rng),
    }


def early_truth(a, b, enabled):
    """The grouped convolution that early PEFT ran, its rows put where enable_lora says."""
    delta = torch.nn.functional.conv1d(a[None], b, groups=2)[0]
    truth = torch.zeros(len(enabled), 8, 8, dtype=a.dtype)
    truth[list(enabled)] = delta.reshape(2, 8, 8)
    return truth.flatten(0, 1)


@pytest.mark.parametrize("enabled", [(True, False, True), (False, True, True)], ids=str)
def test_early_peft_is_its_grouped_convolution(tmp_path, rng, enabled):
    _, tensors = early_tensors(rng)
    folder = early_peft(tmp_path, tensors, enable_lora=list(enabled))
    updates = rs.open_updates(folder, split="none")
    assert updates.format == "peft-merged-linear"
    (site,) = updates.sites
    assert site.module == "transformer.h.0.self_attention.query_key_value"
    assert (site.shape, site.rank, site.scale) == ((24, 8), 4, 3)
    truth = early_truth(*tensors.values(), enabled)
    torch.testing.assert_close(updates[site.module].dense(), 3 * truth)
    assert not updates.notes
    assert not updates.unread


def test_early_peft_without_its_configuration(rng):
    _, tensors = early_tensors(rng)
    updates = rs.open_updates(tensors, split="none")
    assert updates.sites[0].scale is None
    assert len(updates.notes) == 2
    truth = early_truth(*tensors.values(), (True, False, True))
    torch.testing.assert_close(next(iter(updates)).dense(), truth)


BAD = {
    "enable_lora": ["q", "v"],
    "lora_alpha": "16",
}


@pytest.mark.parametrize("option", BAD.items(), ids=BAD)
def test_early_peft_with_an_unusable_configuration(tmp_path, rng, option):
    _, tensors = early_tensors(rng)
    with pytest.raises(AdapterError, match=rf"unusable {option[0]}"):
        rs.open_updates(early_peft(tmp_path, tensors, **dict([option])))


def test_early_peft_whose_blocks_contradict_its_configuration(tmp_path, rng):
    _, tensors = early_tensors(rng)
    with pytest.raises(AdapterError, match="which part of the weight"):
        rs.open_updates(early_peft(tmp_path, tensors, enable_lora=[True, True, True]))


def test_a_plain_peft_convolution_is_no_merged_linear(tmp_path, rng):
    tensors = {
        "base_model.model.conv.lora_A.weight": gaussian(2, 4, 3, rng=rng),
        "base_model.model.conv.lora_B.weight": gaussian(6, 2, 1, rng=rng),
    }
    assert rs.open_updates(tensors).format == "peft"


@pytest.mark.parametrize("known", ["by the base", "by the next projection", "by the inputs"])
@pytest.mark.parametrize("enabled", [(True, False, True), (True, True, True)], ids=str)
def test_litgpt_with_grouped_queries(rng, known, enabled):
    queries, others, in_ = (16, 4, 16) if known == "by the inputs" else (12, 4, 16)
    parts = [queries, others, others]
    ups = [gaussian(rows, 2, rng=rng) for rows, used in zip(parts, enabled, strict=True) if used]
    downs = [gaussian(2, in_, rng=rng) for _ in ups]
    key = "transformer.h.0.attn"
    tensors = {f"{key}.qkv.lora_A": torch.cat(downs), f"{key}.qkv.lora_B": torch.cat(ups)}
    base = {f"{key}.proj.weight": torch.zeros(in_, queries)} if known == "by the base" else None
    if known == "by the next projection":
        tensors[f"{key}.proj.lora_A"] = gaussian(2, queries, rng=rng)
        tensors[f"{key}.proj.lora_B"] = gaussian(in_, 2, rng=rng)
    updates = rs.open_updates(tensors, base, alpha=6)
    assert updates.format == "litgpt"
    truth = torch.zeros(sum(parts), in_, dtype=torch.float64)
    starts = [0, queries, queries + others]
    used = [start for start, enable in zip(starts, enabled, strict=True) if enable]
    for start, up, down in zip(used, ups, downs, strict=True):
        truth[start : start + len(up)] = 3 * up @ down
    slices = torch.cat([updates[f"{key}.qkv.{part}"].dense() for part in "qkv"])
    torch.testing.assert_close(slices, truth)
    ranks = [updates.site(f"{key}.qkv.{part}").rank for part in "qkv"]
    assert ranks == [updates[f"{key}.qkv.{part}"].ceiling for part in "qkv"]
    assert ranks == [2 * used for used in enabled]
    assert bool(updates.notes) == (not all(enabled))
    whole = rs.open_updates(tensors, base, alpha=6, split="none")
    torch.testing.assert_close(whole[f"{key}.qkv"].dense(), truth)
    assert whole.site(f"{key}.qkv").rank == 2 * sum(enabled)


@pytest.mark.parametrize("name", ["attn.attn", "attn.qkv"])
def test_litgpt_that_is_interleaved_or_of_one_part_is_refused(rng, name):
    rows = 4 if name == "attn.attn" else 2
    tensors = {
        f"transformer.h.0.{name}.lora_A": gaussian(rows, 16, rng=rng),
        f"transformer.h.0.{name}.lora_B": gaussian(20, 2, rng=rng),
    }
    with pytest.raises(AdapterError, match="which of q, k and v"):
        rs.open_updates(tensors)
