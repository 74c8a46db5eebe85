"""PEFT's other methods, and the options of LoRA that are more than a product: PEFT's own merge."""

import copy
import json
import pickle
import warnings

import peft
import pytest
import torch
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import load_file
from torch import nn

import rankscope as rs
from rankscope.errors import AdapterError


class Tiny(nn.Module):
    """One layer of every kind that an adapter can sit on."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.q = nn.Linear(8, 12)
        self.square = nn.Linear(8, 8, bias=False)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.point = nn.Conv2d(4, 6, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.square(self.embed(x))))


def trained(config, model=None, spread=0.5):
    """A PEFT model with random trained numbers, and its base's state dict."""
    torch.manual_seed(0)
    base = Tiny() if model is None else model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(base, config)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and parameter.ndim:
            with torch.no_grad():
                parameter.add_(spread * torch.randn_like(parameter))
        assert "magnitude" not in name or parameter.requires_grad
    return wrapped, before


def truth_of(model, before):
    """What PEFT's merge changes, by module, flattened to a matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = copy.deepcopy(model).merge_and_unload().state_dict()
    deltas = {
        name.removesuffix(".weight"): (after[name].double() - before[name].double()).flatten(1)
        for name in before
        if before[name].ndim > 1
    }
    return {name: delta for name, delta in deltas.items() if delta.abs().max() > 0}


def check(updates, truth, atol=1e-5):
    assert set(updates.names) == set(truth)
    for site, update in zip(updates.sites, updates, strict=True):
        assert update.shape == site.shape == truth[site.module].shape
        torch.testing.assert_close(update.dense(), truth[site.module], atol=atol, rtol=1e-5)


def save(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


LINEAR = ["q", "square"]
CONVS = ["conv1", "conv2", "point"]
LORA = {"r": 3, "lora_alpha": 6}
ALONE = {
    "lora conv": peft.LoraConfig(**LORA, target_modules=["q", *CONVS]),
    "lora bias": peft.LoraConfig(**LORA, target_modules=["q"], lora_bias=True),
    "bias all": peft.LoraConfig(**LORA, target_modules=["q"], bias="all"),
    "bias lora_only": peft.LoraConfig(**LORA, target_modules=["q", "conv2"], bias="lora_only"),
    "embedding": peft.LoraConfig(**LORA, target_modules=["embed", "head"]),
    "adalora": peft.AdaLoraConfig(init_r=4, target_modules=LINEAR, total_step=9),
    "loha": peft.LoHaConfig(r=2, alpha=6, target_modules=["q", *CONVS]),
    "loha effective": peft.LoHaConfig(
        r=2, alpha=6, target_modules=["q", *CONVS], use_effective_conv2d=True
    ),
    "loha patterns": peft.LoHaConfig(
        r=2, alpha=6, target_modules=LINEAR, rank_pattern={"q": 3}, alpha_pattern={"square": 5}
    ),
    "lokr": peft.LoKrConfig(r=1, alpha=4, target_modules=["q", *CONVS], decompose_both=True),
    "lokr whole": peft.LoKrConfig(r=64, alpha=4, target_modules=["q", *CONVS]),
    "lokr patterns": peft.LoKrConfig(
        r=8, alpha=4, target_modules=LINEAR, rank_pattern={"q": 16}, alpha_pattern={"square": 3}
    ),
}
WITH_BASE = {
    "dora": peft.LoraConfig(
        **LORA, target_modules=["embed", *LINEAR, *CONVS], use_dora=True, use_rslora=True
    ),
    "ia3": peft.IA3Config(target_modules=[*LINEAR, "conv2"], feedforward_modules=["square"]),
    "ia3 inputs": peft.IA3Config(
        target_modules=["q", "conv2"], feedforward_modules=["q", "conv2"]
    ),
    "vera": peft.VeraConfig(r=4, target_modules=LINEAR),
    "oft exact": peft.OFTConfig(
        oft_block_size=4, target_modules=[*LINEAR, "conv2"], use_cayley_neumann=False
    ),
    "oft series": peft.OFTConfig(oft_block_size=4, target_modules=LINEAR),
    "oft series of seven": peft.OFTConfig(
        oft_block_size=4, target_modules=LINEAR, num_cayley_neumann_terms=7
    ),
    "oft shared": peft.OFTConfig(
        oft_block_size=4, target_modules=LINEAR, block_share=True, use_cayley_neumann=False
    ),
    "oft constrained": peft.OFTConfig(
        oft_block_size=4, target_modules=LINEAR, coft=True, eps=1e-1, use_cayley_neumann=False
    ),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=[*LINEAR, "conv2"]),
    "modules to save": peft.LoraConfig(**LORA, target_modules=["q"], modules_to_save=["head"]),
    "saved convolution": peft.LoraConfig(
        **LORA, target_modules=["q"], modules_to_save=["conv2", "norm"]
    ),
    "token rows": peft.LoraConfig(
        **LORA, target_modules=["q"], trainable_token_indices={"embed": [1, 3]}
    ),
    "trainable tokens": peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[4, 2]),
    "layer norms and a matrix": peft.LNTuningConfig(target_modules=["norm", "q"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", (ALONE | WITH_BASE).values(), ids=ALONE | WITH_BASE)
class TestAgainstPeft:
    def test_saved_folder(self, tmp_path, config):
        model, before = trained(config)
        updates = rs.open_updates(save(model, tmp_path), base=before)
        check(updates, truth_of(model, before))
        read = set(load_file(tmp_path / "adapter_model.safetensors")) - set(updates.unread)
        assert read
        check(pickle.loads(pickle.dumps(updates)), truth_of(model, before))
        assert all(name.endswith("bias") or "norm" in name for name in updates.unread)

    def test_live_model(self, config):
        model, before = trained(config)
        check(rs.open_updates(model), truth_of(model, before))

    def test_live_model_with_another_base(self, config):
        model, before = trained(config)
        check(rs.open_updates(model, base=before), truth_of(model, before))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ALONE.values(), ids=ALONE)
def test_no_base_is_needed(tmp_path, config):
    model, before = trained(config)
    check(rs.open_updates(save(model, tmp_path)), truth_of(model, before))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_lokr_with_a_core_is_its_definition(name):
    # PEFT's own merge fails on these: torch.kron cannot view its second argument.
    config = peft.LoKrConfig(r=1, alpha=4, target_modules=[name], use_effective_conv2d=True)
    model, before = trained(config)
    stored = model.state_dict()
    w1, a, b, t = (
        stored[f"base_model.model.{name}.lokr_{x}.default"].double()
        for x in ("w1", "w2_a", "w2_b", "t2")
    )
    w2 = torch.einsum("ijkl,ip,jr->prkl", t, a, b)
    truth = 4 * torch.einsum("ab,prkl->apbrkl", w1, w2)
    update = rs.open_updates(model)[name]
    torch.testing.assert_close(update.dense(), truth.reshape(6, -1))
    assert update.shape == before[f"{name}.weight"].flatten(1).shape


class Conv1D(nn.Module):
    """GPT-2's block: weights stored (in, out)."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D as Layer

        self.c_attn = Layer(24, 8)
        self.c_proj = Layer(8, 8)

    def forward(self, x):
        return self.c_proj(self.c_attn(x)[..., :8])


STORED_TRANSPOSED = {
    "lora": peft.LoraConfig(**LORA, target_modules=["c_attn", "c_proj"]),
    "dora": peft.LoraConfig(
        **LORA, target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True
    ),
    "pissa": peft.LoraConfig(
        **LORA, target_modules=["c_attn", "c_proj"], init_lora_weights="pissa", fan_in_fan_out=True
    ),
    "ia3": peft.IA3Config(
        target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"], fan_in_fan_out=True
    ),
    "vera": peft.VeraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    "saved": peft.LoraConfig(**LORA, target_modules=["c_attn"], modules_to_save=["c_proj"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", STORED_TRANSPOSED.values(), ids=STORED_TRANSPOSED)
def test_weights_stored_as_in_out(tmp_path, config):
    model, before = trained(config, Conv1D())
    folder = save(model, tmp_path)
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | {"fan_in_fan_out": False}))
    updates = rs.open_updates(folder, base=before, split="none")
    check(updates, {name: delta.T for name, delta in truth_of(model, before).items()})
    for name in updates.names:
        torch.testing.assert_close(updates.weight(name), before[f"{name}.weight"].T)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", ["pissa", "olora"])
class TestInitialisationsThatMoveTheBase:
    def model(self, init):
        config = peft.LoraConfig(
            r=3, lora_alpha=6, target_modules=["embed", *LINEAR], init_lora_weights=init
        )
        return trained(config)

    def test_are_undone(self, tmp_path, init):
        model, before = self.model(init)
        updates = rs.open_updates(save(model, tmp_path), base=before)
        check(updates, truth_of(model, before), atol=1e-4)
        assert updates["q"].ceiling == 6
        assert any("computed again" in note for note in updates.notes)
        live = rs.open_updates(model, base=before)
        check(live, truth_of(model, before), atol=1e-4)

    def test_need_the_base_from_before(self, tmp_path, init):
        model, _ = self.model(init)
        with pytest.raises(AdapterError, match="depends on its base weight"):
            rs.open_updates(save(model, tmp_path))
        with pytest.raises(AdapterError, match="before"):
            rs.open_updates(model)


@pytest.mark.filterwarnings("ignore")
def test_randomised_pissa_is_near_and_says_so(tmp_path):
    config = peft.LoraConfig(**LORA, target_modules=LINEAR, init_lora_weights="pissa_niter_16")
    model, before = trained(config)
    updates = rs.open_updates(save(model, tmp_path), base=before)
    for name, delta in truth_of(model, before).items():
        assert (updates[name].dense() - delta).norm() < 0.1 * delta.norm()
    assert any("draws at random" in note for note in updates.notes)


@pytest.mark.filterwarnings("ignore")
def test_converted_pissa_is_plain_lora(tmp_path):
    config = peft.LoraConfig(**LORA, target_modules=LINEAR, init_lora_weights="pissa")
    model, before = trained(config, spread=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "initial")
        model.peft_config["default"].init_lora_weights = "pissa"
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += torch.randn_like(parameter)
        model.save_pretrained(
            tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    check(rs.open_updates(tmp_path / "out"), truth_of(model, before), atol=1e-4)


class Experts(nn.Module):
    def __init__(self, hidden=8, inner=6, transposed=False):
        super().__init__()
        torch.manual_seed(1)
        up, down = (3, 2 * inner, hidden), (3, hidden, inner)
        self.is_transposed = transposed
        turn = (lambda s: (s[0], s[2], s[1])) if transposed else (lambda s: s)
        self.gate_up_proj = nn.Parameter(torch.randn(*turn(up)))
        self.down_proj = nn.Parameter(torch.randn(*turn(down)))

    def forward(self, x):
        return x


class Mixture(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.experts = Experts(**options)

    def forward(self, x):
        return x


BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.filterwarnings("ignore")
class TestStackedExperts:
    def trained(self, targets=BOTH, **options):
        config = peft.LoraConfig(
            **LORA, target_modules=[], target_parameters=targets, rank_pattern={}
        )
        return trained(config, Mixture(**options))

    @pytest.mark.parametrize("targets", [BOTH, BOTH[::-1], BOTH[1:]])
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("inner", [6, 4])
    def test_every_expert_is_an_update(self, tmp_path, targets, transposed, inner):
        model, before = self.trained(targets, transposed=transposed, inner=inner)
        folder = save(model, tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            after = model.merge_and_unload().state_dict()
        updates = rs.open_updates(folder, base=before, split="none")
        assert len(updates) == 3 * len(targets)
        for name in targets:
            delta = (after[name] - before[name]).double()
            for e in range(3):
                truth = delta[e].T if transposed else delta[e]
                torch.testing.assert_close(
                    updates[f"{name}[{e}]"].dense(), truth, atol=1e-5, rtol=1e-5
                )
                assert updates.site(f"{name}[{e}]").rank == 3
                torch.testing.assert_close(
                    updates.weight(f"{name}[{e}]"),
                    before[name][e].T if transposed else before[name][e],
                )
        assert not updates.unread

    def test_one_parameter_needs_no_base(self, tmp_path):
        model, before = self.trained(BOTH[1:])
        folder = save(model, tmp_path)
        alone, with_base = rs.open_updates(folder), rs.open_updates(folder, base=before)
        assert alone.names == with_base.names
        assert any("by the configuration's rank" in note for note in alone.notes)
        for name, update in alone.items():
            torch.testing.assert_close(update.dense(), with_base[name].dense())

    def test_two_parameters_without_a_base_are_ambiguous(self, tmp_path):
        model, _ = self.trained()
        with pytest.raises(AdapterError, match="not certain which parameter"):
            rs.open_updates(save(model, tmp_path))

    def test_before_0_19_the_factors_are_the_other_way_round(self, tmp_path, rng):
        base = {"mlp.experts.down_proj": gaussian(3, 8, 6, rng=rng)}
        a, b = gaussian(6, 8, rng=rng).float(), gaussian(6, 6, rng=rng).float()
        tensors = {"lora_A": a, "lora_B": b}
        write_peft(
            tmp_path,
            {f"base_model.model.mlp.experts.{n}.weight": t for n, t in tensors.items()},
            peft_version="0.18.1",
            r=2,
            target_parameters=BOTH[1:],
        )
        updates = rs.open_updates(tmp_path, base=base)
        truth = 4 * torch.einsum("ore,eri->eio", b.reshape(6, 2, 3), a.reshape(3, 2, 8))
        for e in range(3):
            torch.testing.assert_close(
                updates[f"mlp.experts.down_proj[{e}]"].dense().float(), truth[e]
            )
        assert any("before PEFT 0.19" in note for note in updates.notes)
        with pytest.raises(AdapterError, match="not certain which parameter"):
            rs.open_updates(tmp_path)


def named(module, **tensors):
    """Tensors as PEFT names them in a file, without ``.weight``."""
    return {f"base_model.model.{module}.{name}": tensor for name, tensor in tensors.items()}


def written(folder, tensors, **config):
    """A folder with these tensors; no option of LoRA is set beside them."""
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    return write_peft(folder, tensors, **config)


class TestAdaLora:
    def tensors(self, rank, rng):
        sizes = {"lora_A": (rank, 8), "lora_B": (12, rank), "lora_E": (rank, 1)}
        return named("q", **{n: gaussian(*size, rng=rng).float() for n, size in sizes.items()})

    @pytest.mark.parametrize("alpha", [8, 0])
    def test_pruned_keeps_the_divisor_of_the_first_rank(self, tmp_path, rng, alpha):
        tensors = self.tensors(2, rng)
        folder = written(
            tmp_path, tensors, peft_type="ADALORA", init_r=4, lora_alpha=alpha,
            rank_pattern={"q.lora_E": [True, False, True, False]},
        )  # fmt: skip
        a, b, e = (tensors[f"base_model.model.q.lora_{x}"].double() for x in "ABE")
        updates = rs.open_updates(folder)
        torch.testing.assert_close(updates["q"].dense(), b @ (a * e) * ((alpha or 4) / (4 + 1e-5)))
        assert updates.sites[0].rank == 2

    def test_pruned_to_nothing_is_zero(self, tmp_path, rng):
        folder = written(tmp_path, self.tensors(0, rng), peft_type="ADALORA", init_r=4)
        updates = rs.open_updates(folder)
        assert updates["q"].norm() == 0
        assert updates["q"].shape == updates.sites[0].shape == (12, 8)
        assert rs.rank(updates).table.numerical_rank[0] == 0

    def test_without_configuration_the_scale_is_unknown(self, rng):
        updates = rs.open_updates(self.tensors(2, rng))
        assert updates.sites[0].scale is None
        assert any("scale is unknown" in note for note in updates.notes)

    def test_shapes_that_do_not_fit(self, rng):
        tensors = self.tensors(2, rng)
        tensors["base_model.model.q.lora_E"] = torch.ones(3, 1)
        with pytest.raises(AdapterError, match="does not fit"):
            rs.open_updates(tensors)


def test_loha_and_lokr_stay_factored(tmp_path):
    wide = nn.ModuleDict({"q": nn.Linear(60, 48, bias=False)})
    model, _ = trained(peft.LoHaConfig(r=3, alpha=6, target_modules=["q"]), wide)
    assert rs.open_updates(model)["q"].ceiling == 9
    model, _ = trained(
        peft.LoKrConfig(r=2, alpha=6, target_modules=["q"], decompose_both=True),
        nn.ModuleDict({"q": nn.Linear(60, 48, bias=False)}),
    )
    assert rs.open_updates(model)["q"].ceiling == 4


class TestVera:
    @pytest.fixture
    def folder(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.VeraConfig(r=4, target_modules=["q"], save_projection=False)
            model, self.before = trained(config)
        return save(model, tmp_path)

    def test_without_the_projection_is_refused_with_advice(self, folder):
        with pytest.raises(AdapterError, match="random projections") as caught:
            rs.open_updates(folder, base=self.before)
        assert "save_projection=True" in caught.value.fix

    def test_needs_the_base_for_its_width(self, tmp_path):
        model, _ = trained(peft.VeraConfig(r=4, target_modules=LINEAR))
        with pytest.raises(AdapterError, match="width cuts the shared projection"):
            rs.open_updates(save(model, tmp_path / "saved"))


def test_oft_without_its_configuration_is_refused(rng):
    tensors = named("q", **{"oft_R.weight": gaussian(2, 6, rng=rng)})
    with pytest.raises(AdapterError, match="configuration alone"):
        rs.open_updates(tensors, base={"q.weight": torch.ones(12, 8)})


def test_the_two_rotations_of_oft_turn_opposite_ways(tmp_path, rng):
    tensors = named("q", **{"oft_R.weight": 0.05 * gaussian(2, 6, rng=rng)})
    base = {"q.weight": torch.eye(8)}
    turned = [
        rs.open_updates(
            written(tmp_path / str(series), tensors, peft_type="OFT", use_cayley_neumann=series),
            base=base,
        )["q"].dense()
        for series in (False, True)
    ]
    torch.testing.assert_close(turned[0], turned[1].T, atol=1e-3, rtol=0)
    assert (turned[0] - turned[1]).norm() > 0.1


def test_boft_of_several_factors_is_its_definition(tmp_path, rng):
    # PEFT itself needs a CUDA extension for these; its permutations are asked for here.
    layer = peft.tuners.boft.layer.BOFTLayer.__new__(peft.tuners.boft.layer.BOFTLayer)
    blocks, gain = gaussian(3, 4, 4, 4, rng=rng).float(), gaussian(6, 1, rng=rng).float()
    weight = gaussian(6, 16, rng=rng)
    total = torch.eye(16).double()
    for i, factor in enumerate(blocks.double()):
        p = layer.perm2mat(layer.block_butterfly_perm(16, 4 // 2**i, 2, 2)).double()
        skew, eye = (factor - factor.mT) / 2, torch.eye(4).double()
        turns = torch.stack([(eye - q) @ torch.linalg.inv(eye + q) for q in skew])
        total = p @ torch.block_diag(*turns) @ p.T @ total
    folder = written(tmp_path, named("q", boft_R=blocks, boft_s=gain), peft_type="BOFT")
    update = rs.open_updates(folder, base={"q.weight": weight})["q"]
    torch.testing.assert_close(update.dense(), gain.double() * (weight @ total.T) - weight)


@pytest.mark.filterwarnings("ignore")
class TestReplacedInFull:
    def saved(self, tmp_path, **options):
        config = peft.LoraConfig(**LORA, target_modules=["q"], **options)
        model, before = trained(config)
        return save(model, tmp_path), before

    def test_without_a_base_is_listed_as_unread(self, tmp_path):
        folder, _ = self.saved(tmp_path, modules_to_save=["head"])
        updates = rs.open_updates(folder)
        assert updates.names == ["q"]
        assert updates.unread == ("base_model.model.head.weight",)
        assert any("replaced in full" in note for note in updates.notes)

    def test_token_rows_without_a_base_are_too(self, tmp_path):
        folder, _ = self.saved(tmp_path, trainable_token_indices={"embed": [1, 3]})
        updates = rs.open_updates(folder)
        assert updates.names == ["q"]
        assert "trainable_tokens_delta" in updates.unread[0]
        assert any("trainable tokens" in note for note in updates.notes)

    def test_token_rows_can_be_all_there_is(self, tmp_path):
        tensors = named("embed", **{"token_adapter.trainable_tokens_delta": torch.ones(1, 8)})
        folder = written(tmp_path, tensors, trainable_token_indices=[2])
        update = rs.open_updates(folder, base={"embed.weight": torch.zeros(5, 8)})["embed"]
        assert update.dense().sum(1).tolist() == [0, 0, 8, 0, 0]

    def test_token_rows_have_their_rank(self, tmp_path):
        folder, before = self.saved(tmp_path, trainable_token_indices={"embed": [1, 3]})
        update = rs.open_updates(folder, base=before)["embed"]
        assert update.ceiling == 2
        assert update.dense().any(1).nonzero().flatten().tolist() == [1, 3]

    @pytest.mark.parametrize(
        "indices", [[1], [1, 1], [1, 20], [1, -1], [1, True], [1, "2"], "all", None, {"q": [1, 2]}]
    )
    def test_indices_that_do_not_fit(self, tmp_path, indices):
        folder, before = self.saved(tmp_path, trainable_token_indices={"embed": [1, 3]})
        path = folder / "adapter_config.json"
        content = json.loads(path.read_text()) | {"trainable_token_indices": indices}
        path.write_text(json.dumps(content))
        with pytest.raises(AdapterError, match=r"unusable .*ind"):
            rs.open_updates(folder, base=before)

    def test_of_a_resized_vocabulary_shared_rows_are_read(self, tmp_path, rng):
        base = {"embed.weight": gaussian(20, 8, rng=rng), "q.weight": gaussian(12, 8, rng=rng)}
        tuned = gaussian(24, 8, rng=rng).float()
        tensors = peft_tensors(["q"], 3, rng) | {"base_model.model.embed.weight": tuned}
        updates = rs.open_updates(written(tmp_path, tensors), base=base)
        truth = tuned[:20].double() - base["embed.weight"]
        torch.testing.assert_close(updates["embed"].dense(), truth)
        assert any("24 rows, 20 in the base" in note for note in updates.notes)

    @pytest.mark.parametrize("rows", [20, 24])
    @pytest.mark.parametrize("moved", [False, True])
    def test_embedding_and_its_copy(self, tmp_path, rng, rows, moved):
        base = {"embed.weight": gaussian(20, 8, rng=rng).float()}
        copied = torch.cat([base["embed.weight"], gaussian(4, 8, rng=rng).float()])[:rows]
        copied = copied + 1 if moved else copied
        a, b = gaussian(3, rows, rng=rng).float(), gaussian(8, 3, rng=rng).float()
        tensors = named("embed", lora_embedding_A=a, lora_embedding_B=b)
        tensors["base_model.model.embed.base_layer.weight"] = copied
        folder = written(tmp_path, tensors)
        updates = rs.open_updates(folder, base=base)
        truth = 2 * (b.double() @ a.double()).T[:20] * 4 / 3 + float(moved)
        torch.testing.assert_close(updates["embed"].dense(), truth, atol=1e-6, rtol=1e-6)
        assert updates.sites[0].shape == (20, 8)
        assert (updates["embed"].ceiling == 3) is not moved
        alone = rs.open_updates(folder)
        assert alone["embed"].shape == (rows, 8)
        assert any("taken to be the base's" in note for note in alone.notes)

    def test_a_copy_of_a_head_that_the_base_lacks(self, tmp_path, rng):
        tensors = peft_tensors(["lm_head"], 4, rng)
        tensors["base_model.model.lm_head.base_layer.weight"] = torch.ones(12, 8)
        folder = written(tmp_path, tensors)
        updates = rs.open_updates(folder, base={"embed.weight": torch.ones(12, 8)})
        torch.testing.assert_close(
            updates["lm_head"].dense(), rs.open_updates(folder)["lm_head"].dense()
        )
        assert any("taken to be the base's" in note for note in updates.notes)

    def test_another_shape_than_the_base_is_unread(self, tmp_path, rng):
        tensors = peft_tensors(["q"], 3, rng) | {"base_model.model.head.weight": torch.ones(3, 7)}
        base = {"head.weight": torch.ones(3, 8)}
        updates = rs.open_updates(written(tmp_path, tensors), base=base)
        assert updates.unread == ("base_model.model.head.weight",)
        assert any("not in the base in this shape" in note for note in updates.notes)


def test_multihead_attention_computes_with_these_updates(tmp_path, rng):
    # PEFT 0.21 adds the output projection's product twice, in its merge and in its forward.
    plain = nn.MultiheadAttention(8, 2)
    model, before = trained(
        peft.LoraConfig(**LORA, target_modules=["attn"]),
        nn.ModuleDict({"attn": copy.deepcopy(plain)}),
    )
    updates = rs.open_updates(save(model, tmp_path), base=before, split="none")
    truth = truth_of(model, before)
    check(updates, truth)
    assert any("twice" in note for note in updates.notes)
    assert set(truth) == {"attn.in_proj_weight", "attn.out_proj"}
    weight = before["attn.in_proj_weight"]
    torch.testing.assert_close(updates.weight("attn.in_proj_weight"), weight)
    names = {"attn.in_proj_weight": "in_proj_weight", "attn.out_proj": "out_proj.weight"}
    plain.load_state_dict({n.removeprefix("attn."): t for n, t in before.items()})
    with torch.no_grad():
        for module, update in updates.items():
            plain.get_parameter(names[module]).add_(update.dense().float())
    x = gaussian(5, 1, 8, rng=rng).float()
    layer = model.base_model.model["attn"]
    torch.testing.assert_close(layer(x, x, x)[0], plain(x, x, x)[0], atol=1e-5, rtol=1e-5)


def test_grouped_convolutions_are_refused(tmp_path):
    model, _ = trained(
        peft.LoraConfig(r=4, target_modules=["conv"]),
        nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3, groups=2)}),
    )
    with pytest.raises(AdapterError) as caught:
        rs.open_updates(save(model, tmp_path))
    assert "2 groups" in caught.value.got


NOTED = {
    "loftq": ({"init_lora_weights": "loftq"}, "quantised base"),
    "alora": ({"alora_invocation_tokens": [1, 2]}, "invocation tokens"),
    "replicated": ({"layer_replication": [[0, 4], [2, 5]]}, "replicated stack"),
}


@pytest.mark.parametrize(("options", "note"), NOTED.values(), ids=NOTED)
def test_assumptions_are_noted(tmp_path, rng, options, note):
    updates = rs.open_updates(written(tmp_path, peft_tensors(["h.0.q"], 4, rng), **options))
    assert any(note in text for text in updates.notes)


def test_a_head_that_the_base_lacks_is_noted(tmp_path, rng):
    folder = written(tmp_path, peft_tensors(["lm_head"], 4, rng))
    tied = rs.open_updates(folder, base={"embed.weight": torch.ones(12, 8)})
    assert any("tied to the embedding" in note for note in tied.notes)
    own = rs.open_updates(folder, base={"lm_head.weight": torch.ones(12, 8)})
    assert not own.notes


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE"])
def test_soft_prompts_have_no_weight_update(tmp_path, kind):
    folder = write_peft(tmp_path, {"prompt_embeddings": torch.ones(4, 8)}, peft_type=kind)
    with pytest.raises(AdapterError, match="no weight update") as caught:
        rs.open_updates(folder)
    assert kind in caught.value.got


@pytest.mark.parametrize("kind", ["XLORA", "POLY", "ADAPTION_PROMPT"])
def test_routers_and_gates_have_none_either(tmp_path, rng, kind):
    with pytest.raises(AdapterError, match="no weight update"):
        rs.open_updates(written(tmp_path, peft_tensors(["q"], 4, rng), peft_type=kind))


UNREAD_METHODS = {
    "another method": {"peft_type": "HRA"},
    "dora of a shifted base": {"use_dora": True, "init_lora_weights": "pissa"},
    "dora of experts": {"use_dora": True, "target_parameters": ["experts.down_proj"]},
    "pissa of experts": {
        "init_lora_weights": "pissa", "target_parameters": ["experts.down_proj"],
    },
    "pissa in a replicated stack": {
        "init_lora_weights": "pissa", "layer_replication": [[0, 2], [1, 3]],
    },
    "init of gradients": {"init_lora_weights": "lora_ga"},
    "an init that is not known": {"init_lora_weights": "tomorrow"},
    "tensors of another method": {"peft_type": "LOHA"},
}  # fmt: skip


@pytest.mark.parametrize("options", UNREAD_METHODS.values(), ids=UNREAD_METHODS)
def test_what_is_not_read_is_refused(tmp_path, rng, options):
    with pytest.raises(AdapterError, match="something else, than scale"):
        rs.open_updates(written(tmp_path, peft_tensors(["experts"], 4, rng), **options))


WRONG = {
    "dora magnitude": ({"lora_A": (4, 8), "lora_B": (12, 4), "lora_magnitude_vector": (8,)}, {}),
    "dora of another base": (
        {"lora_A": (4, 9), "lora_B": (12, 4), "lora_magnitude_vector": (12,)}, {},
    ),
    "half of loha": ({"hada_w1_a": (12, 2), "hada_w1_b": (2, 8)}, {"peft_type": "LOHA"}),
    "sides of loha": (
        {"hada_w1_a": (12, 2), "hada_w1_b": (2, 8), "hada_w2_a": (12, 2), "hada_w2_b": (2, 9)},
        {"peft_type": "LOHA"},
    ),
    "ranks of loha": (
        {"hada_w1_a": (12, 2), "hada_w1_b": (3, 8), "hada_w2_a": (12, 2), "hada_w2_b": (2, 8)},
        {"peft_type": "LOHA"},
    ),
    "half of lokr": ({"lokr_w1": (3, 2), "lokr_w2_a": (4, 1)}, {"peft_type": "LOKR"}),
    "core of lokr": (
        {"lokr_w1": (3, 2), "lokr_w2_a": (1, 4), "lokr_w2_b": (1, 4), "lokr_t2": (2, 1, 3, 3)},
        {"peft_type": "LOKR"},
    ),
    "ia3 of another base": ({"ia3_l": (13, 1)}, {"peft_type": "IA3"}),
    "ia3 of one dimension": ({"ia3_l": (12,)}, {"peft_type": "IA3"}),
    "vera of another base": (
        {"vera_lambda_b": (13,), "vera_lambda_d": (2,), "vera_A": (2, 8), "vera_B": (13, 2)},
        {"peft_type": "VERA"},
    ),
    "narrow vera": (
        {"vera_lambda_b": (12,), "vera_lambda_d": (2,), "vera_A": (2, 7), "vera_B": (12, 2)},
        {"peft_type": "VERA"},
    ),
    "oft of no block": ({"oft_R": (2, 5)}, {"peft_type": "OFT"}),
    "oft of another base": ({"oft_R": (3, 6)}, {"peft_type": "OFT"}),
    "series without end": (
        {"oft_R": (2, 6)},
        {"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 1e9},
    ),
    "boft of no blocks": ({"boft_R": (1, 2, 4, 3), "boft_s": (12, 1)}, {"peft_type": "BOFT"}),
    "odd butterfly": ({"boft_R": (2, 1, 8, 8), "boft_s": (12, 1)}, {"peft_type": "BOFT"}),
    "tokens and lora at once": (
        {"lora_A": (4, 8), "lora_B": (12, 4), "trainable_tokens_delta": (1, 8)},
        {"trainable_token_indices": [0]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "config"), WRONG.values(), ids=WRONG)
def test_tensors_that_do_not_fit(tmp_path, rng, shapes, config):
    tensors = named("q", **{name: gaussian(*shape, rng=rng) for name, shape in shapes.items()})
    base = {"q.weight": torch.ones(12, 8), "other.weight": torch.ones(3, 3)}
    with pytest.raises(AdapterError) as caught:
        rs.open_updates(written(tmp_path, tensors, **config), base=base)
    assert len(str(caught.value).splitlines()) == 5


NEED_BASE = {
    "dora": {"lora_A": (4, 8), "lora_B": (12, 4), "lora_magnitude_vector": (12,)},
    "ia3": {"ia3_l": (12, 1)},
    "boft": {"boft_R": (1, 2, 4, 4), "boft_s": (12, 1)},
}


@pytest.mark.parametrize("shapes", NEED_BASE.values(), ids=NEED_BASE)
def test_methods_that_need_the_base_say_so(rng, shapes):
    tensors = named("q", **{name: gaussian(*shape, rng=rng) for name, shape in shapes.items()})
    with pytest.raises(AdapterError, match="depends on its base weight"):
        rs.open_updates(tensors)
    with pytest.raises(AdapterError, match="depends on its base weight"):
        rs.open_updates(tensors, base={"other.weight": torch.ones(12, 8)})
