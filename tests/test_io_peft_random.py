"""PEFT's LoRA under configurations drawn at random: ΔW is what PEFT itself merges."""

import copy
import warnings

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import rankscope as rs

# The ends of modules' names; the square c_proj shows its orientation by its neighbour alone.
LAYERS = ("q", "square", "c_attn", "c_proj", "conv", "point", "embed")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 12)
        self.square = nn.Linear(8, 8)
        self.c_attn = Conv1D(24, 8)
        self.c_proj = Conv1D(8, 8)
        self.conv = nn.Conv2d(4, 6, (3, 2))
        self.point = nn.Conv2d(6, 4, 1)
        self.embed = nn.Embedding(20, 8)


class Tiny(nn.Module):
    """Two blocks with one layer of every kind that LoRA can sit on."""

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(Block() for _ in range(2))


RULES = st.one_of(
    st.sampled_from(LAYERS),
    st.builds("h.{}.{}".format, st.integers(0, 1), st.sampled_from(LAYERS)),
    st.sampled_from([r"^h\.0\..*", r".*\.c_\w+", r"^h\.[01]\.(q|conv)", r"q|point", ".", "h.1"]),
)
RANKS = st.integers(1, 9)
ALPHAS = st.one_of(st.integers(1, 40), st.floats(0.25, 32))


def patterns(values):
    # In alphabetical order, which is how PEFT saves them: the first that matches decides.
    return st.dictionaries(RULES, values, max_size=3).map(
        lambda rules: dict(sorted(rules.items()))
    )


@st.composite
def configurations(draw):
    """LoRA's options, but for those that PEFT does not allow together."""
    names = draw(st.lists(st.sampled_from(LAYERS), min_size=1, unique=True))
    dora = draw(st.booleans())
    return peft.LoraConfig(
        r=draw(RANKS),
        lora_alpha=draw(ALPHAS),
        rank_pattern=draw(patterns(RANKS)),
        alpha_pattern=draw(patterns(ALPHAS)),
        use_rslora=draw(st.booleans()),
        use_dora=dora,
        lora_bias=not dora and "embed" not in names and draw(st.booleans()),
        bias=draw(st.sampled_from(["none", "all", "lora_only"])),
        target_modules=draw(st.sampled_from([names, rf".*\.({'|'.join(names)})"])),
        fan_in_fan_out=draw(st.booleans()),
    )


def trained(config, seed):
    """A PEFT model whose factors and magnitudes are random, and its base."""
    torch.manual_seed(seed)
    base = Tiny()
    model = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 2))
            elif parameter.requires_grad:
                parameter.normal_()
    return model, base


def merged_difference(model, base):
    """What PEFT's merge changes, (out, in) as the layers compute, in double precision."""
    after = model.double().merge_and_unload(safe_merge=True)
    deltas = {}
    for name, layer in base.named_modules():
        if hasattr(layer, "weight"):
            delta = (after.get_submodule(name).weight - layer.weight.double()).detach().flatten(1)
            deltas[name] = delta.T if isinstance(layer, Conv1D) else delta
    return {name: delta for name, delta in deltas.items() if delta.any()}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, derandomize=True)
@given(config=configurations(), seed=st.integers(0, 99), as_module=st.booleans())
def test_every_module_is_as_peft_merges_it(tmp_path_factory, config, seed, as_module):
    folder = tmp_path_factory.mktemp("adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, base = trained(config, seed)
        model.save_pretrained(folder)
        truth = merged_difference(model, base)
    weights = base if as_module else base.state_dict()
    updates = rs.open_updates(folder, base=weights, split="none")
    assert set(updates.names) == set(truth)
    for site, update in zip(updates.sites, updates, strict=True):
        expected = truth[site.module]
        assert update.shape == site.shape == expected.shape
        assert (update.dense() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.filterwarnings("ignore")
def test_alphas_that_saving_puts_into_another_order(tmp_path):
    rules = {"q": 3, "h.0.q": 5}  # PEFT trains with the first and saves them sorted
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q"], alpha_pattern=rules)
    model, base = trained(config, 0)
    model.save_pretrained(tmp_path)
    updates = rs.open_updates(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    for name, delta in merged_difference(loaded, base).items():
        torch.testing.assert_close(updates[name].dense(), delta, atol=1e-6, rtol=1e-6)
    assert [site.scale for site in updates.sites] == [2.5, 1.5]
    assert any("several alphas for 1 modules (h.0.q …)" in note for note in updates.notes)
    assert not rs.open_updates(model).notes
    assert {site.scale for site in rs.open_updates(model).sites} == {1.5}
    assert not rs.open_updates(tmp_path, alpha=4).notes
