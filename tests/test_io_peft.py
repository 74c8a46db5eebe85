"""PEFT adapters: ΔW is what PEFT itself merges."""

import json

import peft
import pytest
import torch
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import load_file, save_file

import rankscope as rs
from rankscope.errors import AdapterError, SourceError


class Tiny(torch.nn.Module):
    """Two blocks of differently shaped linear layers, and an embedding."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "q_proj": torch.nn.Linear(8, 12, bias=False),
                    "v_proj": torch.nn.Linear(8, 8, bias=False),
                }
            )
            for _ in range(2)
        )

    def forward(self, x):
        return sum(layer["v_proj"](self.embed(x)) for layer in self.layers)


def trained(**options):
    """A PEFT model whose factors are all random, and its base."""
    torch.manual_seed(0)
    base = Tiny()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options}
    model = peft.get_peft_model(base, peft.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model, before


def merged_difference(model, before):
    after = model.merge_and_unload().state_dict()
    return {name.removesuffix(".weight"): after[name] - before[name] for name in before}


def check(updates, truth, atol=1e-5):
    changed = {name for name, delta in truth.items() if delta.abs().max() > 0}
    assert set(updates.names) == changed
    for name, update in updates.items():
        torch.testing.assert_close(update.dense().float(), truth[name], atol=atol, rtol=1e-5)


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.q_proj": 2, "v_proj": 3},
        "alpha_pattern": {"q_proj": 10, "layers.1.v_proj": 5},
    },
    "anchored pattern": {"alpha_pattern": {r"^layers\.0\..*": 3}},
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"layers.1.v_proj": 7},
    },
    "embedding": {"target_modules": ["embed", "q_proj"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
class TestAgainstPeft:
    def test_saved_folder(self, tmp_path, options):
        model, before = trained(**options)
        model.save_pretrained(tmp_path)
        check(rs.open_updates(tmp_path), merged_difference(model, before))

    def test_live_model_is_its_own_base(self, options):
        model, before = trained(**options)
        updates = rs.open_updates(model)
        for name in updates.names:
            torch.testing.assert_close(updates.weight(name), before[f"{name}.weight"])
        check(updates, merged_difference(model, before))

    def test_raw_state_dict_file(self, tmp_path, options):
        model, before = trained(**options)
        model.peft_config["default"].save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "adapter_model.bin")
        check(rs.open_updates(tmp_path), merged_difference(model, before))


def test_torch_container_gives_the_same(tmp_path, rng):
    tensors = peft_tensors(["layers.0.q_proj"], 4, rng)
    one = write_peft(tmp_path / "one", tensors)
    two = write_peft(tmp_path / "two", tensors)
    (two / "adapter_model.safetensors").unlink()
    torch.save(tensors, two / "adapter_model.bin")
    torch.testing.assert_close(
        rs.open_updates(one)["layers.0.q_proj"].dense(),
        rs.open_updates(two)["layers.0.q_proj"].dense(),
    )


def test_bare_file_uses_the_configuration_beside_it(tmp_path, rng):
    folder = write_peft(tmp_path, peft_tensors(["layers.0.q_proj"], 4, rng), lora_alpha=12)
    updates = rs.open_updates(folder / "adapter_model.safetensors")
    assert updates.sites[0].scale == 3


def test_file_without_configuration_is_flagged_and_read_at_scale_one(tmp_path, rng):
    tensors = peft_tensors(["layers.0.q_proj"], 4, rng)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    updates = rs.open_updates(tmp_path)
    assert updates.sites[0].scale is None
    assert any("scale is unknown" in note for note in updates.notes)
    assert updates["layers.0.q_proj"].scale == 1
    told = rs.open_updates(tmp_path, alpha=8)
    assert told.sites[0].scale == 2
    assert not told.notes


def test_alpha_from_the_user_wins_and_keeps_rslora(tmp_path, rng):
    folder = write_peft(tmp_path, peft_tensors(["a.0.q"], 4, rng), use_rslora=True)
    assert rs.open_updates(folder, alpha=6).sites[0].scale == 3


def test_rank_of_the_tensors_wins_over_the_configuration(tmp_path, rng):
    folder = write_peft(tmp_path, peft_tensors(["a.0.q"], 2, rng), r=4, lora_alpha=8)
    updates = rs.open_updates(folder)
    assert updates.sites[0].scale == 4
    assert any("tensors', not the configuration's" in note for note in updates.notes)


def test_missing_alpha_and_rank_are_pefts_defaults(tmp_path, rng):
    folder = write_peft(tmp_path, peft_tensors(["a.0.q"], 8, rng))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert rs.open_updates(folder).sites[0].scale == 1


def test_everything_else_is_listed_as_unread(tmp_path, rng):
    tensors = peft_tensors(["a.0.q"], 4, rng)
    tensors["base_model.model.a.0.q.bias"] = torch.ones(12)
    tensors["base_model.model.head.weight"] = torch.ones(3, 12)
    tensors["base_model.model.a.0.q.lora_B.bias"] = torch.ones(12)
    updates = rs.open_updates(write_peft(tmp_path, tensors))
    assert len(updates) == 1
    assert set(updates.unread) == {n for n in tensors if "lora_A" not in n and "B.weight" not in n}


REFUSED = {
    "peft_type": "ADALORA",
    "use_dora": True,
    "use_qalora": True,
    "init_lora_weights": "corda",
    "arrow_config": {"top_k": 2},
    "enable_lora": [True, False, True],
}


@pytest.mark.parametrize("option", REFUSED.items(), ids=REFUSED)
def test_more_than_a_product_is_refused(tmp_path, rng, option):
    folder = write_peft(tmp_path, peft_tensors(["a.0.q"], 4, rng), **dict([option]))
    with pytest.raises(AdapterError, match="something else, than scale"):
        rs.open_updates(folder)


def test_kasa_is_known_by_its_tensors_too(rng):
    tensors = peft_tensors(["a.0.q"], 4, rng) | {"base_model.model.a.0.q.lora_diag": torch.ones(4)}
    with pytest.raises(AdapterError, match="something else, than scale"):
        rs.open_updates(tensors)


@pytest.mark.parametrize("missing", ["A", "B"])
def test_half_a_pair(rng, missing):
    tensors = peft_tensors(["a.0.q", "a.1.q"], 4, rng)
    del tensors[f"base_model.model.a.1.q.lora_{missing}.weight"]
    with pytest.raises(AdapterError, match=f"without its lora_{missing}") as caught:
        rs.open_updates(tensors)
    assert f"lora_{missing}.weight" in caught.value.expected


def test_ranks_that_disagree(rng):
    tensors = peft_tensors(["a.0.q"], 4, rng)
    tensors["base_model.model.a.0.q.lora_B.weight"] = gaussian(12, 3, rng=rng)
    with pytest.raises(AdapterError, match="disagree about the rank"):
        rs.open_updates(tensors)


@pytest.mark.parametrize("shape", [(8,), (0, 8)])
def test_factors_that_are_no_matrices(rng, shape):
    tensors = peft_tensors(["a.0.q"], 4, rng)
    tensors["base_model.model.a.0.q.lora_A.weight"] = torch.ones(shape)
    with pytest.raises(AdapterError, match="not a matrix"):
        rs.open_updates(tensors)


def test_several_adapters_in_one_state_dict(rng):
    tensors = {
        f"a.lora_{side}.{name}.weight": torch.ones(2, 2)
        for side in "AB"
        for name in ("first", "second")
    }
    with pytest.raises(AdapterError, match="several adapters"):
        rs.open_updates(tensors)
    model, _ = trained()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(SourceError, match="several adapters"):
        rs.open_updates(model)


CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "alpha is text": '{"lora_alpha": "16"}',
    "alpha is not finite": '{"lora_alpha": Infinity}',
    "pattern is no object": '{"alpha_pattern": [1]}',
    "pattern is no expression": '{"alpha_pattern": {"(": 1}}',
    "pattern that runs for ages": '{"alpha_pattern": {"(a+)+": 1}}',
    "deep nesting": "[" * 100_000,
    "more than a megabyte": json.dumps({"x": "y" * 1_000_001}),
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_unusable_configuration(tmp_path, rng, content):
    folder = write_peft(tmp_path, peft_tensors(["a.0.q"], 4, rng))
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        rs.open_updates(folder)


def test_published_adapters_agree_with_their_factors(real):
    for folder, scale in (("roberta-base/peft-agnews", 4.0), ("qwen2.5-0.5b/peft/final", 2.0)):
        updates = rs.open_updates(real / folder)
        tensors = load_file(real / folder / "adapter_model.safetensors")
        for name in updates.names[:4]:
            key = f"base_model.model.{name}"
            a, b = (tensors[f"{key}.lora_{x}.weight"].double() for x in "AB")
            torch.testing.assert_close(updates[name].dense(), scale * b @ a)


def test_a_live_model_that_was_rescaled_counts_as_it_is(rng):
    model, _ = trained(alpha_pattern={"v_proj": 3})
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 3.0)
    layers = dict(model.base_model.model.named_modules())
    for name, update in rs.open_updates(model).items():
        truth = layers[name].get_delta_weight("default").double()
        torch.testing.assert_close(update.dense(), truth, atol=1e-5, rtol=1e-5)


def test_a_merged_live_model_is_refused():
    model, _ = trained()
    model.merge_adapter()
    with pytest.raises(SourceError, match="merged into the model"):
        rs.open_updates(model)
    model.unmerge_adapter()
    assert len(rs.open_updates(model)) == 4


def test_an_open_set_keeps_its_alpha_and_base(rng):
    tensors = peft_tensors(["a.0.q"], 4, rng)
    updates = rs.open_updates(tensors, alpha=8)
    result = rs.rank(updates)
    assert result.provenance["options"]["alpha"] == 8
    for options in ({"alpha": 16}, {"base": {"a.0.q.weight": torch.ones(12, 8)}}):
        with pytest.raises(SourceError, match="open already"):
            rs.rank(updates, **options)
    # In a comparison base and alpha are for the side that is not open yet.
    assert len(rs.similarity(updates, tensors, alpha=4).table) == 2
