"""Every way of training: how it begins, what it trains and writes, and who else reads that."""

import math
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import SMALL, contents
from torch import nn

import rankscope as rs
from rankscope.cli.train import _METHODS
from rankscope.errors import RankscopeError, SourceError
from rankscope.training import TrainingConfig, load_trained, train
from rankscope.training import loop as loop_module
from rankscope.training.data import batch
from rankscope.training.draws import gaussian
from rankscope.training.loop import Trainer
from rankscope.training.lora import LoRALinear, lora_layers, merge_lora
from rankscope.training.methods import METHODS
from rankscope.training.methods.bottleneck import BottleneckLayer
from rankscope.training.methods.dora import DoRALinear
from rankscope.training.methods.ia3 import ScaledLinear
from rankscope.training.methods.prefix import PrefixLayer
from rankscope.training.methods.qlora import NF4Linear
from rankscope.training.model import GPT
from rankscope.training.trained import initial_model
from rankscope.training.vocabulary import SIZE as CHARACTERS
from rankscope.training.weights import load_model

LAYERS, WIDTH, RANK = 2, 32, 3
ADAPTING = [name for name in METHODS if name != "pre-training"]
SCALED = [name for name, method in METHODS.items() if method.scaled]

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def each(names):
    """Return a parametrisation over methods."""
    marks = {"QLoRA": [needs_bitsandbytes]}
    return pytest.mark.parametrize(
        "method", [pytest.param(name, marks=marks.get(name, [])) for name in names]
    )


def config_of(method, base, **options) -> TrainingConfig:
    traits = METHODS[method]
    given = {"rank": RANK} if traits.size == "number" else {}
    given |= {"targets": ("q", "up")} if traits.scaled else {}
    exact = {"precision": "float32"}
    return TrainingConfig(**SMALL | exact | {"base": base, "method": method} | given | options)


def tokens() -> torch.Tensor:
    return torch.randint(1, CHARACTERS, (3, 20), generator=torch.Generator().manual_seed(0))


def moved(config) -> GPT:
    """Return a prepared model whose trained weights have moved away from their beginning."""
    model = initial_model(config)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data += gaussian(tuple(weight.shape), 0.1, seed=1, name=name)
    return model.eval()


def written(config, folder) -> GPT:
    """Return a moved model, written to `folder`."""
    model = moved(config)
    METHODS[config.method].write(folder, model, config)
    return model


def update_of(layer: nn.Module, before: nn.Module) -> torch.Tensor:
    """Return what a layer adds to another, as its answers to every unit vector tell it."""
    units = torch.eye(before.in_features, dtype=torch.float64)
    with torch.no_grad():
        return (layer.double()(units) - before.double()(units)).T


# --- all of them ------------------------------------------------------------------------------


def test_the_command_line_names_the_methods_there_are():
    assert tuple(METHODS) == _METHODS
    assert all(len(method.reason) > 40 for method in METHODS.values())


@each(ADAPTING)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_method_begins_as_the_base(method, precision, base):
    model, plain = initial_model(config_of(method, base)), load_model(base)
    for name, layer in model.named_modules():
        if isinstance(layer, NF4Linear):  # its base is the one in four bits
            plain.get_submodule(name.removesuffix(".base")).weight.data = layer.unpacked()

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        torch.testing.assert_close(model(tokens()), plain(tokens()), rtol=0, atol=0)


COUNTS = {
    "full": LAYERS * (12 * WIDTH**2 + 2 * WIDTH) + (2 * CHARACTERS + 128 + 1) * WIDTH,
    **dict.fromkeys(SCALED, LAYERS * RANK * (2 * WIDTH + 5 * WIDTH)),
    "DoRA": LAYERS * (RANK * (2 * WIDTH + 5 * WIDTH) + 5 * WIDTH),
    "bias": LAYERS * 9 * WIDTH + CHARACTERS,
    "last": 12 * WIDTH**2 + 2 * WIDTH + CHARACTERS * WIDTH,
    "IA3": LAYERS * 6 * WIDTH,
    "bottleneck": LAYERS * 2 * (2 * WIDTH * RANK + RANK + WIDTH),
    "prefix": LAYERS * 2 * WIDTH * RANK,
}


@each(ADAPTING)
def test_a_run_trains_and_writes_its_own_weights_and_is_read_back(method, base, tmp_path):
    config = config_of(method, base)
    trainer = Trainer(config, tmp_path / "unused")
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    for _ in range(config.steps):
        trainer.advance()
    run = train(config, tmp_path / "run", progress=False)

    assert run.record["trained_parameters"] == COUNTS[method]
    changed = {
        name
        for name, weight in trainer.model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed <= trainer.weights.keys()
    # An embedding's rows of characters that did not occur stay, not the embedding.
    assert changed == trainer.weights.keys()
    assert METHODS[method].file in contents(tmp_path / "run")
    again = load_trained(tmp_path / "run")
    assert not again.training
    torch.testing.assert_close(again(tokens()), trainer.model.eval()(tokens()), rtol=0, atol=0)
    assert (again(tokens()) - load_model(base)(tokens())).abs().max() > 1e-5


@each(ADAPTING)
def test_every_method_resumes_to_the_same_bits(method, base, tmp_path):
    config = config_of(method, base, save_at=(0, 3), precision="auto")
    whole = train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "part", progress=False, stop_at=3)
    resumed = train(config, tmp_path / "part", progress=False, resume=True)

    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert resumed.record["evaluation"] == whole.record["evaluation"]


@each(ADAPTING)
def test_every_method_learns(method, base, tmp_path, monkeypatch):
    fixed = batch("sql", 0, "train", 0, 4)
    monkeypatch.setattr(loop_module, "batch", lambda *_, **__: fixed)
    config = config_of(method, base, steps=30)
    trainer = Trainer(config, tmp_path)
    losses = [trainer.advance()["loss"] for _ in range(config.steps)]
    assert losses[-1] < losses[15] < losses[0] - 0.002


@each([name for name in METHODS if METHODS[name].size == "number"])
def test_the_seed_of_the_beginning_reaches_every_method(method, base):
    def beginning(**seeds):
        config = config_of(method, base, **seeds)
        return METHODS[method].tensors(initial_model(config))

    first, same, other = (
        beginning(**seeds) for seeds in ({}, {"seed": 5, "init_seed": 0}, {"init_seed": 1})
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# --- their updates ----------------------------------------------------------------------------

UPDATING = [*SCALED, "IA3"]


@each(UPDATING)
def test_the_update_that_is_read_is_the_one_of_the_model(method, base, tmp_path):
    config = config_of(method, base)
    model, plain = written(config, tmp_path), load_model(base)
    updates = rs.open_updates(tmp_path, base=base)

    kinds = {"k", "v", "down"} if method == "IA3" else {"q", "up"}
    assert {name.rpartition(".")[2] for name in updates.names} == kinds
    for name in updates.names:
        layer, read = model.get_submodule(name), updates[name].dense()
        torch.testing.assert_close(layer.delta(), read, rtol=0, atol=1e-6)
        if not isinstance(layer.base, NF4Linear):
            added = update_of(layer, plain.get_submodule(name))
            torch.testing.assert_close(added, read, rtol=0, atol=1e-6)
        assert read.abs().max() > 0.01


@pytest.mark.parametrize("method", ["full", "last"])
def test_the_update_of_written_weights_is_their_difference(method, base, tmp_path):
    model, plain = written(config_of(method, base), tmp_path), load_model(base)
    updates = rs.open_updates(tmp_path, base=base)

    for name in updates.names:
        after, before = (source.get_submodule(name).weight.detach() for source in (model, plain))
        torch.testing.assert_close(
            updates[name].dense(), after.double() - before.double(), rtol=0, atol=1e-6
        )
    if method == "last":
        changed = {name for name in updates.names if updates[name].dense().any()}
        assert all(name == "head" or name.startswith("blocks.1.") for name in changed)
        assert len(changed) == 7


@pytest.mark.filterwarnings("default")
@each(UPDATING)
def test_peft_loads_it_and_computes_the_same(method, base, tmp_path):
    peft = pytest.importorskip("peft")
    model, plain = written(config_of(method, base), tmp_path), load_model(base)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear) and isinstance(layer.base, NF4Linear):
            layer.base = plain.get_submodule(name)  # PEFT is given the base in float32
        elif isinstance(layer, NF4Linear) and not name.endswith(".base"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain.get_submodule(name))

    wrapped = peft.PeftModel.from_pretrained(load_model(base), tmp_path).eval()
    # PEFT adds up in another order, in float32.
    torch.testing.assert_close(wrapped(tokens()), model(tokens()), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", [name for name in SCALED if name != "QLoRA"])
def test_merged_weights_compute_what_the_adapters_compute(method, base):
    model = moved(config_of(method, base)).double()
    apart = model(tokens())
    merge_lora(model)
    torch.testing.assert_close(model(tokens()), apart, rtol=1e-9, atol=1e-9)
    assert all(layer.merged for _, layer in lora_layers(model))


# --- LoRA's relatives -------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_rslora_divides_by_the_root_of_the_rank(rank, base):
    for alpha, expected in ((None, 8 / math.sqrt(rank)), (6.0, 6 / math.sqrt(rank))):
        config = config_of("rsLoRA", base, rank=rank, alpha=alpha)
        for _, layer in lora_layers(initial_model(config)):
            assert layer.scale == pytest.approx(expected)


def test_lora_plus_moves_b_sixteen_times_as_fast(base, tmp_path):
    config = config_of("LoRA+", base, warmup=0)
    trainer = Trainer(config, tmp_path)
    row = trainer.advance()

    assert row["lr"] == config.lr
    rates = {group["factor"]: group["lr"] for group in trainer.optimiser.param_groups}
    assert rates == {1.0: config.lr, 16.0: 16 * config.lr}
    for _, layer in lora_layers(trainer.model):  # Adam's first step is the rate, by the sign
        steps = layer.lora_B.detach().abs()
        assert steps.median().item() == pytest.approx(16 * config.lr, rel=1e-3)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dora_agrees_with_pefts_layer(dropout):
    """The same tensors in PEFT's own layer: outputs, gradients, and the merged update."""
    peft = pytest.importorskip("peft")
    linear = nn.Linear(12, 7, bias=False)
    linear.weight.data = gaussian((7, 12), 0.3, seed=0, name="W")
    ours = DoRALinear(linear, rank=3, alpha=5, seed=0, name="A", dropout=dropout)
    ours.lora_B.data = gaussian((7, 3), 0.5, seed=0, name="B")
    ours.magnitude.data *= torch.linspace(0.5, 2, 7)
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, lora_dropout=dropout, use_dora=True, target_modules=["q"]
    )
    copy = nn.Linear(12, 7, bias=False)
    copy.weight.data = linear.weight.data.clone()
    wrapped = peft.get_peft_model(nn.ModuleDict({"q": copy}), settings)
    theirs = wrapped.base_model.model["q"]
    theirs.lora_A["default"].weight.data = ours.lora_A.data.clone()
    theirs.lora_B["default"].weight.data = ours.lora_B.data.clone()
    theirs.lora_magnitude_vector["default"].weight.data = ours.magnitude.data.clone()

    x = gaussian((5, 12), 1.0, seed=0, name="x")
    outputs = []
    for layer in (ours, theirs):
        torch.manual_seed(0)  # of the dropout
        outputs.append(layer(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for mine, other in (
        (ours.lora_A, theirs.lora_A["default"].weight),
        (ours.lora_B, theirs.lora_B["default"].weight),
        (ours.magnitude, theirs.lora_magnitude_vector["default"].weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)

    theirs.eval()
    theirs.merge()
    update = (theirs.base_layer.weight - linear.weight).detach().double()
    torch.testing.assert_close(ours.delta(), update, rtol=0, atol=1e-6)


def test_doras_update_is_read_from_w_while_merged(base):
    model = moved(config_of("DoRA", base))
    apart = [layer.delta() for _, layer in lora_layers(model)]
    merge_lora(model)
    assert all(
        torch.equal(layer.delta(), delta)
        for (_, layer), delta in zip(lora_layers(model), apart, strict=True)
    )


# --- four bits --------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize("shape", [(32, 32), (256, 64), (16, 48), (97, 36)])
def test_four_bits_are_the_nearest_of_sixteen_levels(shape):
    """Against the format's definition, worked out anew: blocks of 64, scaled by their largest.

    The levels are the paper's. A block's largest value is itself kept in eight bits, which moves
    a weight by little beside the distance of two levels.
    """
    negative = (-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500)
    positive = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1)
    levels = torch.tensor([*negative, 0, *positive])
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.weight.data = gaussian(shape, 0.1, seed=0, name="W")
    layer = NF4Linear(linear)

    flat = linear.weight.data.flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % 64)]).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = levels[((blocks / largest)[..., None] - levels).abs().argmin(-1)] * largest
    expected = nearest.flatten()[: len(flat)].view(shape)
    torch.testing.assert_close(layer.unpacked(), expected, rtol=0.05, atol=1e-3)
    error = (layer.unpacked() - linear.weight.data).norm() / linear.weight.data.norm()
    assert 0.07 < error < 0.12
    x = gaussian((4, shape[1]), 1.0, seed=0, name="x")
    torch.testing.assert_close(layer(x), x @ layer.unpacked().T)


@needs_bitsandbytes
def test_qlora_keeps_every_layer_of_the_blocks_in_four_bits(base):
    model = initial_model(config_of("QLoRA", base))
    packed = [name for name, layer in model.named_modules() if isinstance(layer, NF4Linear)]

    assert len(packed) == 6 * LAYERS
    assert isinstance(model.head, nn.Linear)
    assert not any("packed" in name for name in model.state_dict())
    sizes = {layer.packed.numel() for layer in model.modules() if isinstance(layer, NF4Linear)}
    assert sizes == {WIDTH**2 // 2, 4 * WIDTH**2 // 2}  # bytes: half of one a weight
    with pytest.raises(RankscopeError, match="four bits"):
        merge_lora(model)


def test_without_bitsandbytes_the_extra_is_named(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RankscopeError, match=r"rankscope\[quantized\]") as caught:
        train(config_of("QLoRA", base), tmp_path / "run", progress=False)
    assert len(str(caught.value).splitlines()) == 5
    assert not (tmp_path / "run").exists()


# --- the others -------------------------------------------------------------------------------


@pytest.mark.parametrize("on_input", [False, True])
def test_a_gain_scales_rows_or_columns(on_input):
    linear = nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    layer = ScaledLinear(linear, on_input=on_input)
    layer.gain.data = torch.tensor([[2.0, 1.0, 0.0]]) if on_input else torch.tensor([[3.0], [0.0]])

    expected = [[1, 0, -3], [4, 0, -6]] if on_input else [[2, 4, 6], [-4, -5, -6]]
    assert layer.delta().tolist() == expected


def test_a_bottleneck_adds_its_network_to_the_sublayer():
    sub = nn.Linear(6, 6, bias=False)
    layer = BottleneckLayer(sub, width=6, rank=2, seed=0, name="x")
    for name, weight in layer.named_parameters():
        weight.data = gaussian(tuple(weight.shape), 1.0, seed=0, name=name)
    x = gaussian((4, 6), 1.0, seed=0, name="x")

    h = x @ sub.weight.T
    hidden = h @ layer.down.weight.T + layer.down.bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = h + gelu @ layer.up.weight.T + layer.up.bias
    torch.testing.assert_close(layer(x), expected)


def test_a_prefix_is_attended_to_with_a_softmax_of_its_own():
    prefix = PrefixLayer(width=8, rank=3, seed=0, name="x")
    prefix.values.data = gaussian((3, 8), 1.0, seed=0, name="V")
    q = gaussian((1, 4, 5, 2), 1.0, seed=0, name="q")  # four heads of two channels
    found = prefix(q)

    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        weights = (q[0, head] @ prefix.keys[:, part].T / math.sqrt(2)).softmax(-1)
        torch.testing.assert_close(found[0, head], weights @ prefix.values[:, part])


def test_a_prefix_shows_nothing_of_the_future(base):
    model, seen = moved(config_of("prefix", base)), tokens()
    changed = seen.clone()
    changed[:, 10] = changed[:, 10] % (CHARACTERS - 1) + 1
    torch.testing.assert_close(model(seen)[:, :10], model(changed)[:, :10], rtol=0, atol=0)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["LoRA", "bias"])
@pytest.mark.parametrize("how", ["missing", "damaged", "fewer", "another shape"])
def test_weights_that_do_not_belong_to_the_run_are_refused(method, how, base, tmp_path):
    train(config_of(method, base), tmp_path, progress=False)
    path = tmp_path / METHODS[method].file
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(b"no tensors")
    elif how == "fewer":
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    else:
        save_file(tensors | {name: torch.zeros(2, 2, 2)}, path)
    with pytest.raises(SourceError) as caught:
        load_trained(tmp_path)
    assert len(str(caught.value).splitlines()) == 5


def test_another_base_under_the_same_name_is_noticed(base, tmp_path):
    moved_base = tmp_path / "base"
    moved_base.mkdir()
    tensors = load_file(base / "model.safetensors")
    save_file(tensors, moved_base / "model.safetensors")
    train(config_of("LoRA", moved_base), tmp_path / "run", progress=False)
    assert isinstance(load_trained(tmp_path / "run"), GPT)
    save_file(tensors | {"norm.weight": torch.ones(WIDTH)}, moved_base / "model.safetensors")
    with pytest.raises(SourceError, match="began from") as caught:
        load_trained(tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 5


def test_a_folder_without_a_run_has_no_model(tmp_path):
    with pytest.raises(SourceError):
        load_trained(tmp_path)
