"""Two factors under any names, and what must not be taken for them."""

import pytest
import torch
from oracles import gaussian

import rankscope as rs
from rankscope.errors import AdapterError
from rankscope.io.adapters import generic
from rankscope.io.tensors import StateDict

# Names of the down and the up factor, and what the module is called.
NAMES = {
    "w_lora": ("layers.0.q_proj.w_lora_A", "layers.0.q_proj.w_lora_B", "layers.0.q_proj"),
    "before": ("blk.3.lora_q_a.weight", "blk.3.lora_q_b.weight", "blk.3.lora_q"),
    "first": ("lora_A.7.weight", "lora_B.7.weight", "7"),
    "up": ("attn.q.lora.down.w", "attn.q.lora.up.w", "attn.q.w"),
    "nested": ("h.2.lora.left", "h.2.lora.right", "h.2"),
    "two marks": ("mlp.up.w_lora_A", "mlp.up.w_lora_B", "mlp.up"),
    "no lora": ("h.2.q.A", "h.2.q.B", "h.2.q"),
    "bare": ("A", "B", "update"),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_pairs_by_any_name(rng, names, swapped):
    one, two, module = names
    if swapped:
        one, two = two, one
    down, up = gaussian(2, 24, rng=rng), gaussian(20, 2, rng=rng)
    updates = rs.open_updates({one: down, two: up})
    assert (updates.format, updates.names) == ("generic", [module])
    assert (updates.sites[0].rank, updates.sites[0].scale) == (2, None)
    torch.testing.assert_close(updates[module].dense(), up @ down)
    assert any("does not say its scale" in note for note in updates.notes)
    told = rs.open_updates({one: down, two: up}, alpha=6)
    assert told.sites[0].scale == 3
    assert not told.notes


def test_factors_may_be_stored_transposed(rng):
    a, b = gaussian(24, 2, rng=rng), gaussian(2, 20, rng=rng)
    update = rs.open_updates({"h.0.q.A": a, "h.0.q.B": b})["h.0.q"]
    torch.testing.assert_close(update.dense(), a @ b)


def test_other_tensors_are_unread(rng):
    tensors = {
        "h.0.q.my_lora_A": gaussian(2, 8, rng=rng),
        "h.0.q.my_lora_B": gaussian(12, 2, rng=rng),
        "h.0.q.my_lora.b": torch.ones(12),
        "head.weight": torch.ones(3, 8),
        "mlp.up": torch.ones(8, 8),
    }
    updates = rs.open_updates(tensors)
    assert updates.names == ["h.0.q.my"]
    assert set(updates.unread) == {"h.0.q.my_lora.b", "head.weight", "mlp.up"}


AMBIGUOUS = {
    "square": {"q.w_lora_A": (8, 8), "q.w_lora_B": (8, 8)},
    "no chain": {"q.w_lora_A": (2, 8), "q.w_lora_B": (12, 3)},
    "not small": {"q.w_lora_A": (9, 8), "q.w_lora_B": (12, 9)},
    "vectors": {"q.w_lora_A": (8,), "q.w_lora_B": (12, 2)},
    "leftover": {"q.w_lora_A": (2, 8), "q.w_lora_B": (12, 2), "v.w_lora_A": (2, 8)},
    "same name": {"q.w_lora_A": (2, 8), "q.w_lora_B": (9, 2),
                  "q.w_lora_a": (2, 8), "q.w_lora_b": (9, 2)},
}  # fmt: skip


@pytest.mark.parametrize("shapes", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_is_ambiguous_lists_its_keys(shapes):
    with pytest.raises(AdapterError, match="do not all chain") as caught:
        rs.open_updates({name: torch.ones(shape) for name, shape in shapes.items()})
    assert all(name in caught.value.got for name in shapes)


CHECKPOINTS = {
    "feed-forward": {"mlp.up.weight": (32, 8), "mlp.down.weight": (8, 32)},
    "with others": {"x.A": (2, 32), "x.B": (32, 2), "y.weight": (8, 8)},
    "another method": {"q.hada_w1_a": (20, 2), "q.hada_w1_b": (2, 20)},
    "one letter": {"x.a": (2, 32), "y.b": (32, 2)},
}


@pytest.mark.parametrize("shapes", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_what_is_no_adapter_of_two_factors(shapes):
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    assert not generic.FAMILY.recognises(StateDict(tensors, "").tensors)


def test_a_checkpoint_of_feed_forward_layers_is_still_a_pair(rng):
    base = {"mlp.up.weight": gaussian(32, 8, rng=rng), "mlp.down.weight": gaussian(8, 32, rng=rng)}
    tuned = {name: tensor + 1 for name, tensor in base.items()}
    assert rs.open_updates(tuned, base).format == "pair"
