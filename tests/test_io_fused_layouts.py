"""How rows of fused projections are shared out, by name, shape and configuration alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, peft_tensors

import rankscope as rs
from rankscope.io.containers.sliced import Block
from rankscope.io.fused import canonical_slice, split_names
from rankscope.io.fused_layouts import Layout, fused_name, layout_of
from rankscope.io.model_config import ModelConfig
from rankscope.io.names import expert_number, kind_of, layer_of

WIDTH = 16
LLAMA = {"hidden_size": WIDTH, "num_attention_heads": 4}
STACK = "model.layers.1.mlp.experts.gate_up_proj"
PARTS = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"] + [
    "mlp.gate_proj",
    "mlp.up_proj",
]


@pytest.mark.parametrize(
    "module",
    ["attn.in_proj_weight", "attn.Wqkv", "self_attn.W_pack", "double_blocks.0.img_attn.qkv",
     "lora_unet_double_blocks_0_txt_attn_qkv", "attn.to_qkv", "blk.0.attn_qkv"],
)  # fmt: skip
def test_thirds_by_name_and_shape(module):
    assert layout_of(module, (48, 16), ModelConfig()) == Layout(
        1, (("q", 16), ("k", 16), ("v", 16))
    )
    assert isinstance(layout_of(module, (40, 16), ModelConfig()), str)
    assert (kind_of(f"{module}.q"), kind_of(f"{module}.q[head 12]")) == ("q", "q")


@pytest.mark.parametrize(
    ("told", "layout"),
    [
        ({"model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2,
          "kv_channels": 4}, Layout(1, (("q", 16), ("k", 8), ("v", 8)))),
        ({"model_type": "chatglm"}, Layout(4, (("q", 4), ("k", 4), ("v", 4)))),
        ({"model_type": "RefinedWeb", "n_head_kv": 2}, Layout(2, (("q", 8), ("k", 4), ("v", 4)))),
        ({"model_type": "RefinedWebModel"}, Layout(1, (("q", 16), ("k", 4), ("v", 4)))),
    ],
)  # fmt: skip
def test_families_whose_code_is_their_own(told, layout):
    config = ModelConfig(LLAMA | told)
    name = "h.0.self_attention.query_key_value"
    assert layout_of(name, (layout.rows, WIDTH), config) == layout


def test_internlm_groups_by_keys():
    config = ModelConfig(LLAMA | {"model_type": "internlm2", "num_key_value_heads": 2})
    layout = Layout(2, (("q", 8), ("k", 4), ("v", 4)))
    assert layout_of("model.layers.0.attention.wqkv", (32, WIDTH), config) == layout


def test_dbrx_says_its_keys_in_an_inner_part():
    config = ModelConfig({"model_type": "dbrx", "n_heads": 4, "d_model": 16,
                          "attn_config": {"model_type": "", "kv_n_heads": 2}})  # fmt: skip
    layout = layout_of("blocks.0.norm_attn_norm.attn.Wqkv", (32, 16), config)
    assert layout == Layout(1, (("q", 16), ("k", 8), ("v", 8)))


def test_cross_attention_of_gpt2_has_no_queries():
    layout = layout_of("h.0.crossattention.c_attn", (32, 16), ModelConfig())
    assert layout == Layout(1, (("k", 16), ("v", 16)))


@pytest.mark.parametrize("module", ["transformer.h.0.attn.qkv_proj", "input_blocks.4.1.qkv", "q"])
def test_thirds_that_prove_nothing(module):
    assert isinstance(layout_of(module, (48, 16), ModelConfig()), str)


FLAT = "lora_unet_double_blocks_7_img_attn_qkv"


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (f"{FLAT}.q", ("q", 7, None)),
        (f"{FLAT}.k[head 3]", ("k", 7, None)),
        ("mlp.experts.3.w1", ("gate", None, 3)),
        ("model.layers.5.block_sparse_moe.experts.3.w2", ("down", 5, 3)),
        ("model.layers.5.mlp.shared_experts.up_proj", ("up", 5, None)),
        (f"{STACK}[3].gate", ("gate", 1, 3)),
        (f"{STACK}[3]", ("other", 1, 3)),
        ("model.layers.5.self_attn.o_proj[head 3]", ("o", 5, None)),
        ("mlp.gate", ("other", None, None)),
    ],
)
def test_names(module, told):
    assert (kind_of(module), layer_of(module), expert_number(module)) == told


@pytest.mark.parametrize("module", [*PARTS, "mlp.experts.3.gate_proj", "h.0.attn.to_q"])
def test_names_of_parts_lead_back(module):
    fused, part = fused_name(module)
    assert canonical_slice(f"{fused}.{part}") == module
    assert module in split_names(fused)


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 99),
)
def test_slices_in_the_layouts_order_are_the_whole(groups, counts, columns, seed):
    layout = Layout(groups, tuple((f"p{i}", count) for i, count in enumerate(counts)))
    matrix = gaussian(layout.rows, 5, rng=torch.Generator().manual_seed(seed))
    parts = {name: block.take(matrix) for name, block in layout.blocks.items()}
    for name, block in layout.blocks.items():
        assert block.shape((layout.rows, 5)) == tuple(parts[name].shape)
        assert torch.equal(block.T.take(matrix.T), parts[name].T)
    split = [part.reshape(groups, -1, 5) for part in parts.values()]
    assert torch.equal(torch.cat(split, dim=1).reshape(-1, 5), matrix)


@given(st.integers(1, 5), st.integers(0, 99))
def test_factored_slices_are_exactly_the_rows(rank, seed):
    rng = torch.Generator().manual_seed(seed)
    tensors = peft_tensors(["h.0.attn.c_attn"], rank, rng, out=24, in_=8)
    updates = rs.open_updates(tensors, alpha=2)
    whole = rs.open_updates(tensors, alpha=2, split="none")["h.0.attn.c_attn"]
    slices = [updates[f"h.0.attn.c_attn.{part}"] for part in "qkv"]
    assert torch.equal(torch.cat([part.up for part in slices]), whole.up)
    assert all(torch.equal(part.down, whole.down) for part in slices)
    torch.testing.assert_close(torch.cat([part.dense() for part in slices]), whole.dense())


def test_a_block_of_columns():
    matrix = torch.arange(8.0).reshape(2, 4)
    assert Block(2, 1, 2, columns=True).take(matrix).tolist() == [[1, 3], [5, 7]]


@pytest.mark.parametrize(
    "name",
    [
        "stages.2.blocks.0.attn.qkv",  # timm's CoAtNet keeps the three of a head together
        "stages.1.blocks.0.attn_block.attn.qkv",
        "model.layers.0.self_attn.qkv_proj",  # 3·in may be grouped queries by coincidence
    ],
)
def test_thirds_that_only_a_configuration_can_tell(name):
    assert isinstance(layout_of(name, (48, 16), ModelConfig()), str)
