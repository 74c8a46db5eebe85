"""Directions kept and removed: closed forms, planted directions, bad input."""

import json

import pytest
import torch
from oracles import gaussian, haar, peft_tensors, with_spectrum
from torch.testing import assert_close

from rankscope.analysis.ablation import truncate
from rankscope.analysis.intruders import intruders
from rankscope.analysis.similarity import similarity
from rankscope.errors import SourceError, UpdateError
from rankscope.io.sources import open_updates


def pair(matrix, base=None):
    base = torch.zeros_like(matrix) if base is None else base
    return {"w.weight": base + matrix}, {"w.weight": base}


def planted(rng, s=(4.0, 3.0, 2.0, 1.0), out=12, in_=8):
    return with_spectrum(s, out, in_, rng)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_directions_are_the_truncated_svd(side, rng):
    matrix = planted(rng)
    tuned, base = pair(matrix)
    result = truncate(tuned, base=base, k=2, side=side)
    u, s, vt = torch.linalg.svd(matrix)
    assert_close(result.updates["w"].dense(), (u[:, :2] * s[:2]) @ vt[:2])
    assert result.table.energy_share[0] == pytest.approx((16 + 9) / 30)
    assert result.table.relative_error[0] == pytest.approx((5 / 30) ** 0.5)


@pytest.mark.parametrize("control", [None, 3])
@pytest.mark.parametrize("side", ["right", "left"])
def test_kept_and_removed_add_up(side, control, rng):
    tensors = peft_tensors(["h.0.q", "h.1.q"], 4, rng)
    updates = open_updates(tensors, alpha=8)
    kept, rest = (
        truncate(updates, k=2, side=side, remove=remove, control=control).updates
        for remove in (False, True)
    )
    for name, update in updates.items():
        assert_close(kept[name].dense() + rest[name].dense(), update.dense())


def test_a_control_has_the_same_singular_values_elsewhere(rng):
    tuned, base = pair(planted(rng))
    own, control = (truncate(tuned, base=base, k=2, control=c) for c in (None, 0))
    s, t = (torch.linalg.svdvals(one.updates["w"].dense()) for one in (own, control))
    assert_close(s, t)
    assert control.table.energy_share[0] == pytest.approx(own.table.energy_share[0])
    again = truncate(tuned, base=base, k=2, control=0)
    assert_close(again.updates["w"].dense(), control.updates["w"].dense(), rtol=0, atol=0)
    assert own.updates["w"].inner(control.updates["w"]) < 0.9 * own.updates["w"].norm() ** 2


def test_every_module_of_a_control_draws_its_own(rng):
    same = gaussian(8, 8, rng=rng)
    tuned = {"h.0.q.weight": same, "h.1.q.weight": same}
    base = {name: torch.zeros_like(same) for name in tuned}
    one, other = truncate(tuned, base=base, k=2, control=0).updates
    assert abs(one.inner(other)) < 0.9 * one.norm() * other.norm()


def test_shared_directions_are_those_planted(rng):
    d = 64
    common, rest = haar(d, 6, rng).split([2, 4], dim=1)
    left = haar(d, 4, rng)
    one = left * torch.tensor([4.0, 3.0, 2.0, 1.0]) @ torch.cat([common, rest[:, :2]], 1).T
    other = left * torch.tensor([4.0, 3.0, 2.0, 1.0]) @ torch.cat([rest[:, 2:], common], 1).T
    (tuned, base), (second, _) = pair(one), pair(other)
    result = truncate(tuned, base=base, directions="shared", other=second)
    assert result.table.directions.tolist() == [2]
    assert_close(result.updates["w"].dense(), one @ common @ common.T, atol=1e-9, rtol=0)
    assert result.table.energy_share[0] == pytest.approx(25 / 30)


def test_unrelated_updates_share_nothing(rng):
    (one, base), (other, _) = (pair(with_spectrum([2.0, 1.0], 96, 96, rng)) for _ in range(2))
    result = truncate(one, base=base, directions="shared", other=other)
    assert result.table.directions.tolist() == [0]
    assert not result.updates["w"].dense().any()


def test_the_intruder_is_found_and_removed(rng):
    d = 64
    weight = torch.diag(torch.linspace(1.0, 2.0, d, dtype=torch.float64))
    spread = torch.full((d, 1), d**-0.5, dtype=torch.float64)
    update = 10 * haar(d, 1, rng) @ spread.T
    tuned, base = pair(update, weight)
    result = truncate(tuned, base=base, directions="intruder", remove=True)
    assert result.table.directions[0] >= 1
    assert result.updates["w"].norm() < 0.3 * 10
    assert truncate(base, base=base, directions="intruder").table.directions.tolist() == [0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_intruders_are_those_that_are_counted(side, rng):
    d = 32  # nearly equal values of W mix under a small update, and are no intruders
    values = torch.linspace(1.001, 1.0, d, dtype=torch.float64)
    weight = haar(d, d, rng) * values @ haar(d, d, rng).T
    tuned, base = pair(0.02 * gaussian(d, d, rng=rng) / d**0.5, weight)
    count = intruders(tuned, base=base, k=10).table.set_index("side").intruders[side]
    chosen = truncate(tuned, base=base, directions="intruder", k=10, side=side)
    assert chosen.table.directions.tolist() == [count]
    assert count < 10


def test_noise_is_what_lies_below_its_edge(rng):
    n = 96
    signal = with_spectrum([40.0, 30.0], n, n, rng)
    update = (signal + gaussian(n, n, rng=rng) / 2).float()
    tuned, base = pair(update, gaussian(n, n, rng=rng).float())
    result = truncate(tuned, base=base, directions="noise", remove=True)
    assert n - 2 >= result.table.directions[0] > n / 2
    kept = result.updates["w"].dense()
    assert torch.linalg.matrix_norm(kept - signal) < torch.linalg.matrix_norm(signal)


def test_the_score_is_of_base_plus_what_is_left(rng):
    weight = gaussian(6, 6, rng=rng).float()
    tuned, base = pair(gaussian(6, 6, rng=rng).float(), weight)
    seen = {}
    result = truncate(tuned, base=base, k=6, evaluate=lambda w: seen.update(w) or {"loss": 0.5})
    assert result.score == result.to_dict()["score"] == {"loss": 0.5}
    assert_close(seen["w.weight"], tuned["w.weight"], rtol=0, atol=1e-6)
    assert seen["w.weight"].dtype == torch.float32
    assert_close(result.weights()["w.weight"], seen["w.weight"])


def test_a_zero_update_stays_zero():
    tuned, base = pair(torch.zeros(4, 4))
    result = truncate(tuned, base=base, k=2)
    assert result.table.directions.tolist() == [0]
    assert result.table.energy_share.isna().all()


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 0}, {"directions": "last", "k": 1}, {"k": 1, "side": "up"},
     {"directions": "shared"}, {"k": 1, "other": {}}],
)  # fmt: skip
def test_bad_choices(options, rng):
    with pytest.raises(UpdateError, match="cannot be chosen"):
        truncate(open_updates(peft_tensors(["h.0.q"], 2, rng), alpha=2), **options)


def test_what_a_choice_needs(rng):
    updates = open_updates(peft_tensors(["h.0.q"], 2, rng), alpha=2)
    with pytest.raises(SourceError, match="base weights"):
        truncate(updates, directions="intruder")
    with pytest.raises(UpdateError, match="no noise"):
        truncate(updates, directions="noise")


# --- what is scored --------------------------------------------------------------------------

FACTORS = {"A": (2, 16), "B": (16, 2)}
LAYER = "model.layers.0.self_attn"
KINDS = ("q_proj", "v_proj", "o_proj")


def loaded(base):
    """Return what a model that was loaded from `base` holds after ``load_state_dict``."""
    return lambda weights: {**base, **weights}


def attention(rng, d=16):
    modules = [f"{LAYER}.{kind}" for kind in KINDS]
    base = {f"{module}.weight": gaussian(d, d, rng=rng) for module in modules}
    return modules, base, peft_tensors(modules, 2, rng, out=d, in_=d)


@pytest.mark.parametrize("remove", [True, False])
def test_a_module_without_a_partner_shares_nothing(remove, rng):
    modules, base, tensors = attention(rng)
    updates = open_updates(tensors, base, alpha=2)
    other = open_updates(peft_tensors(modules[:2], 2, rng, out=16, in_=16), alpha=2)
    result = truncate(
        updates, directions="shared", other=other, remove=remove, evaluate=loaded(base)
    )
    left = result.score[f"{modules[2]}.weight"] - base[f"{modules[2]}.weight"]
    assert_close(left, updates[modules[2]].dense() * remove, atol=1e-12, rtol=0)
    rows = result.table.set_index("module").loc[modules[2]]
    assert (rows.directions, rows.energy_share, rows.relative_error) == (0, 0, 1 - remove)
    assert any("share nothing: " + modules[2] in note for note in result.notes)
    assert not result.failures


def test_a_model_of_which_a_module_failed_is_not_scored(rng):
    modules, base, tensors = attention(rng)
    tensors[f"base_model.model.{modules[2]}.lora_A.weight"][0, 0] = torch.nan
    updates, scored = open_updates(tensors, base, alpha=2), []
    with pytest.raises(UpdateError, match="not known") as error:
        truncate(updates, k=1, evaluate=scored.append)
    assert error.value.where == modules[2]
    assert not scored
    result = truncate(updates, k=1)
    assert [failure["module"] for failure in result.failures] == modules[2:]
    with pytest.raises(UpdateError, match="not known"):
        result.weights()


def test_partners_that_do_not_fit_are_failures(rng):
    updates = open_updates(peft_tensors(["h.0.q", "h.1.q"], 2, rng, in_=8), alpha=2)
    wrong = peft_tensors(["h.0.q"], 2, rng, in_=8) | peft_tensors(["h.1.q"], 2, rng, in_=9)
    result = truncate(updates, directions="shared", other=open_updates(wrong, alpha=2))
    assert [(f["module"], f["what"]) for f in result.failures] == [
        ("h.1.q", "the two updates have different shapes")
    ]


def test_modules_are_matched_by_whatever_names(rng):
    peft = peft_tensors([f"{LAYER}.q_proj", f"{LAYER}.v_proj"], 4, rng, out=32, in_=32)
    kohya = {}
    for name, tensor in peft.items():
        module, factor = name.removeprefix("base_model.model.").split(".lora_")
        new = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[factor]
        kohya[f"lora_te1_{module.replace('.', '_')}.{new}"] = tensor
    one, two = open_updates(peft, alpha=4), open_updates(kohya, alpha=4)
    assert one.names != two.names
    same = similarity(one, two, side="right").table
    result = truncate(one, directions="shared", other=two)
    assert result.table.directions.tolist() == same.shared_directions.tolist() == [4, 4]
    assert_close(result.updates[one.names[0]].dense(), one[one.names[0]].dense())
    assert any("names matched" in note for note in result.notes)


def test_rows_in_another_order_share_input_directions_only(rng):
    one = {f"{LAYER}.q_proj.lora_{f}.weight": gaussian(*s, rng=rng) for f, s in FACTORS.items()}
    tune = {
        f"layers.0.attn.q_proj.lora_{f.lower()}.weight": one[f"{LAYER}.q_proj.lora_{f}.weight"]
        for f in FACTORS
    }
    shared = {"directions": "shared", "other": tune, "alpha": 2}
    assert truncate(one, **shared).table.directions.tolist() == [2]
    with pytest.raises(UpdateError, match="different orders"):
        truncate(one, **shared, side="left")


def test_slices_are_compared_as_what_the_other_has_whole(rng):
    tensors = peft_tensors(["h.0.c_attn"], 2, rng, out=48, in_=16)
    whole = open_updates(tensors, alpha=2, split="none")
    result = truncate(open_updates(tensors, alpha=2), directions="shared", other=whole)
    assert result.table.module.tolist() == ["h.0.c_attn"]
    assert result.table.directions.tolist() == [2]


def test_what_is_fused_otherwise_is_not_taken_for_nothing_shared(rng):
    fused = peft_tensors(["h.0.attn.qkv_proj", "h.0.attn.o_proj"], 2, rng, out=20)
    apart = peft_tensors(["h.0.attn.q_proj", "h.0.attn.o_proj"], 2, rng, out=20)
    for one, two in ((fused, apart), (apart, fused)):
        result = truncate(open_updates(one, alpha=2), directions="shared", other=two, alpha=None)
        assert result.table.module.tolist() == ["h.0.attn.o_proj"]
        assert [f["what"] for f in result.failures] == ["what this module shares cannot be told"]


@pytest.mark.parametrize(("d", "rank", "count"), [(512, 100, 80), (64, 40, 30), (64, 20, 10)])
def test_all_directions_of_factors_are_compared(d, rank, count, rng):
    common = haar(d, count, rng)

    def adapter():
        down = torch.cat([d**0.5 * common.T, gaussian(rank - count, d, rng=rng)])
        return {"h.0.q.lora_A.weight": down, "h.0.q.lora_B.weight": gaussian(d, rank, rng=rng)}

    one, two = (open_updates(adapter(), alpha=rank) for _ in range(2))
    found = truncate(one, directions="shared", other=two).table.directions[0]
    counted = similarity(one, two, side="right").table.shared_directions[0]
    if 2 * rank <= d:  # else any two meet, and fewer are compared
        assert found == counted == count
    assert found <= count


# --- as the base stores it -------------------------------------------------------------------

WIDTH = 8


def gpt2(rng):
    shapes = {"attn.c_attn": (8, 24), "attn.c_proj": (8, 8), "mlp.c_fc": (8, 32)}
    return {f"h.0.{name}.weight": gaussian(*shape, rng=rng) for name, shape in shapes.items()}


def experts(rng):
    stem = "model.layers.0.mlp.experts"
    shapes = {f"{stem}.gate_up_proj": (3, 12, 8), f"{stem}.down_proj": (3, 8, 6)}
    return {name: gaussian(*shape, rng=rng) for name, shape in shapes.items()}


def convolution(rng):
    return {"down.0.conv.weight": gaussian(6, 4, 3, 3, rng=rng)}


def gate_up(rng):
    return {"model.layers.0.mlp.gate_up_proj.weight": gaussian(12, 8, rng=rng)}


@pytest.mark.parametrize("make", [gpt2, experts, convolution, gate_up])
@pytest.mark.parametrize("split", ["auto", "none"])
def test_weights_are_as_the_base_stores_them(make, split, rng):
    base = {name: tensor.float() for name, tensor in make(rng).items()}
    tuned = {
        name: tensor + torch.randn(tensor.shape, generator=rng) for name, tensor in base.items()
    }
    before = {name: tensor.clone() for name, tensor in base.items()}
    updates = open_updates(tuned, base, split=split)
    scored = truncate(updates, k=99, evaluate=loaded({})).score
    assert_close(scored, tuned, atol=1e-5, rtol=0)
    assert truncate(updates, k=99, remove=True).weights().keys() == base.keys()
    assert_close(base, before, atol=0, rtol=0)


def test_names_are_those_of_the_checkpoint(rng):
    base = gpt2(rng)
    tuned = {f"transformer.{name}": tensor + 1 for name, tensor in base.items()}
    assert_close(truncate(tuned, base=base, k=1).weights(), tuned)


def test_names_of_another_library_are_not_handed_on(rng):
    base = {f"{LAYER}.v_proj.weight": gaussian(16, 16, rng=rng)}
    down, up = gaussian(2, 16, rng=rng), gaussian(16, 2, rng=rng)
    kohya = f"lora_te1_{LAYER.replace('.', '_')}_v_proj"
    for tensors in (
        {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up},
        {"layers.0.attn.v_proj.lora_a.weight": down, "layers.0.attn.v_proj.lora_b.weight": up},
    ):
        weights = truncate(open_updates(tensors, base, alpha=2), k=2).weights()
        assert_close(weights, {name: weight + up @ down for name, weight in base.items()})


def test_parts_that_nothing_updates_stay(rng):
    base = gpt2(rng)
    tuned = {name: tensor + gaussian(*tensor.shape, rng=rng) for name, tensor in base.items()}
    updates = open_updates(tuned, base).select(name="*.k")
    (name,), (weight,) = zip(*truncate(updates, k=8).weights().items(), strict=True)
    expected = base[name].clone()
    expected[:, 8:16] = tuned[name][:, 8:16]
    assert_close(weight, expected)


@pytest.mark.parametrize("split", ["auto", "heads"])
def test_slices_that_are_left_are_parts_of_what_is_left(split, rng, tmp_path):
    told = {"model_type": "gpt2", "n_embd": 16, "n_head": 4}
    (tmp_path / "config.json").write_text(json.dumps(told))
    base = {"h.0.attn.c_attn.weight": gaussian(16, 48, rng=rng).float()}
    base |= {"h.0.attn.c_proj.weight": gaussian(16, 16, rng=rng).float()}
    torch.save(base, tmp_path / "model.pt")
    modules = {"h.0.attn.c_attn": 48, "h.0.attn.c_proj": 16}
    tensors = {}
    for module, out in modules.items():
        tensors |= peft_tensors([module], 4, rng, out=out, in_=16)
    updates = open_updates(tensors, tmp_path / "model.pt", alpha=4, split=split)
    result = truncate(updates, k=1)
    result.updates.save(tmp_path / "left")
    again = open_updates(tmp_path / "left", split="none")
    assert again.names == list(modules)
    weights = result.weights()
    for module in modules:
        name = f"{module}.weight"
        assert_close(
            base[name] + again[module].dense().T.float(), weights[name], atol=1e-5, rtol=0
        )
    for name in result.updates.names:
        assert_close(result.updates.weight(name), updates.weight(name))


def test_fused_here_and_apart_in_the_base(rng):
    base = {f"{LAYER}.{part}_proj.weight": gaussian(8, 8, rng=rng) for part in "qkv"}
    fused = peft_tensors([f"{LAYER}.qkv_proj"], 2, rng, out=24, in_=8)
    for split in ("auto", "none"):
        updates = open_updates(fused, base, alpha=2, split=split)
        weights = truncate(updates, k=2).weights()
        assert list(weights) == list(base)
        whole = open_updates(fused, alpha=2, split="none").sites[0].recipe.build().dense()
        assert_close(torch.cat(list(weights.values())), torch.cat(list(base.values())) + whole)


@pytest.mark.parametrize("split", ["auto", "heads"])
def test_heads_that_lie_together(split, rng, tmp_path):
    told = {"model_type": "gpt_neox", "hidden_size": 16, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(told))
    name = "gpt_neox.layers.0.attention.query_key_value"
    base = {f"{name}.weight": gaussian(48, 16, rng=rng).float()}
    torch.save(base, tmp_path / "model.pt")
    updates = peft_tensors([name], 2, rng, out=48, in_=16)
    split_set = open_updates(updates, tmp_path / "model.pt", alpha=2, split=split)
    assert len(split_set) == (3 if split == "auto" else 12)
    (weight,) = truncate(split_set, k=2).weights().values()
    whole = open_updates(updates, alpha=2, split="none")[name].dense()
    assert_close(weight, (base[f"{name}.weight"] + whole).float(), atol=1e-6, rtol=0)


def test_a_weight_of_two_modules_is_not_changed_twice(rng, tmp_path):
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    torch.save({"model.embed_tokens.weight": gaussian(12, 8, rng=rng)}, tmp_path / "model.pt")
    tensors = peft_tensors(["lm_head", "model.embed_tokens"], 2, rng)
    updates = open_updates(tensors, tmp_path / "model.pt", alpha=2)
    assert list(truncate(updates.only("lm_head"), k=2).weights()) == ["lm_head.weight"]
    with pytest.raises(SourceError, match="change one stored weight"):
        truncate(updates, k=2, evaluate=len)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["live", "names of the model", "names of the hub"])
def test_a_gpt2_takes_them_as_peft_merges_them(kind, tmp_path):
    peft, transformers = map(pytest.importorskip, ("peft", "transformers"))
    config = transformers.GPT2Config(n_embd=WIDTH, n_head=2, n_layer=2, vocab_size=11)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = ["c_attn", "c_proj", "c_fc"]
    adapter = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, fan_in_fan_out=True
    )
    tuned = peft.get_peft_model(model, adapter)
    tuned.save_pretrained(tmp_path)
    hub = {name.removeprefix("transformer."): tensor for name, tensor in plain.items()}
    source, base = {
        "live": (tuned, None),
        "names of the model": (tmp_path, plain),
        "names of the hub": (tmp_path, hub),
    }[kind]
    weights = truncate(source, base=base, k=3).weights()
    merged = tuned.merge_and_unload().state_dict()
    fresh = transformers.GPT2LMHeadModel(config)
    fresh.load_state_dict(plain)
    taken = fresh.load_state_dict(weights, strict=False)
    assert not taken.unexpected_keys
    assert len(weights) == 2 * 4
    assert_close(dict(fresh.state_dict()), dict(merged), atol=1e-6, rtol=0)


def test_an_output_of_one_number_shares_nothing_beyond_chance(rng):
    base = {"score.weight": gaussian(1, 12, rng=rng), "q.weight": gaussian(12, 12, rng=rng)}
    one, two = (
        {name: weight + gaussian(*weight.shape, rng=rng) for name, weight in base.items()}
        for _ in range(2)
    )
    result = truncate(one, base=base, other=two, directions="shared", side="left")
    assert not result.failures
    assert result.table.set_index("module").directions["score"] == 0
