"""Adapters of diffusion models: three spellings of diffusers' keys, and cloneofsimo's numbers."""

import json

import peft
import pytest
import torch
from oracles import gaussian
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError, SourceError, UpdateError
from rankscope.io.names import kind_of, layer_of

ATTN = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.3.self_attn"
MODULES = (f"{ATTN}.to_q", f"{ATTN}.to_out.0", f"{TEXT}.q_proj", f"{TEXT}.out_proj")

SPELLINGS = {
    "old": (
        (f"{ATTN}.processor.to_q_lora", f"{ATTN}.processor.to_out_lora",
         f"{TEXT}.to_q_lora", f"{TEXT}.to_out_lora"),
        "down", "up",
    ),
    "mid": (
        (f"{ATTN}.to_q.lora", f"{ATTN}.to_out.0.lora",
         f"{TEXT}.q_proj.lora_linear_layer", f"{TEXT}.out_proj.lora_linear_layer"),
        "down", "up",
    ),
    "new": (MODULES, "lora_A", "lora_B"),
}  # fmt: skip


@pytest.fixture
def factors(rng):
    return [(gaussian(12, 2, rng=rng), gaussian(2, 8, rng=rng)) for _ in MODULES]


def spelled(factors, spelling, *, alphas=()):
    owners, down, up = SPELLINGS[spelling]
    tensors = {}
    for owner, (b, a) in zip(owners, factors, strict=True):
        tensors |= {f"{owner}.{down}.weight": a, f"{owner}.{up}.weight": b}
    for owner, alpha in zip(owners, alphas, strict=False):
        tensors[f"{owner}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
    return tensors


def saved(path, tensors, **settings):
    metadata = {"format": "pt"}
    if settings:
        metadata["lora_adapter_metadata"] = json.dumps(
            {key.replace("__", "."): value for key, value in settings.items()}
        )
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_are_one_update(factors, spelling):
    updates = rs.open_updates(spelled(factors, spelling))
    assert updates.format == "diffusers"
    assert set(updates.names) == set(MODULES)
    for module, (up, down) in zip(MODULES, factors, strict=True):
        torch.testing.assert_close(updates[module].dense(), up @ down)
    assert {site.scale for site in updates.sites} == {1}
    assert any("names no alpha" in note for note in updates.notes)
    assert not updates.unread


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_alpha_tensors_come_before_the_header(tmp_path, factors, spelling):
    tensors = spelled(factors, spelling, alphas=[6.0])
    path = saved(tmp_path / "lora.safetensors", tensors, unet__lora_alpha=8, unet__r=2)
    updates = rs.open_updates(path)
    scales = {module: updates.site(module).scale for module in MODULES}
    assert list(scales.values()) == [3, 4, 1, 1]
    up, down = factors[0]
    torch.testing.assert_close(updates[MODULES[0]].dense(), 3 * up @ down)
    assert not updates.unread
    assert {s.scale for s in rs.open_updates(path, alpha=10).sites} == {5}


def test_alpha_that_is_not_a_number(factors):
    tensors = spelled(factors, "new", alphas=[float("nan")])
    with pytest.raises(UpdateError, match="not finite"):
        rs.open_updates(tensors)


def test_header_has_rslora_and_patterns_by_component(tmp_path, factors):
    path = saved(
        tmp_path / "lora.safetensors",
        spelled(factors, "new"),
        unet__lora_alpha=8,
        unet__use_rslora=True,
        text_encoder__lora_alpha=6,
        text_encoder__alpha_pattern={"self_attn.out_proj": 10},
    )
    updates = rs.open_updates(path)
    scales = [updates.site(module).scale for module in MODULES]
    assert scales == pytest.approx([8 / 2**0.5, 8 / 2**0.5, 3, 5])
    assert not updates.notes


class Transformer(torch.nn.Module):
    """Two projections with the names of a diffusion transformer."""

    def __init__(self):
        super().__init__()
        block = {"to_q": torch.nn.Linear(8, 12), "to_v": torch.nn.Linear(8, 8)}
        attn = torch.nn.ModuleDict({"attn": torch.nn.ModuleDict(block)})
        self.transformer_blocks = torch.nn.ModuleList([attn])

    def forward(self, x):
        return self.transformer_blocks[0]["attn"]["to_v"](x)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn.to_v": 5}}], ids=str
)
def test_what_peft_merges_is_what_the_header_says(tmp_path, options):
    torch.manual_seed(0)
    base = Transformer()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], **options)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    tensors = peft.get_peft_model_state_dict(model)
    prefixed = {n.replace("base_model.model", "transformer"): t for n, t in tensors.items()}
    settings = {"r": 4, "lora_alpha": 6, **options}
    path = saved(
        tmp_path / "lora.safetensors",
        prefixed,
        **{f"transformer.{key}": value for key, value in settings.items()},
    )
    after = model.merge_and_unload().state_dict()
    updates = rs.open_updates(path)
    assert len(updates) == 2
    for name, update in updates.items():
        key = f"{name.removeprefix('transformer.')}.weight"
        truth = after[key] - before[key]
        torch.testing.assert_close(update.dense().float(), truth, atol=1e-5, rtol=1e-5)


def test_files_without_a_component_keep_their_names(factors):
    tensors = {n.removeprefix("unet."): t for n, t in spelled(factors, "old").items() if ATTN in n}
    updates = rs.open_updates(tensors)
    assert set(updates.names) == {m.removeprefix("unet.") for m in MODULES[:2]}


def test_configuration_of_peft_beside_the_file_says_the_scale(tmp_path, factors):
    saved(tmp_path / "adapter_model.safetensors", spelled(factors, "new"))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 6}')
    updates = rs.open_updates(tmp_path)
    assert {site.scale for site in updates.sites} == {3}
    assert not updates.notes


def test_transformers_of_language_models_stay_with_peft(rng):
    tensors = {
        "transformer.h.0.attn.c_attn.lora_A.weight": gaussian(2, 8, rng=rng),
        "transformer.h.0.attn.c_attn.lora_B.weight": gaussian(24, 2, rng=rng),
    }
    assert rs.open_updates(tensors).format == "peft"
    unet = {f"base_model.model.{n.replace('c_attn', 'to_q')}": t for n, t in tensors.items()}
    assert rs.open_updates(unet).format == "peft"


def test_convolutions_are_flattened(rng):
    up, down = gaussian(6, 2, 1, 1, rng=rng), gaussian(2, 4, 3, 3, rng=rng)
    name = "unet.down_blocks.0.resnets.0.conv1"
    updates = rs.open_updates({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    truth = torch.einsum("or,rikl->oikl", up[..., 0, 0], down).flatten(1)
    torch.testing.assert_close(updates[name].dense(), truth)


def test_other_tensors_are_unread(factors):
    extra = {
        "transformer.norm_q.weight": torch.ones(8),
        "unet.conv_in.alpha": torch.ones(()),
    }
    assert set(rs.open_updates(spelled(factors, "new") | extra).unread) == set(extra)


def test_two_spellings_of_one_factor_are_an_error(factors):
    with pytest.raises(AdapterError, match="the same factor"):
        rs.open_updates(spelled(factors, "mid") | spelled(factors, "new"))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_half_a_pair(factors, spelling):
    tensors = spelled(factors, spelling)
    tensors.pop(next(name for name in tensors if "up" in name or "lora_B" in name))
    with pytest.raises(AdapterError, match="incomplete"):
        rs.open_updates(tensors)


def test_dora_is_refused(tmp_path, factors):
    tensors = spelled(factors, "new")
    path = saved(tmp_path / "lora.safetensors", tensors, unet__lora_alpha=8, unet__use_dora=True)
    with pytest.raises(AdapterError, match="DoRA"):
        rs.open_updates(path)
    with pytest.raises(AdapterError, match="DoRA"):
        rs.open_updates(tensors | {f"{MODULES[0]}.lora_magnitude_vector": torch.ones(12)})


BAD = {
    "no JSON": "{",
    "a list": "[1]",
    "alpha is text": '{"unet.lora_alpha": "8"}',
    "alpha is not finite": '{"unet.lora_alpha": NaN}',
    "patterns are a list": '{"unet.alpha_pattern": [1]}',
    "deep nesting": "[" * 100_000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_unusable_header(tmp_path, factors, content):
    path = tmp_path / "lora.safetensors"
    save_file(spelled(factors, "new"), path, {"format": "pt", "lora_adapter_metadata": content})
    with pytest.raises(AdapterError, match="lora_adapter_metadata"):
        rs.open_updates(path)


KINDS = {
    f"{ATTN}.to_q": "q",
    f"{ATTN}.to_out.0": "o",
    "transformer.transformer_blocks.7.attn.add_k_proj": "k",
    "transformer.transformer_blocks.7.attn.to_add_out": "o",
    "transformer.transformer_blocks.7.ff.net.0.proj": "up",
    "transformer.transformer_blocks.7.ff_context.net.2": "down",
    "transformer.transformer_blocks.7.norm1.linear": "other",
    "model.layers.7.mlp.switch_mlp.gate_proj[12]": "gate",
    "layers.7.attn.output_proj": "o",
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_names(name):
    assert kind_of(name) == KINDS[name]
    assert layer_of(name) == (None if "unet" in name else 7)  # a U-Net has no one count


class TestCloneofsimo:
    def tensors(self, rng):
        return {
            "unet:0:up": gaussian(12, 2, rng=rng),
            "unet:0:down": gaussian(2, 8, rng=rng),
            "unet:10:up": gaussian(6, 1, 1, 1, rng=rng),
            "unet:10:down": gaussian(1, 4, 3, 3, rng=rng),
            "text_encoder:2:up": gaussian(8, 3, rng=rng),
            "text_encoder:2:down": gaussian(3, 8, rng=rng),
            "<s1>": torch.ones(8),
        }

    def test_products_and_numbers(self, tmp_path, rng):
        tensors = self.tensors(rng)
        metadata = {"unet": '["CrossAttention"]', "unet:0:rank": "2", "<s1>": "<embed>"}
        save_file(tensors, tmp_path / "lora.safetensors", metadata)
        updates = rs.open_updates(tmp_path)
        assert updates.format == "cloneofsimo"
        assert updates.names == ["text_encoder:2", "unet:0", "unet:10"]
        assert updates.unread == ("<s1>",)
        assert [(site.rank, site.scale) for site in updates.sites] == [(3, 1), (2, 1), (1, 1)]
        for name in updates.names:
            up, down = (tensors[f"{name}:{side}"].flatten(1) for side in ("up", "down"))
            torch.testing.assert_close(updates[name].dense(), up @ down)
        assert {site.kind for site in updates.sites} == {"other"}
        assert rs.open_updates(tmp_path, alpha=6).site("unet:0").scale == 3

    @pytest.mark.parametrize("side", ["up", "down"])
    def test_half_a_pair(self, rng, side):
        tensors = self.tensors(rng)
        del tensors[f"unet:0:{side}"]
        with pytest.raises(AdapterError, match="incomplete") as caught:
            rs.open_updates(tensors)
        assert f"unet:0:{side}" in caught.value.got

    def test_bare_lists(self, tmp_path, rng):
        shapes = [(12, 2, 8), (6, 1, 6), (320, 4, 320)]
        pairs = [(gaussian(o, r, rng=rng), gaussian(r, i, rng=rng)) for o, r, i in shapes]
        pairs.append((gaussian(5, 2, 1, 1, rng=rng), gaussian(2, 3, 3, 3, rng=rng)))
        factors = [factor.half().requires_grad_() for pair in pairs for factor in pair]
        torch.save(factors, tmp_path / "lora.pt")
        torch.save(factors[:2], tmp_path / "lora.text_encoder.pt")
        updates = rs.open_updates(tmp_path / "lora.pt")
        assert updates.format == "cloneofsimo"
        assert updates.names == [f"unet:{n}" for n in range(4)]
        assert any("no names" in note for note in updates.notes)
        for n, update in enumerate(updates):
            up, down = (factors[2 * n + side].detach().double().flatten(1) for side in (0, 1))
            torch.testing.assert_close(update.dense(), up @ down)
        encoder = rs.open_updates(tmp_path / "lora.text_encoder.pt")
        assert encoder.names == ["text_encoder:0"]

    @pytest.mark.parametrize(
        "content",
        [
            [],
            [torch.ones(4, 2)],
            [torch.ones(4, 2), torch.ones(3, 4)],
            [torch.ones(4), torch.ones(4)],
            [torch.ones(4, 2), "down"],
            [{"lora": torch.ones(2, 2)}, {}],
        ],
    )
    def test_lists_of_anything_else(self, tmp_path, content):
        torch.save(content, tmp_path / "lora.pt")
        with pytest.raises(SourceError, match="no tensors found"):
            rs.open_updates(tmp_path / "lora.pt")
