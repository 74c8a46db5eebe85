"""The model and its adapters: shapes, causality, and the algebra of a low-rank layer."""

import numpy as np
import pytest
import torch
from torch import nn

from rankscope.training.draws import Chance, gaussian
from rankscope.training.lora import (
    TARGETS,
    LoRALinear,
    adapter_tensors,
    add_lora,
    lora_layers,
    merge_lora,
    unmerge_lora,
)
from rankscope.training.model import CONTEXT, GPT, Architecture, new_model, weight_shapes
from rankscope.training.vocabulary import PAD, SIZE, decode, encode

TINY = Architecture(layers=2, width=32)


def tokens(rows: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(1, SIZE, (rows, length), generator=torch.Generator().manual_seed(0))


def adapted(*, rank: int = 3, alpha: float = 6, targets=TARGETS, seed: int = 0, **options) -> GPT:
    """Return a tiny model whose adapters have moved away from their beginning."""
    model = new_model(TINY, seed=0)
    add_lora(model, rank=rank, alpha=alpha, targets=targets, seed=seed, **options)
    for name, layer in lora_layers(model):
        start = gaussian(tuple(layer.lora_B.shape), 0.1, seed=1, name=name)
        layer.lora_B.data.copy_(start)
    return model.eval()


# --- draws -----------------------------------------------------------------------------------


def test_initial_numbers_are_normal_and_each_name_has_its_own():
    a = gaussian((200, 500), 2.0, seed=0, name="a").double()
    b = gaussian((200, 500), 2.0, seed=0, name="b").double()

    # Standard errors at n = 1e5: mean 0.0063, std 0.0045, correlation 0.0032; five of each.
    assert abs(a.mean().item()) < 0.032
    assert abs(a.std().item() - 2) < 0.023
    assert abs(torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1].item()) < 0.016
    # 2.3 % of a normal lie beyond two standard deviations on each side.
    assert (a > 4).double().mean().item() == pytest.approx(0.02275, abs=0.0024)


def test_initial_numbers_are_the_same_everywhere():
    drawn = gaussian((2, 2), 1.0, seed=0, name="blocks.0.attn.q.weight")

    expected = torch.tensor([[0.01617611, -0.49073276], [-0.10954411, -0.54628330]])
    torch.testing.assert_close(drawn, expected, rtol=1e-6, atol=0)


def test_an_odd_count_of_numbers_can_be_drawn():
    assert gaussian((3, 5), 1.0, seed=0, name="x").shape == (3, 5)


def test_choices_cover_their_range_evenly():
    chance = Chance("dice")
    counts = np.bincount([chance.between(1, 6) for _ in range(6000)], minlength=7)

    assert counts[0] == 0
    assert np.abs(counts[1:] - 1000).max() < 5 * np.sqrt(6000 * 5 / 36)


def test_some_takes_different_members():
    chance = Chance("some")
    assert all(len(set(chance.some("abcdef", 4))) == 4 for _ in range(50))


# --- the model -------------------------------------------------------------------------------


def test_every_character_survives_encoding():
    text = "\n" + "".join(map(chr, range(32, 127)))
    ids = encode(text)

    assert sorted(ids) == list(range(1, SIZE))
    assert PAD not in ids
    assert decode(ids) == text


def test_the_model_sees_only_the_past():
    model, seen = new_model(TINY, seed=0), tokens()
    changed = seen.clone()
    changed[:, 10] = (changed[:, 10] % (SIZE - 1)) + 1

    before, after = model(seen), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=0)
    assert (before[:, 10:] != after[:, 10:]).any(-1).all()


def test_attention_agrees_with_torchs_own():
    layer = new_model(TINY, seed=0).blocks[0].attn
    x = gaussian((2, 9, 32), 1.0, seed=0, name="x")
    q, k, v = (f(x).view(2, 9, 4, 8).transpose(1, 2) for f in (layer.q, layer.k, layer.v))

    mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(layer(x), layer.o(mixed.transpose(1, 2).reshape(2, 9, 32)))


def test_the_default_size_is_the_documented_one():
    shapes = weight_shapes(Architecture())

    assert shapes["blocks.3.attn.q.weight"] == (256, 256)
    assert shapes["blocks.0.mlp.up.weight"] == (1024, 256)
    assert shapes["blocks.0.mlp.down.weight"] == (256, 1024)
    assert shapes["positions.weight"] == (CONTEXT, 256)
    assert sum(int(np.prod(s)) for s in shapes.values()) == Architecture().parameters
    assert not any(name.endswith("bias") for name in shapes)


def test_initial_weights_depend_on_the_seed_and_not_on_torchs():
    torch.manual_seed(1)
    first = new_model(TINY, seed=0).state_dict()
    torch.manual_seed(2)
    second, other = new_model(TINY, seed=0).state_dict(), new_model(TINY, seed=1).state_dict()

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_first_predictions_are_close_to_a_uniform_guess():
    model, seen = new_model(Architecture(), seed=0), tokens(8, CONTEXT)
    loss = nn.functional.cross_entropy(model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten())

    # Logits of unit variance cost half a nat over the uniform guess.
    assert loss.item() == pytest.approx(np.log(SIZE) + 0.5, abs=0.3)


# --- adapters --------------------------------------------------------------------------------


def test_lora_at_its_beginning_equals_the_base():
    base, model = new_model(TINY, seed=0), new_model(TINY, seed=0)
    add_lora(model, rank=4, alpha=8, targets=TARGETS, seed=0, dropout=0.5)

    torch.testing.assert_close(model(tokens()), base(tokens()), rtol=0, atol=0)


@pytest.mark.parametrize("targets", [("q",), ("q", "v"), ("o", "up", "down"), TARGETS])
def test_only_the_targets_are_adapted_and_only_the_factors_train(targets):
    model = adapted(targets=targets)

    assert {name.rpartition(".")[2] for name, _ in lora_layers(model)} == set(targets)
    assert len(list(lora_layers(model))) == 2 * len(targets)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained)
    assert len(trained) == 4 * len(targets)


@pytest.mark.parametrize("rank", [1, 3, 40])  # 40 exceeds both sides of a square layer
def test_the_update_has_at_most_the_rank_of_the_adapter(rank):
    for _, layer in lora_layers(adapted(rank=rank)):
        found = torch.linalg.matrix_rank(layer.delta()).item()
        assert found == min(rank, *layer.base.weight.shape)


def test_the_update_is_the_scaled_product_of_hand_picked_factors():
    layer = LoRALinear(nn.Linear(2, 2, bias=False), rank=1, alpha=3, seed=0, name="x")
    layer.lora_A.data = torch.tensor([[1.0, 2.0]])
    layer.lora_B.data = torch.tensor([[1.0], [-1.0]])

    expected = torch.tensor([[3.0, 6.0], [-3.0, -6.0]], dtype=torch.float64)
    assert torch.equal(layer.delta(), expected)


def test_merged_weights_compute_what_the_factors_compute():
    model = adapted().double()
    factored = model(tokens())
    merge_lora(model)

    torch.testing.assert_close(model(tokens()), factored, rtol=1e-10, atol=1e-10)
    assert (factored - new_model(TINY, seed=0).double()(tokens())).abs().max() > 0.1


def test_merging_twice_changes_nothing_and_unmerging_restores_the_bits():
    model = adapted()
    before = {name: layer.base.weight.clone() for name, layer in lora_layers(model)}
    merge_lora(model)
    once = {name: layer.base.weight.clone() for name, layer in lora_layers(model)}
    merge_lora(model)
    assert all(torch.equal(layer.base.weight, once[name]) for name, layer in lora_layers(model))
    assert all(layer.merged for _, layer in lora_layers(model))

    unmerge_lora(model)
    unmerge_lora(model)
    assert all(torch.equal(layer.base.weight, before[name]) for name, layer in lora_layers(model))
    assert not any(torch.equal(before[name], once[name]) for name in before)


def test_the_merged_weight_is_the_rounded_sum():
    model = adapted()
    expected = {
        name: layer.base.weight.double() + layer.delta() for name, layer in lora_layers(model)
    }
    merge_lora(model)

    for name, layer in lora_layers(model):
        assert torch.equal(layer.base.weight, expected[name].float())


def test_seeds_give_different_beginnings():
    first, same, other = (adapter_tensors(adapted(seed=seed)) for seed in (0, 0, 1))

    factors = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], same[name]) for name in factors)
    assert not any(torch.equal(first[name], other[name]) for name in factors)
    q, v = (first[f"base_model.model.blocks.0.attn.{kind}.lora_A.weight"] for kind in "qv")
    assert not torch.equal(q, v)


def test_dropout_acts_on_the_adapter_alone_and_in_training_alone():
    model = adapted(dropout=0.5)
    still = model(tokens())
    torch.testing.assert_close(model(tokens()), still, rtol=0, atol=0)

    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(tokens()), still)
    for _, layer in lora_layers(model):
        layer.lora_B.data.zero_()
    torch.testing.assert_close(model(tokens()), new_model(TINY, seed=0)(tokens()), rtol=0, atol=0)


def test_tensors_bear_the_names_and_shapes_of_peft():
    tensors = adapter_tensors(adapted(rank=3, targets=("up",)))

    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"base_model.model.blocks.{i}.mlp.up.lora_{factor}.weight": shape
        for i in (0, 1)
        for factor, shape in (("A", (3, 32)), ("B", (128, 3)))
    }
