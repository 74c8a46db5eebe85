"""Names of one module in several libraries, each table against a source of its own."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError, SourceError
from rankscope.io.matching import Catalogue, base_name, match, nearest
from rankscope.io.renames import spell
from rankscope.io.rotary import halves

SHAPE = (12, 8)


def same(*names, shape=SHAPE):
    return dict.fromkeys(names, shape)


def pairs(a, b):
    return {name: found.b for name, found in match(a, b).pairs.items()}


def is_bijection(mine, theirs):
    """Every name on one side finds its own on the other, all shapes alike."""
    found = pairs(same(*mine), same(*theirs))
    return found == dict(zip(mine, theirs, strict=True))


# llama.cpp, against gguf's own map -------------------------------------------------------------

PARTS = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
    "post_attention_layernorm",
]  # fmt: skip
MODELS = {
    "LLAMA": [*PARTS, "mlp.gate", "mlp.experts.gate_proj", "mlp.experts.up_proj",
              "mlp.experts.down_proj", "block_sparse_moe.gate", "block_sparse_moe.experts.w2"],
    "QWEN2": PARTS,
    "QWEN3": [*PARTS, "self_attn.q_norm", "self_attn.k_norm"],
    "QWEN2MOE": ["mlp.gate", "mlp.shared_expert_gate", "mlp.shared_expert.gate_proj",
                 "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"],
    "DEEPSEEK2": [*PARTS, "self_attn.q_a_proj", "self_attn.q_b_proj",
                  "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"],
    "PHI3": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.down_proj"],
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_names_of_llama_cpp_are_those_of_its_own_map(model):
    gguf = pytest.importorskip("gguf")
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH[model], 40)
    names = [f"model.layers.{n}.{part}" for n in (0, 7, 39) for part in MODELS[model]]
    for name in [*names, "model.embed_tokens", "lm_head", "model.norm"]:
        other = theirs.get_name(name)
        if name.startswith("model.layers"):
            assert other is not None
        if other is not None:
            stack = ".experts." in name
            one, two = (f"{n}[5]" if stack and n == other else n for n in (name, other))
            expert = re.sub(r"experts\.(\w+)$", r"experts.5.\1", one)
            assert spell(f"{two}.weight").path == spell(expert).path, name


# transformers, against its own conversion ------------------------------------------------------

RENAMED = {
    "llava": ["language_model.model.layers.3.mlp.up_proj", "language_model.lm_head",
              "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj",
              "multi_modal_projector.linear_1"],
    "mllama": ["language_model.model.layers.3.self_attn.q_proj",
               "vision_model.transformer.layers.0.self_attn.q_proj"],
    "qwen2_audio": ["language_model.model.layers.0.self_attn.q_proj",
                    "audio_tower.layers.1.fc1"],
    "Qwen2VLForConditionalGeneration": ["visual.blocks.0.attn.proj"],
    "mixtral": ["model.layers.0.block_sparse_moe.gate",
                "model.layers.31.block_sparse_moe.experts.7.w2"],
    "qwen3_moe": ["model.layers.31.mlp.experts.7.down_proj"],
    "GPTNeoXForCausalLM": ["embed_out"],
    "ViTModel": ["vit.encoder.layer.3.attention.attention.query",
                 "vit.encoder.layer.3.attention.attention.key",
                 "vit.encoder.layer.3.attention.attention.value",
                 "vit.encoder.layer.3.attention.output.dense",
                 "vit.encoder.layer.3.intermediate.dense", "vit.encoder.layer.3.output.dense"],
}  # fmt: skip


@pytest.mark.parametrize("model", RENAMED)
def test_old_names_are_the_new_ones(model):
    mapping = pytest.importorskip("transformers.conversion_mapping")
    loading = pytest.importorskip("transformers.core_model_loading")
    rules = mapping.get_checkpoint_conversion_mapping(model)
    renamings = [r for r in rules if not isinstance(r, loading.WeightConverter)]
    converters = [r for r in rules if isinstance(r, loading.WeightConverter)]
    for old in RENAMED[model]:
        new, _ = loading.rename_source_key(f"{old}.weight", renamings, converters)
        number = re.search(r"experts\.(\d+)", old)
        # A stack holds what was one module per expert.
        stacked = f"{new}[{number[1]}]" if number and "experts." in new else new
        assert spell(stacked).path == spell(old).path
        # PEFT's legacy: an inner model's own prefix.
        if model == "ViTModel":
            assert new.replace(".weight", "") == f"vit.{spell(old).path.removeprefix('vit.')}"


def test_a_name_is_renamed_once():
    for names in (*RENAMED.values(), *SCHEMES.values(), UNETS["sdxl"]()):
        for name in (n for pair in names for n in ([pair] if isinstance(pair, str) else pair)):
            path = spell(name).path
            assert spell(path).path == path


# torchtune, LitGPT, FLUX: real names, written out --------------------------------------------

LAYER = "model.layers.3"
SCHEMES = {
    "torchtune": [
        ("tok_embeddings", "model.embed_tokens"),
        ("layers.3.attn.v_proj", f"{LAYER}.self_attn.v_proj"),
        ("layers.3.attn.q_proj", f"{LAYER}.self_attn.q_proj"),
        ("layers.3.attn.k_proj", f"{LAYER}.self_attn.k_proj"),
        ("layers.3.attn.output_proj", f"{LAYER}.self_attn.o_proj"),
        ("layers.3.mlp.w1", f"{LAYER}.mlp.gate_proj"),
        ("layers.3.mlp.w2", f"{LAYER}.mlp.down_proj"),
        ("layers.3.mlp.w3", f"{LAYER}.mlp.up_proj"),
        ("output", "lm_head"),
    ],
    "meta": [
        ("layers.3.attention.wq", f"{LAYER}.self_attn.q_proj"),
        ("layers.3.attention.wo", f"{LAYER}.self_attn.o_proj"),
        ("layers.3.feed_forward.w1", f"{LAYER}.mlp.gate_proj"),
        ("layers.3.feed_forward.w2", f"{LAYER}.mlp.down_proj"),
        ("layers.3.feed_forward.w3", f"{LAYER}.mlp.up_proj"),
    ],
    "litgpt": [
        ("transformer.wte", "model.embed_tokens"),
        ("transformer.h.3.attn.proj", f"{LAYER}.self_attn.o_proj"),
        ("transformer.h.3.attn.qkv.q", f"{LAYER}.self_attn.q_proj"),
        ("transformer.h.3.mlp.fc_1", f"{LAYER}.mlp.gate_proj"),
        ("transformer.h.3.mlp.fc_2", f"{LAYER}.mlp.up_proj"),
        ("transformer.h.3.mlp.proj", f"{LAYER}.mlp.down_proj"),
        ("lm_head", "lm_head"),
    ],
    "mlx": [
        ("model.layers.3.mlp.switch_mlp.up_proj[2]", f"{LAYER}.mlp.experts.2.up_proj"),
        ("model.layers.3.block_sparse_moe.switch_mlp.down_proj[2]",
         f"{LAYER}.block_sparse_moe.experts.2.w2"),
        ("language_model.model.layers.3.mlp.up_proj", "model.language_model.layers.3.mlp.up_proj"),
    ],
    "flux": [
        ("double_blocks.18.img_attn.proj", "transformer_blocks.18.attn.to_out.0"),
        ("double_blocks.18.txt_attn.proj", "transformer_blocks.18.attn.to_add_out"),
        ("double_blocks.18.img_attn.qkv.k", "transformer_blocks.18.attn.to_k"),
        ("double_blocks.18.txt_attn.qkv.v", "transformer_blocks.18.attn.add_v_proj"),
        ("double_blocks.18.img_mlp.0", "transformer_blocks.18.ff.net.0.proj"),
        ("double_blocks.18.img_mlp.2", "transformer_blocks.18.ff.net.2"),
        ("double_blocks.18.txt_mlp.0", "transformer_blocks.18.ff_context.net.0.proj"),
        ("double_blocks.18.txt_mlp.2", "transformer_blocks.18.ff_context.net.2"),
        ("double_blocks.18.img_mod.lin", "transformer_blocks.18.norm1.linear"),
        ("double_blocks.18.txt_mod.lin", "transformer_blocks.18.norm1_context.linear"),
        ("single_blocks.37.linear2", "single_transformer_blocks.37.proj_out"),
        ("single_blocks.37.modulation.lin", "single_transformer_blocks.37.norm.linear"),
        ("img_in", "x_embedder"),
        ("txt_in", "context_embedder"),
        ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
        ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
        ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
        ("final_layer.linear", "proj_out"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_written_out(scheme):
    ours, theirs = zip(*SCHEMES[scheme], strict=True)
    assert is_bijection(ours, theirs)
    assert is_bijection(theirs, ours)


def test_flux_as_kohya_flattens_it():
    ours, theirs = zip(*SCHEMES["flux"], strict=True)
    flat = [f"lora_unet_{name.replace('.', '_')}" for name in ours]
    assert is_bijection(flat, theirs)
    assert is_bijection(flat, [f"transformer.{name}" for name in theirs])
    assert is_bijection(flat, [f"diffusion_model.{name}" for name in ours])
    sliced = "lora_unet_double_blocks_3_img_attn_qkv"
    assert is_bijection([f"{sliced}.{x}" for x in "qkv"], [
        f"transformer_blocks.3.attn.to_{x}" for x in "qkv"])  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # Halves of the rows change places.
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
        # Three projections in one.
        ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q"),
        # One tower is not another, nor the whole.
        ("vision_model.encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.q_proj"),
        ("text_model.encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.q_proj"),
        ("encoder.layers.0.self_attn.q_proj", "decoder.layers.0.self_attn.q_proj"),
        ("text_encoder.fc1", "text_encoder_2.fc1"),
        ("h.0.q", "h.1.q"),
        ("layers.0.mlp.proj", "adapter.proj"),
        ("bert.encoder.layer.0.output.dense", "roberta.encoder.layer.0.output.dense"),
    ],
)
def test_what_is_not_the_same_module(ours, theirs):
    assert pairs(same(ours), same(theirs)) == {}


# Stable Diffusion: both names of every module, from the structure --------------------------------


def resnet(ldm, new):
    parts = {"in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.3": "conv2"}
    return [(f"{ldm}.{old}", f"{new}.{part}") for old, part in parts.items()]


def attention(ldm, new, depth):
    inner = [f"transformer_blocks.{n}" for n in range(depth)]
    parts = [
        *("proj_in", "proj_out"),
        *(f"{b}.attn{i}.to_{x}" for b in inner for i in (1, 2) for x in ("q", "k", "v", "out.0")),
        *(f"{b}.ff.net.{x}" for b in inner for x in ("0.proj", "2")),
    ]
    return [(f"{ldm}.{part}", f"{new}.{part}") for part in parts]


def unet(depths, middle):
    """Walk the blocks as the original's constructor does, counting; two to a block, then down."""
    found = [
        ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"), ("out.2", "conv_out"),
    ]  # fmt: skip
    count = 1
    for block, depth in enumerate(depths):
        for layer in range(2):
            found += resnet(f"input_blocks.{count}.0", f"down_blocks.{block}.resnets.{layer}")
            if depth:
                new = f"down_blocks.{block}.attentions.{layer}"
                found += attention(f"input_blocks.{count}.1", new, depth)
            count += 1
        if block < len(depths) - 1:
            found.append(
                (f"input_blocks.{count}.0.op", f"down_blocks.{block}.downsamplers.0.conv")
            )
            count += 1
    for part in (0, 1):
        found += resnet(f"middle_block.{2 * part}", f"mid_block.resnets.{part}")
    found += attention("middle_block.1", "mid_block.attentions.0", middle)
    count = 0
    for block, depth in enumerate(depths[::-1]):
        for layer in range(3):
            found += resnet(f"output_blocks.{count}.0", f"up_blocks.{block}.resnets.{layer}")
            place = 1
            if depth:
                new = f"up_blocks.{block}.attentions.{layer}"
                found += attention(f"output_blocks.{count}.1", new, depth)
                place = 2
            if layer == 2 and block < len(depths) - 1:
                ldm = f"output_blocks.{count}.{place}.conv"
                found.append((ldm, f"up_blocks.{block}.upsamplers.0.conv"))
            count += 1
    return found


UNETS = {
    "sd-1.5": lambda: unet((1, 1, 1, 0), 1),
    "sdxl": lambda: [
        *unet((0, 2, 10), 10),
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
    ],
}
# Transformers 16 and 11, of 16 and 70 blocks with 8 projections each; resnets 22 and 17.
COUNTS = {"sd-1.5": (16, 128, 22), "sdxl": (11, 560, 17)}


@pytest.mark.parametrize("model", UNETS)
def test_every_module_of_the_unets(model):
    names = UNETS[model]()
    transformers, projections, resnets = COUNTS[model]
    assert sum(new.endswith("proj_in") for _, new in names) == transformers
    assert sum(".attn" in new for _, new in names) == projections
    assert sum(new.endswith("conv1") for _, new in names) == resnets
    old, new = ([pair[i] for pair in names] for i in (0, 1))
    assert len(set(old)) == len(set(new)) == len(names)
    assert is_bijection(old, new)
    assert is_bijection(new, old)
    assert is_bijection([f"model.diffusion_model.{n}" for n in old], [f"unet.{n}" for n in new])
    flat = [[f"lora_unet_{n.replace('.', '_')}" for n in side] for side in (old, new)]
    for side in flat:
        assert is_bijection(side, old)
        assert is_bijection(side, [f"unet.{n}" for n in new])
        assert is_bijection([f"model.diffusion_model.{n}" for n in old], side)
    assert is_bijection(*flat)


def test_published_diffusers_names_are_the_attentions_of_sd_1_5(real):
    names = rs.open_updates(real / "sd-1.5/diffusers").names
    assert set(names) == {new for _, new in UNETS["sd-1.5"]() if ".attn" in new}


def test_text_encoders():
    te = "text_model.encoder.layers.11.self_attn.q_proj"
    flat = te.replace(".", "_")
    one = {f"lora_te1_{flat}": (768, 768), f"lora_te2_{flat}": (1280, 1280)}
    dotted = {f"text_encoder.{te}": (768, 768), f"text_encoder_2.{te}": (1280, 1280)}
    assert pairs(one, dotted) == dict(zip(one, dotted, strict=True))
    # Without the component the shape still tells.
    assert pairs(one, {te: (1280, 1280)}) == {f"lora_te2_{flat}": te}
    assert pairs(same(f"lora_te_{flat}"), same(f"cond_stage_model.transformer.{te}"))
    # transformers 5 dropped the first segment.
    assert pairs(same(f"lora_te_{flat}"), same(f"text_encoder.{te.removeprefix('text_model.')}"))
    t5 = "encoder.block.0.layer.0.SelfAttention.q"
    for component in ("text_encoder_2", "text_encoder_3", "text_encoders.t5xxl.transformer"):
        for number in (2, 3):
            flat = f"lora_te{number}_{t5.replace('.', '_')}"
            assert pairs(same(flat), same(f"{component}.{t5}"))


# What decides ----------------------------------------------------------------------------------


def test_a_collision_of_flat_names_is_told_apart_by_shape_or_listed():
    flat = "lora_unet_down_0_to_q"
    dotted = {"down.0.to_q": (12, 8), "down_0.to_q": (12, 9)}
    assert pairs(same(flat), dotted) == {flat: "down.0.to_q"}
    found = match(same(flat), same(*dotted))
    assert found.pairs == {}
    assert found.ambiguous == {flat: ("down.0.to_q", "down_0.to_q")}
    assert found.notes() == [f"{flat} could be any of down.0.to_q, down_0.to_q: not matched"]
    assert pairs(same("down.0.to_q"), same("down_0.to_q")) == {}


def test_a_name_of_another_shape_is_a_mismatch():
    for ours, theirs in (("h.0.q", "h.0.q"), ("blk.0.attn_v", "model.layers.0.self_attn.v_proj")):
        found = match({ours: (12, 8)}, {theirs: (8, 12)})
        assert found.pairs == {}
        assert found.mismatches[ours].b == theirs


def test_exact_names_win():
    a = same("model.layers.0.self_attn.v_proj")
    assert pairs(a, same("blk.0.attn_v", *a)) == {name: name for name in a}


def test_one_front_of_all_names_for_another():
    names = [f"layers.{n}.{x}_proj" for n in range(3) for x in "qv"]
    new = [f"model.language_model.{name}" for name in names]
    vision = [f"model.visual.{name}" for name in names]
    assert is_bijection([f"model.{name}" for name in names], new)
    found = match(same(*names), same(*new, *vision))
    assert [m.b for m in found.pairs.values()] == new
    assert found.notes()[0].startswith("6 names matched by another front of all names, model.lang")
    # Two that are equally good, and one that most names do not follow.
    assert pairs(same(*names), same(*new, *(f"other.{name}" for name in names))) == {}
    assert pairs(same(*names), same(*new[:2]) | same(*new[2:], shape=(3, 3))) == {}


def test_a_leftover_is_not_matched_by_the_end_of_its_name():
    names = [f"h.{n}.q" for n in range(10)]
    assert pairs(same(*names, "proj"), same(*names, "model.extra.proj")) == dict(
        zip(names, names, strict=True)
    )


def test_nearest_names():
    names = [f"layers.{n}.{x}" for n in range(4) for x in ("q_proj", "v_proj", "mlp.up")]
    assert nearest("model.layers.2.q_proj", names)[0] == "layers.2.q_proj"
    assert len(nearest("x", names)) == 3


segments = st.sampled_from(["q_proj", "v_proj", "mlp.up_proj", "self_attn.q_proj", "to_q", "w1"])
fronts = st.sampled_from(["h", "layers", "model.layers", "unet.down_blocks", "blk", "down_0"])
names = st.builds("{}.{}.{}".format, fronts, st.integers(0, 3), segments)
flats = names.map(lambda name: f"lora_unet_{name.replace('.', '_')}")
sides = st.dictionaries(names | flats, st.sampled_from([(2, 3), (3, 2), (2, 2)]), max_size=12)


@given(a=sides, b=sides)
def test_matching_is_symmetric_and_never_pairs_two_shapes(a, b):
    one, other = match(a, b), match(b, a)
    assert {(m.a, m.b) for m in one.pairs.values()} == {(m.b, m.a) for m in other.pairs.values()}
    assert all(a[m.a] == b[m.b] for m in one.pairs.values())
    assert len({m.b for m in one.pairs.values()}) == len(one.pairs)
    mismatched = [m for m in one.mismatches.values()]
    assert all(a[m.a] != b[m.b] for m in mismatched)
    assert not one.pairs.keys() & one.mismatches.keys()


models = st.sets(st.tuples(st.integers(0, 3), segments), min_size=2, max_size=10)


@given(model=models, front=st.sampled_from(["", "model.", "base.model.", "net_0."]))
def test_a_front_of_all_names_changes_nothing(model, front):
    plain = same(*(f"layers.{n}.{x}" for n, x in model))
    assert pairs({f"{front}{n}": s for n, s in plain.items()}, plain) == {
        f"{front}{n}": n for n in plain
    }


# Among a base's tensors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "stored"),
    [
        ("model.layers.0.self_attn.v_proj", "blk.0.attn_v.weight"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj.weight"),
        ("unet.down_blocks.1.attentions.0.proj_in",
         "model.diffusion_model.input_blocks.4.1.proj_in.weight"),
        ("lora_unet_input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in.weight"),
        ("language_model.model.layers.0.q", "model.language_model.layers.0.q.weight"),
        ("h.0.q", "model.h.0.q.weight"),
        ("h.0.q", "base_model.model.h.0.q.base_layer.weight"),
        ("attn.in_proj_weight", "encoder_attn.in_proj_weight"),
        ("vision_model.layers.0.q", "layers.0.q.weight"),
        ("h.0.q", "h.1.q.weight"),
    ],
)  # fmt: skip
def test_the_weight_of_a_module(module, stored):
    lost = ("in_proj_weight", "vision_model", "h.1")
    expected = None if any(x in module + stored for x in lost) else stored
    assert base_name(module, ["other.weight", stored, "other.bias"]) == expected


def test_experts_of_stacks_and_alone():
    stack = "model.layers.0.mlp.experts.down_proj"
    alone = "model.layers.0.block_sparse_moe.experts"
    assert Catalogue([stack]).expert(f"{alone}.3.w2") == (stack, 3)
    assert Catalogue([stack]).expert(f"{stack}[3]") == (stack, 3)
    assert Catalogue([stack]).expert("blk.0.ffn_down_exps[3]") == (stack, 3)
    assert Catalogue([f"{alone}.3.w2.weight"]).expert(f"{stack}[3]") == (
        f"{alone}.3.w2.weight",
        None,
    )
    assert Catalogue([f"{alone}.2.w2.weight"]).expert(f"{stack}[3]") is None
    assert Catalogue(["b.a.weight", "c.a.weight"]).expert("a") is None


# End to end --------------------------------------------------------------------------------------


def renamed(tensors, change):
    """Copy a PEFT adapter under other module names."""
    return {
        re.sub(r"base_model\.model\.(.+?)(?=\.lora_)", lambda m: change(m[1]), name): tensor
        for name, tensor in tensors.items()
    }


VLM = [f"language_model.model.layers.{n}.self_attn.{x}_proj" for n in range(2) for x in "qv"]
UNET = [new for _, new in UNETS["sd-1.5"]() if ".attn2" in new]


def kohya(tensors, flat):
    parts = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    return {
        flat(name.removesuffix(end)) + part: tensor
        for name, tensor in tensors.items()
        for end, part in parts.items()
        if name.endswith(end)
    }


def assert_alike(a, b, modules, evidence, rows=2):
    result = rs.similarity(a, b)
    assert list(dict.fromkeys(result.table.module)) == modules
    assert len(result.table) == rows * len(modules)
    for phi in result.table.phi:
        np.testing.assert_allclose(np.diag(phi), 1, atol=1e-6)
    assert (result.unmatched_a, result.unmatched_b, result.failures) == ((), (), ())
    assert evidence in " ".join(result.notes)


def test_vlm_of_two_versions_of_transformers(tmp_path, rng):
    tensors = peft_tensors(sorted(VLM), 2, rng)
    old = write_peft(tmp_path / "old", tensors, r=2)
    new = write_peft(
        tmp_path / "new",
        renamed(tensors, lambda m: "base_model.model." + m.replace(
            "language_model.model", "model.language_model")),
    )  # fmt: skip
    assert_alike(old, new, sorted(VLM), "what transformers has renamed")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_weight_of_a_vlm_is_found_in_the_names_it_is_saved_under(tmp_path):
    peft, transformers = (pytest.importorskip(name) for name in ("peft", "transformers"))
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(vocab_size=32, hidden_size=16, **sizes),
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=12, image_size=8, patch_size=4, **sizes
            ),
            image_token_index=3,
        )
    )
    disk = {n: t.detach().clone() for n, t in model.state_dict().items()}
    old = {
        re.sub(r"^model\.(vision_tower|multi)", r"\1", n)
        .replace("model.language_model", "language_model.model")
        .replace("vision_tower.encoder", "vision_tower.vision_model.encoder"): tensor
        for n, tensor in disk.items()
    }  # fmt: skip
    assert not any(n.startswith("model.") for n in old)
    targets = ["q_proj", "v_proj", "fc1", "linear_1"]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    for base in (disk, old):
        updates = rs.open_updates(tmp_path, base)
        assert len(updates) == 11
        for name in updates.names:
            assert torch.equal(updates.weight(name), disk[f"{name}.weight"])


@pytest.mark.parametrize("ldm", [False, True])
def test_diffusers_against_kohya(rng, ldm):
    back = {new: old for old, new in UNETS["sd-1.5"]()} if ldm else {n: n for n in UNET}
    tensors = renamed(peft_tensors(UNET, 2, rng), lambda m: m)
    flat = kohya(tensors, lambda m: f"lora_unet_{back[m].replace('.', '_')}")
    dotted = {f"unet.{name}": tensor for name, tensor in tensors.items()}
    modules = rs.open_updates(dotted).names
    assert_alike(dotted, flat, modules, "flat names, looked up")


def test_weights_of_a_base_in_the_original_names(rng):
    module, stored = "unet.down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"
    base = {f"model.diffusion_model.{stored}.weight": gaussian(12, 8, 1, 1, rng=rng).float()}
    tensors = renamed(peft_tensors([module], 2, rng), lambda m: m)
    updates = rs.open_updates(tensors, base)
    assert torch.equal(updates.weight(module), next(iter(base.values())).flatten(1))
    flat = rs.open_updates(kohya(tensors, lambda m: "lora_unet_" + stored.replace(".", "_")), base)
    assert flat.names == [f"model.diffusion_model.{stored}"]


def test_error_names_the_nearest_modules(rng):
    one, two = peft_tensors(["h.0.attn.q"], 2, rng), peft_tensors(
        [f"g.{n}.attn.{x}" for n in (0, 1) for x in ("kk", "qq")], 2, rng
    )  # fmt: skip
    with pytest.raises(SourceError, match="no module in common") as error:
        rs.similarity(one, two)
    assert error.value.got.startswith("h.0.attn.q (12, 8), and most like it g.0.attn.qq, ")
    assert error.value.got.count("g.") == 3


# The order of the rows of q and k --------------------------------------------------------------

HEADS, GROUPS, SIZE = 4, 2, 6


def to_pairs(matrix, heads):
    """llama.cpp's conversion, in its own words: split the halves of each head, swap, join."""
    rows = matrix.shape[0]
    split = matrix.reshape(heads, 2, rows // heads // 2, *matrix.shape[1:])
    return split.swapaxes(1, 2).reshape(matrix.shape)


@given(heads=st.integers(1, 4), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_halves_undo_the_conversion(heads, size, seed):
    rng = torch.Generator().manual_seed(seed)
    matrix = gaussian(heads * size * 2, 3, rng=rng)
    assert torch.equal(halves(to_pairs(matrix, heads), heads), matrix)
    assert torch.equal(to_pairs(halves(matrix, heads), heads), matrix)


def attention_adapter(rng):
    rows = {"q": HEADS * SIZE, "k": GROUPS * SIZE, "v": GROUPS * SIZE}
    return {
        name: tensor
        for x, out in rows.items()
        for name, tensor in peft_tensors(
            [f"model.layers.0.self_attn.{x}_proj"], 2, rng, out=out, in_=8
        ).items()
    }


def as_stored(name, tensor):
    heads = {"q_proj": HEADS, "k_proj": GROUPS}
    found = next((n for x, n in heads.items() if x in name), None)
    return tensor if found is None or "lora_A" in name else to_pairs(tensor, found)


def gguf_adapter(path, tensors, arch="llama"):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    for name, tensor in tensors.items():
        _, x, side = re.search(r"(self_attn)\.(\w)_proj\.lora_([AB])", name).groups()
        stored = as_stored(name, tensor) if arch == "llama" else tensor
        writer.add_tensor(f"blk.0.attn_{x}.weight.lora_{side.lower()}", stored.numpy())
    return finish(writer, path)


def gguf_base(path, weights, arch="llama", heads=True):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch)
    if heads:
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(GROUPS)
    for name, tensor in weights.items():
        x = re.search(r"(\w)_proj", name)[1]
        stored = as_stored(name, tensor) if arch == "llama" else tensor
        writer.add_tensor(f"blk.0.attn_{x}.weight", stored.numpy())
    return finish(writer, path)


def finish(writer, path):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def attention_weights(rng):
    rows = {"q": HEADS * SIZE, "k": GROUPS * SIZE, "v": GROUPS * SIZE}
    return {
        f"model.layers.0.self_attn.{x}_proj.weight": gaussian(n, 8, rng=rng).float()
        for x, n in rows.items()
    }


MODULES = [f"model.layers.0.self_attn.{x}_proj" for x in "kqv"]


def test_gguf_adapter_without_heads_is_compared_on_the_input_side(tmp_path, rng):
    tensors = attention_adapter(rng)
    peft = write_peft(tmp_path / "peft", tensors, r=2)
    result = rs.similarity(peft, gguf_adapter(tmp_path / "a.gguf", tensors))
    sides = {m: sorted(rows.side) for m, rows in result.table.groupby("module")}
    assert sides == {m: ["left", "right"] if "v_" in m else ["right"] for m in MODULES}
    for phi in result.table.phi:
        np.testing.assert_allclose(np.diag(phi), 1, atol=1e-6)
    assert any("rotary order on one side" in note for note in result.notes)
    left = rs.similarity(peft, gguf_adapter(tmp_path / "a.gguf", tensors), side="left")
    assert [f["module"] for f in left.failures] == MODULES[:2]


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_a_base_that_tells_its_heads_puts_the_rows_right(tmp_path, rng, kind):
    tensors, weights = attention_adapter(rng), attention_weights(rng)
    base = gguf_base(tmp_path / "b.gguf", weights)
    if kind == "folder":
        base = hugging_face(tmp_path / "base", weights)
    a = rs.open_updates(write_peft(tmp_path / "peft", tensors, r=2), base)
    b = rs.open_updates(gguf_adapter(tmp_path / "a.gguf", tensors, "llama"), base)
    assert_alike(a, b, MODULES, "llama.cpp's names")
    for module in MODULES:
        other = f"blk.0.attn_{module[-6]}"
        torch.testing.assert_close(
            b[other].dense() * b.site(other).rank, a[module].dense() / 4 * 2
        )
        assert torch.equal(a.weight(module), weights[f"{module}.weight"])
        assert torch.equal(b.weight(other), weights[f"{module}.weight"])


def hugging_face(folder, weights, **config):
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    content = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, **config}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_rows_of_other_architectures_stay(tmp_path, rng):
    tensors = attention_adapter(rng)
    peft = write_peft(tmp_path / "peft", tensors, r=2)
    assert_alike(peft, gguf_adapter(tmp_path / "a.gguf", tensors, "qwen2"), MODULES, "llama.cpp's")
    unknown = rs.open_updates(gguf_adapter(tmp_path / "u.gguf", tensors, "plamo"))
    assert [site.row_order for site in unknown.sites] == ["unknown", "unknown", ""]


def test_weights_in_another_order_are_refused(tmp_path, rng):
    tensors, weights = attention_adapter(rng), attention_weights(rng)
    updates = rs.open_updates(gguf_adapter(tmp_path / "a.gguf", tensors), weights)
    with pytest.raises(SourceError, match="stand in another order"):
        updates.weight("blk.0.attn_q")
    assert torch.equal(updates.weight("blk.0.attn_v"), weights[f"{MODULES[2]}.weight"])
    base = gguf_base(tmp_path / "b.gguf", weights, heads=False)
    with pytest.raises(SourceError, match="stand in another order"):
        rs.open_updates(tensors, base).weight(MODULES[0])


def test_updates_that_depend_on_a_base_in_another_order_are_refused(tmp_path, rng):
    tensors, weights = attention_adapter(rng), attention_weights(rng)
    dora = {
        name.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(
            tensors[name.replace("lora_A", "lora_B")].shape[0]
        )
        for name in tensors
        if "lora_A" in name
    }
    adapter = write_peft(tmp_path / "dora", tensors | dora, r=2, use_dora=True)
    right = rs.open_updates(adapter, weights)
    same_rows = rs.open_updates(adapter, gguf_base(tmp_path / "b.gguf", weights))
    for module in MODULES:
        torch.testing.assert_close(same_rows[module].dense(), right[module].dense())
    with pytest.raises(AdapterError, match="stand in another order"):
        rs.open_updates(adapter, gguf_base(tmp_path / "n.gguf", weights, heads=False))


def test_a_tied_head_has_the_embeddings_weight(tmp_path, rng):
    tensors = peft_tensors(["lm_head"], 2, rng, out=20)
    weights = {"model.embed_tokens.weight": gaussian(20, 8, rng=rng).float()}
    for name, tied in (("tied", True), ("free", False)):
        base = hugging_face(tmp_path / name, weights, tie_word_embeddings=tied)
        updates = rs.open_updates(tensors, base)
        if tied:
            assert torch.equal(updates.weight("lm_head"), weights["model.embed_tokens.weight"])
        else:
            with pytest.raises(SourceError, match="no weight for this module"):
                updates.weight("lm_head")


def test_torchtune_against_peft(tmp_path, rng):
    tensors, weights = attention_adapter(rng), attention_weights(rng)
    native = {
        name.replace("base_model.model.model.", "").replace("self_attn", "attn")
        .replace("lora_A", "lora_a").replace("lora_B", "lora_b"): as_stored(name, tensor)
        for name, tensor in tensors.items()
    }  # fmt: skip
    result = rs.similarity(tensors, native, alpha=4)
    assert len(result.table) == 4
    base = hugging_face(tmp_path / "base", weights)
    a, b = (rs.open_updates(source, base, alpha=4) for source in (tensors, native))
    assert_alike(a, b, MODULES, "torchtune's names")
    assert torch.equal(b.weight("layers.0.attn.q_proj"), weights[f"{MODULES[1]}.weight"])
    kept = hugging_face(tmp_path / "qwen", weights, model_type="qwen2")
    same_order = rs.open_updates(native, kept, alpha=4)
    assert [site.row_order for site in same_order.sites] == ["halves", "halves", ""]
    torch.testing.assert_close(
        same_order["layers.0.attn.q_proj"].dense(), rs.open_updates(native, alpha=4)[
            "layers.0.attn.q_proj"].dense(),
    )  # fmt: skip


def test_one_name_is_one_order_whatever_the_name(rng):
    """A model that calls its modules as torchtune does, trained by anyone."""
    modules = ["layers.0.attn.k_proj", "layers.0.attn.q_proj"]
    tensors = peft_tensors(modules, 2, rng)
    base, tuned = ({f"{m}.weight": gaussian(12, 8, rng=rng) for m in modules} for _ in "ab")
    updates = rs.open_updates(tensors, base)
    for module in modules:
        assert torch.equal(updates.weight(module), base[f"{module}.weight"])
    assert len(rs.similarity(updates, rs.open_updates(tuned, base)).table) == 4
    assert len(rs.similarity(tensors, kohya(tensors, lambda m: m.replace(
        "base_model.model.", ""))).table) == 4  # fmt: skip


# Checkpoints against their bases ------------------------------------------------------------


def test_a_fine_tune_against_its_base_as_gguf(tmp_path, rng):
    base, tuned = attention_weights(rng), attention_weights(rng)
    updates = rs.open_updates(tuned, gguf_base(tmp_path / "b.gguf", base))
    assert updates.names == MODULES
    for module in MODULES:
        name = f"{module}.weight"
        assert torch.equal(updates[module].dense(), tuned[name].double() - base[name].double())
        assert torch.equal(updates.weight(module), base[name])
    assert any("llama.cpp's names" in note for note in updates.notes)
    blind = rs.open_updates(tuned, gguf_base(tmp_path / "n.gguf", base, heads=False))
    assert blind.names == MODULES[2:]
    both = [gguf_base(tmp_path / f"{n}.gguf", w) for n, w in enumerate((tuned, base))]
    for module, update in rs.open_updates(*both).items():
        assert torch.equal(update.dense(), updates[ours(module)].dense())
    # One of them in Hugging Face's order, the other not.
    mixed = rs.open_updates(both[0], tmp_path / "n.gguf")
    assert mixed.names == ["blk.0.attn_v"]
    assert any("rotary order on one side only: blk.0.attn_k" in note for note in mixed.notes)


def ours(module):
    return f"model.layers.0.self_attn.{module[-1]}_proj"


def test_a_fine_tune_by_another_version_of_transformers(rng):
    old = {f"{name}.weight": gaussian(12, 8, rng=rng) for name in VLM}
    old |= {"language_model.lm_head.weight": gaussian(20, 8, rng=rng),
            "vision_tower.encoder.layers.0.fc1.weight": gaussian(6, 8, rng=rng)}  # fmt: skip
    new = {
        name.replace("language_model.model", "model.language_model")
        .replace("language_model.lm_head", "lm_head")
        .replace("vision_tower", "model.vision_tower"): 2 * tensor
        for name, tensor in old.items()
    }
    updates = rs.open_updates(new, old)
    assert len(updates) == len(old)
    assert not any("only in" in note for note in updates.notes)
    for (module, update), tensor in zip(sorted(updates.items()), sorted_by(new, old), strict=True):
        torch.testing.assert_close(update.dense(), tensor)
        torch.testing.assert_close(updates.weight(module), tensor)


def sorted_by(new, old):
    values = dict(zip(new, old.values(), strict=True))
    return [values[name] for name in sorted(new)]


def test_experts_alone_against_a_stack(rng):
    stack = gaussian(3, 8, 6, rng=rng)
    tuned = {
        f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight": 2 * stack[e] for e in range(3)
    }
    updates = rs.open_updates(tuned, {"model.layers.0.mlp.experts.down_proj": stack})
    for e, module in enumerate(updates.names):
        torch.testing.assert_close(updates[module].dense(), stack[e])
        torch.testing.assert_close(updates.weight(module), stack[e])


# Published adapters ---------------------------------------------------------------------------


def test_mlx_against_peft(real):
    result = rs.similarity(
        real / "qwen2.5-0.5b/mlx/0000200_adapters.safetensors", real / "qwen2.5-0.5b/peft/final"
    )
    assert len(result.table) == 16
    assert result.unmatched_a == ()
    assert len(result.unmatched_b) == 40


def test_loralib_against_peft(real):
    folder = real / "roberta-base"
    result = rs.similarity(folder / "loralib-mnli", folder / "peft-agnews")
    assert len(result.table) == 48
    assert len(result.unmatched_b) == 12


def test_numbers_are_no_names(real):
    folder = real / "sd-1.5"
    with pytest.raises(SourceError, match="no module in common") as error:
        rs.similarity(folder / "diffusers", folder / "cloneofsimo/lora_disney.safetensors")
    assert "numbers its modules and does not name them" in error.value.got
