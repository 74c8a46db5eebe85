"""Slices of fused projections: the rows that each model's own attention takes for q, k and v."""

import importlib
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.cli import cli
from rankscope.errors import SourceError
from rankscope.io.fused import canonical_slice
from rankscope.io.fused_layouts import split_names
from rankscope.io.sources import open_weights
from rankscope.updates import DenseUpdate, FactoredUpdate

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH, HEADS, SIZE = 16, 4, 4


def written(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def adapter(folder, module, rows, rng, in_=WIDTH, rank=3):
    return write_peft(folder, peft_tensors([module], rank, rng, out=rows, in_=in_), r=rank)


def attention_of(family, **config):
    """The family's own attention layer, without biases."""
    named = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kind = {
        "gpt_neox": "GPTNeoX",
        "gpt2": "GPT2",
        "codegen": "CodeGen",
        "gpt_bigcode": "GPTBigCode",
    }
    kind = kind.get(family, family.capitalize())
    told = getattr(transformers, f"{kind}Config")(**config)
    told._attn_implementation = "eager"
    torch.manual_seed(0)
    layer = getattr(named, f"{kind}Attention")(told, layer_idx=0).double()
    return named, told, layer


GPT2 = {"n_embd": WIDTH, "n_head": HEADS}
LLAMA = {"hidden_size": WIDTH, "num_attention_heads": HEADS}
FAMILIES = {
    "gpt2": ("gpt2", GPT2, "attn.c_attn"),
    "bloom": ("bloom", {"hidden_size": WIDTH, "n_head": HEADS}, "self_attention.query_key_value"),
    "gpt_neox": ("gpt_neox", LLAMA, "attention.query_key_value"),
    "persimmon": ("persimmon", LLAMA, "self_attn.query_key_value"),
    "falcon one key": ("falcon", LLAMA, "self_attention.query_key_value"),
    "falcon": ("falcon", LLAMA | {"multi_query": False}, "self_attention.query_key_value"),
    "falcon new": (
        "falcon", LLAMA | {"new_decoder_architecture": True, "num_kv_heads": 2},
        "self_attention.query_key_value",
    ),
    "phi3": ("phi3", LLAMA | {"num_key_value_heads": 2, "pad_token_id": 0}, "self_attn.qkv_proj"),
    "codegen": ("codegen", GPT2 | {"rotary_dim": 2}, "attn.qkv_proj"),
    "bigcode one key": ("gpt_bigcode", GPT2, "attn.c_attn"),
    "bigcode": ("gpt_bigcode", GPT2 | {"multi_query": False}, "attn.c_attn"),
}  # fmt: skip


def heads_read(family, layer, named, told, fused, monkeypatch):
    """q, k, v as (rows, in): what the layer's own code makes of every input unit vector."""
    projection = getattr(layer, fused)
    with torch.no_grad():
        layer_rows = projection(torch.eye(WIDTH, dtype=torch.float64))[None]
    if family == "bloom":
        parts = [part.transpose(1, 2) for part in layer._reshape(layer_rows)]
    elif family in ("falcon", "persimmon"):
        parts = layer._split_heads(layer_rows)
    else:
        parts = captured(layer, named, told, monkeypatch)
    return [part.reshape(WIDTH, -1, SIZE).flatten(1).T.detach() for part in parts]


class SeenError(Exception):
    """Raised once the attention proper is reached."""


def captured(layer, named, told, monkeypatch):
    """What reaches the attention proper when each input is a sequence of one: no rotation."""
    kept = []

    def attend(*arguments, **_):
        kept.extend([a for a in arguments if isinstance(a, torch.Tensor)][:3])
        raise SeenError

    turn = (torch.ones(WIDTH, 1, SIZE).double(), torch.zeros(WIDTH, 1, SIZE).double())
    options = {"position_embeddings": turn} if told.model_type in ("phi3", "gpt_neox") else {}
    if told.model_type == "codegen":
        options = {"position_ids": torch.zeros(WIDTH, 1, dtype=torch.long)}
        monkeypatch.setattr(layer, "_attn", attend)
    else:
        monkeypatch.setattr(named, "eager_attention_forward", attend)
    with pytest.raises(SeenError):
        layer(torch.eye(WIDTH, dtype=torch.float64)[:, None], attention_mask=None, **options)
    return [part.transpose(1, 2) for part in kept]


@pytest.mark.parametrize("name", FAMILIES)
def test_slices_are_what_the_models_own_attention_reads(name, tmp_path, rng, monkeypatch):
    family, options, path = FAMILIES[name]
    named, told, layer = attention_of(family, **options)
    projection = getattr(layer, path.rpartition(".")[2])
    turned = family == "gpt2"
    rows = projection.weight.shape[1 if turned else 0]
    module = f"h.3.{path}"
    folder = adapter(tmp_path / "adapter", module, rows, rng)
    base = written(tmp_path / "base", told.to_dict())
    save_file(
        {f"{module}.weight": projection.weight.float().contiguous()}, base / "model.safetensors"
    )
    whole = rs.open_updates(folder, base, split="none")[module].dense()
    with torch.no_grad():
        projection.weight.copy_(whole.T if turned else whole)
        if projection.bias is not None:
            projection.bias.zero_()
    truth = heads_read(family, layer, named, told, path.rpartition(".")[2], monkeypatch)
    updates = rs.open_updates(folder, base)
    assert {site.kind for site in updates.sites} == set("qkv")
    assert {site.layer for site in updates.sites} == {3}
    for part, read in zip("qkv", truth, strict=True):
        if name == "falcon new" and part != "q":  # read once for each of its queries
            read = read.unflatten(0, (2, 2, SIZE))[:, 0].flatten(0, 1)
        update = updates[f"{module}.{part}"]
        assert isinstance(update, FactoredUpdate)
        torch.testing.assert_close(update.dense(), read)
        assert update.shape == updates.site(f"{module}.{part}").shape


def tiny(kind, **options):
    """A whole model of one layer, its configuration and its weights."""
    torch.manual_seed(0)
    common = {"num_hidden_layers": 1, "vocab_size": 32, "pad_token_id": 0, **options}
    told = getattr(transformers, f"{kind}Config")(**common)
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(
        told
    )
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(model, **options):
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **options))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return adapted


def merged_difference(adapted, before):
    after = adapted.merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before}


def test_gpt2_by_pefts_merge(tmp_path):
    model, before = tiny("GPT2", **GPT2)
    adapted = trained(model, target_modules=["c_attn"], fan_in_fan_out=True)
    live = rs.open_updates(adapted)
    weight = before["transformer.h.0.attn.c_attn.weight"].T
    torch.testing.assert_close(live.weight("transformer.h.0.attn.c_attn.q"), weight[:WIDTH])
    adapted.save_pretrained(tmp_path)
    delta = merged_difference(adapted, before)["transformer.h.0.attn.c_attn.weight"].T
    updates = rs.open_updates(tmp_path)
    names = [f"transformer.h.0.attn.c_attn.{part}" for part in "kqv"]
    assert updates.names == live.names == names
    assert not updates.notes
    for source in (updates, pickle.loads(pickle.dumps(updates))):
        joined = torch.cat(
            [source[f"transformer.h.0.attn.c_attn.{part}"].dense() for part in "qkv"]
        )
        torch.testing.assert_close(joined.float(), delta, atol=1e-5, rtol=1e-5)


def test_a_live_model_tells_its_heads():
    model, before = tiny("Phi3", **PHI3)
    updates = rs.open_updates(trained(model, target_modules=["qkv_proj"]))
    name = f"{PATH}.self_attn.qkv_proj"
    assert updates.names == [f"{name}.{part}" for part in "kqv"]
    torch.testing.assert_close(updates.weight(f"{name}.v"), before[f"{name}.weight"][24:])


PHI3 = {**LLAMA, "num_key_value_heads": 2, "intermediate_size": 20}
PATH = "model.layers.0"
PARTS = {
    f"{PATH}.self_attn.q_proj": ("self_attn.qkv_proj", 0, 16),
    f"{PATH}.self_attn.k_proj": ("self_attn.qkv_proj", 16, 24),
    f"{PATH}.self_attn.v_proj": ("self_attn.qkv_proj", 24, 32),
    f"{PATH}.mlp.gate_proj": ("mlp.gate_up_proj", 0, 20),
    f"{PATH}.mlp.up_proj": ("mlp.gate_up_proj", 20, 40),
}


class TestPhi3:
    """The one model whose projections are found fused and, in its Llama form, apart."""

    @pytest.fixture
    def fused(self, tmp_path):
        model, before = tiny("Phi3", **PHI3)
        model.save_pretrained(tmp_path / "base")
        adapted = trained(model, target_modules=["qkv_proj", "gate_up_proj", "o_proj"])
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path, before, merged_difference(adapted, before)

    @pytest.fixture
    def apart(self, tmp_path):
        model, before = tiny("Llama", **PHI3)
        model.save_pretrained(tmp_path / "split")
        adapted = trained(model, target_modules=[name.rpartition(".")[2] for name in PARTS])
        adapted.save_pretrained(tmp_path / "split adapter")
        return tmp_path, before, merged_difference(adapted, before)

    def test_slices_by_pefts_merge(self, fused):
        folder, before, delta = fused
        updates = rs.open_updates(folder / "adapter", folder / "base")
        assert {canonical_slice(name) for name in updates.names} == {
            *PARTS,
            f"{PATH}.self_attn.o_proj",
        }
        assert not updates.notes
        assert updates.inputs[-1]["path"].endswith("config.json")
        for name in updates.names:
            if name.endswith("o_proj"):
                continue
            whole, start, stop = PARTS[canonical_slice(name)]
            truth = delta[f"{PATH}.{whole}.weight"][start:stop]
            torch.testing.assert_close(updates[name].dense().float(), truth, atol=1e-5, rtol=1e-5)
            weight = before[f"{PATH}.{whole}.weight"][start:stop]
            torch.testing.assert_close(updates.weight(name), weight)
            assert isinstance(updates[name], FactoredUpdate)
            assert updates.site(name).rank == updates[name].ceiling == 4

    @pytest.mark.parametrize("split", ["auto", "none"])
    def test_fused_adapter_on_a_split_base(self, fused, apart, split):
        folder, before = fused[0], apart[1]
        updates = rs.open_updates(folder / "adapter", folder / "split", split=split)
        for name in updates.names:
            names = [canonical_slice(name)] if split == "auto" else split_names(name)
            truth = torch.cat([before[f"{part}.weight"] for part in names])
            torch.testing.assert_close(updates.weight(name), truth)

    def test_split_adapter_on_a_fused_base(self, fused, apart):
        folder, before, _ = fused
        updates = rs.open_updates(folder / "split adapter", folder / "base")
        assert set(updates.names) == set(PARTS)
        for name, (whole, start, stop) in PARTS.items():
            truth = before[f"{PATH}.{whole}.weight"][start:stop]
            torch.testing.assert_close(updates.weight(name), truth)
            delta = apart[2][f"{name}.weight"]
            torch.testing.assert_close(updates[name].dense().float(), delta, atol=1e-5, rtol=1e-5)

    def test_a_base_of_another_width_is_refused(self, fused, apart):
        folder, _, _ = fused
        base = {f"{PATH}.self_attn.qkv_proj.weight": torch.ones(32, 12)}
        with pytest.raises(SourceError, match="another shape"):
            rs.open_updates(folder / "split adapter", base).weight(f"{PATH}.self_attn.q_proj")
        base = written(folder / "wrong", json.loads((folder / "base/config.json").read_text()))
        parts = {f"{PATH}.self_attn.{part}_proj.weight": torch.ones(8, WIDTH) for part in "qkv"}
        save_file(parts, base / "model.safetensors")
        for split, name in (("auto", "qkv_proj.q"), ("none", "qkv_proj")):
            updates = rs.open_updates(folder / "adapter", base, split=split)
            with pytest.raises(SourceError, match="another shape"):
                updates.weight(f"{PATH}.self_attn.{name}")

    def test_without_its_configuration_only_halves_are_known(self, fused):
        folder, before, _ = fused
        updates = rs.open_updates(folder / "adapter", dict(before))
        assert f"{PATH}.mlp.gate_up_proj.gate" in updates
        assert f"{PATH}.self_attn.qkv_proj" in updates
        (note,) = updates.notes
        assert note.startswith("1 fused projections stay whole")
        with pytest.raises(SourceError, match="no weight for this module"):
            rs.open_updates({"x.self_attn.q_proj.lora_A.weight": torch.ones(2, WIDTH),
                             "x.self_attn.q_proj.lora_B.weight": torch.ones(16, 2)},
                            {"x.self_attn.qkv_proj.weight": torch.ones(32, WIDTH)}, alpha=1,
                            ).weight("x.self_attn.q_proj")  # fmt: skip

    def test_the_configuration_may_lie_where_the_adapter_says(self, fused):
        folder = fused[0]
        path = folder / "adapter" / "adapter_config.json"
        content = json.loads(path.read_text()) | {"base_model_name_or_path": str(folder / "base")}
        path.write_text(json.dumps(content))
        assert f"{PATH}.self_attn.qkv_proj.k" in rs.open_updates(folder / "adapter")
        path.write_text(json.dumps(content | {"base_model_name_or_path": "x" * 5000}))
        assert f"{PATH}.self_attn.qkv_proj" in rs.open_updates(folder / "adapter")

    def test_heads(self, fused):
        folder, before, delta = fused
        updates = rs.open_updates(folder / "adapter", folder / "base", split="heads")
        assert not updates.notes
        qkv, o = f"{PATH}.self_attn.qkv_proj", f"{PATH}.self_attn.o_proj"
        counts = {part: len(updates.select(kind=part)) for part in ("q", "k", "v", "o", "gate")}
        assert counts == {"q": 4, "k": 2, "v": 2, "o": 4, "gate": 1}
        rows = {"q": (0, 4), "k": (16, 2), "v": (24, 2)}
        for part, (first, heads) in rows.items():
            for head in range(heads):
                name = f"{qkv}.{part}[head {head}]"
                where = slice(first + head * SIZE, first + (head + 1) * SIZE)
                truth = delta[f"{qkv}.weight"][where]
                torch.testing.assert_close(
                    updates[name].dense().float(), truth, atol=1e-5, rtol=1e-5
                )
                torch.testing.assert_close(updates.weight(name), before[f"{qkv}.weight"][where])
        for head in range(HEADS):
            name, where = f"{o}[head {head}]", slice(head * SIZE, (head + 1) * SIZE)
            truth = delta[f"{o}.weight"][:, where]
            assert updates[name].shape == updates.site(name).shape == (WIDTH, SIZE)
            torch.testing.assert_close(updates[name].dense().float(), truth, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(updates.weight(name), before[f"{o}.weight"][:, where])
        assert all(isinstance(update, FactoredUpdate) for update in updates)

    @pytest.mark.parametrize("split", ["auto", "heads"])
    def test_saving_joins_what_was_split(self, fused, tmp_path, split):
        folder = fused[0]
        updates = rs.open_updates(folder / "adapter", folder / "base", split=split)
        updates.save(tmp_path / "copy")
        whole = rs.open_updates(folder / "adapter", split="none")
        copy = rs.open_updates(tmp_path / "copy", split="none")
        assert copy.names == whole.names
        for name, update in copy.items():
            torch.testing.assert_close(update.dense(), whole[name].dense())
        with pytest.raises(rs.errors.AdapterError, match="only low-rank"):
            updates.select(kind="q").save(tmp_path / "part")


class TestPairs:
    def pair(self, folder, rng):
        """Two GPT-2s in half precision, of which three quarters of the entries moved."""
        name = "transformer.h.0.attn.c_attn.weight"
        base = gaussian(WIDTH, 3 * WIDTH, rng=rng).half()
        tuned = base.clone()
        tuned[:, 12:] += 0.5
        for place, tensor in (("base", base), ("tuned", tuned)):
            written(folder / place, {"model_type": "gpt2", **GPT2})
            save_file({name: tensor}, folder / place / "model.safetensors")
        return base.double().T, tuned.double().T, folder

    def test_differences_of_slices(self, tmp_path, rng):
        base, tuned, folder = self.pair(tmp_path, rng)
        updates = rs.open_updates(folder / "tuned", folder / "base")
        updates = pickle.loads(pickle.dumps(updates))
        for part, rows in zip("qkv", torch.arange(3 * WIDTH).split(WIDTH), strict=True):
            name = f"transformer.h.0.attn.c_attn.{part}"
            assert isinstance(updates[name], DenseUpdate)
            assert torch.equal(updates[name].dense(), (tuned - base)[rows])
            assert torch.equal(updates.weight(name).double(), base[rows])
            assert updates.site(name).dtype == "float16"
        table = rs.rank(updates).table.set_index("kind")
        assert table.unchanged_fraction[["q", "k", "v"]].tolist() == [0.75, 0, 0]
        assert table.relative_norm.notna().all()

    def test_weights_themselves(self, tmp_path, rng):
        base, _, folder = self.pair(tmp_path, rng)
        weights = open_weights(folder / "base")
        joined = [weights[f"transformer.h.0.attn.c_attn.{part}"].dense() for part in "qkv"]
        assert torch.equal(torch.cat(joined), base)
        assert len(open_weights(folder / "base", split="none")) == 1
        assert len(rs.info(folder / "base", modules=True, split="heads").modules) == 12

    def test_heads_of_differences(self, tmp_path, rng):
        base, tuned, folder = self.pair(tmp_path, rng)
        updates = rs.open_updates(folder / "tuned", folder / "base", split="heads")
        assert len(updates) == 12
        name = "transformer.h.0.attn.c_attn.v[head 3]"
        assert torch.equal(updates[name].dense(), (tuned - base)[-SIZE:])
        assert torch.equal(updates.weight(name).double(), base[-SIZE:])


def stacks(rng, *, turned, hidden=8, inner=6):
    shapes = {"gate_up_proj": (3, 2 * inner, hidden), "down_proj": (3, hidden, inner)}
    tensors = {name: gaussian(*shape, rng=rng).float() for name, shape in shapes.items()}
    return {
        f"model.layers.1.mlp.experts.{name}": (t.mT if turned else t).contiguous()
        for name, t in tensors.items()
    }


STACK = "model.layers.1.mlp.experts.gate_up_proj"


class TestExperts:
    def opened(self, folder, rng, told, *, turned, inner=6, **options):
        """A pair of checkpoints, experts stacked, and ΔW of gate and up as (expert, out, in)."""
        base, tuned = (stacks(rng, turned=turned, inner=inner) for _ in range(2))
        for place, tensors in (("base", base), ("tuned", tuned)):
            written(folder / place, told)
            save_file(tensors, folder / place / "model.safetensors")
        delta = tuned[STACK].double() - base[STACK].double()
        updates = rs.open_updates(folder / "tuned", folder / "base", **options)
        return updates, delta.mT if turned else delta, base[STACK].mT if turned else base[STACK]

    @pytest.mark.parametrize("inner", [6, 4])  # 4: gate and up together are square
    @pytest.mark.parametrize("turned", [False, True])
    def test_halves(self, tmp_path, rng, turned, inner):
        told = {"model_type": "llama4_text" if turned else "qwen3_moe", "hidden_size": 8}
        updates, delta, weight = self.opened(tmp_path, rng, told, turned=turned, inner=inner)
        assert len(updates) == 9
        for expert in range(3):
            for part, rows in (("gate", slice(0, inner)), ("up", slice(inner, None))):
                name = f"{STACK}[{expert}].{part}"
                site = updates.site(name)
                assert (site.kind, site.layer, site.expert) == (part, 1, expert)
                assert torch.equal(updates[name].dense(), delta[expert, rows])
                assert torch.equal(updates.weight(name), weight[expert, rows])
        down = updates.site("model.layers.1.mlp.experts.down_proj[2]")
        assert (down.kind, down.expert, down.shape) == ("down", 2, (8, inner))

    def test_gpt_oss_takes_gate_and_up_in_turn(self, tmp_path, rng):
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

        told = {"model_type": "gpt_oss", "hidden_size": 8}
        updates, delta, _ = self.opened(tmp_path, rng, told, turned=True)
        for expert in range(3):
            fused = delta[expert].T  # (in, gate and up): of every input unit vector
            model = SimpleNamespace(limit=1e9, alpha=1.0)
            for part in ("gate", "up"):
                other = fused.clone()
                other[:, (0 if part == "up" else 1) :: 2] = 0
                whole = GptOssExperts._apply_gate(model, fused)
                mine = updates[f"{STACK}[{expert}].{part}"].dense().T
                gate = mine if part == "gate" else updates[f"{STACK}[{expert}].gate"].dense().T
                up = mine if part == "up" else updates[f"{STACK}[{expert}].up"].dense().T
                torch.testing.assert_close((up + 1) * gate * torch.sigmoid(gate), whole)

    def test_what_may_lie_in_turn_stays_whole(self, tmp_path, rng):
        updates, _, _ = self.opened(tmp_path, rng, {}, turned=True)
        assert f"{STACK}[0]" in updates
        assert any("3 fused projections stay whole" in note for note in updates.notes)
        updates, _, _ = self.opened(tmp_path, rng, {}, turned=False)
        assert f"{STACK}[0].gate" in updates

    def test_columns_of_the_tables(self, tmp_path, rng):
        told = {"model_type": "qwen3_moe", "hidden_size": 8}
        updates, _, _ = self.opened(tmp_path, rng, told, turned=False)
        results = [rs.rank(updates), rs.spectrum(updates), rs.similarity(updates, updates)]
        for result in results:
            columns = list(result.table.columns)
            assert columns.index("expert") == columns.index("kind") + 1
            assert str(result.table.expert.dtype) == "Int64"
            assert set(result.table.expert) == {0, 1, 2}
            assert "expert" in result.to_text()
        info = rs.info(tmp_path / "tuned", base=tmp_path / "base", modules=True)
        assert set(info.modules.expert) == {0, 1, 2}

    def test_no_experts_no_printed_column(self, tmp_path, rng):
        folder = write_peft(tmp_path, peft_tensors(["h.0.q_proj"], 2, rng), r=2)
        result = rs.rank(folder)
        assert result.table.expert.isna().all()
        assert "expert" not in result.to_text()
        assert json.loads(json.dumps(result.to_dict()))["rows"][0]["expert"] is None
        printed = rs.info(folder, modules=True).to_text().splitlines()
        assert "expert" not in next(line for line in printed if "module " in line).split()

    def test_split_experts_on_a_fused_base(self, rng):
        base = stacks(rng, turned=False)
        module = "model.layers.1.mlp.experts.2.up_proj"
        updates = rs.open_updates(peft_tensors([module], 2, rng, out=6, in_=8), base)
        assert torch.equal(updates.weight(module), base[STACK][2, 6:])
        assert (updates.site(module).expert, updates.site(module).layer) == (2, 1)

    @pytest.mark.parametrize("told", [{}, {"model_type": "qwen3_moe", "hidden_size": 8}])
    def test_fused_experts_on_a_split_base(self, tmp_path, rng, told):
        parts = {
            f"model.layers.1.mlp.experts.2.{part}_proj.weight": gaussian(6, 8, rng=rng).float()
            for part in ("gate", "up")
        }
        save_file(parts, written(tmp_path, told) / "model.safetensors")
        updates = rs.open_updates(
            peft_tensors([f"{STACK}[2]"], 2, rng, out=12, in_=8), tmp_path, alpha=1
        )
        assert len(updates) == 1 + bool(told)
        names = sorted(updates.names)  # gate before up
        joined = torch.cat([updates.weight(name) for name in names])
        assert torch.equal(joined, torch.cat(list(parts.values())))


BAD = {
    "heads that do not divide": LLAMA | {"num_attention_heads": 5},
    "heads of another width": LLAMA | {"hidden_size": 32},
    "no heads": {"hidden_size": WIDTH},
    "heads of a negative number": LLAMA | {"num_attention_heads": -4},
    "heads that are no number": LLAMA | {"num_attention_heads": "4", "n_head": [4]},
    "a huge number": LLAMA | {"num_attention_heads": 10**12},
}


class TestWhatIsNotKnown:
    @pytest.mark.parametrize("told", BAD.values(), ids=BAD)
    def test_a_configuration_that_does_not_fit(self, tmp_path, rng, told):
        folder = adapter(tmp_path, "h.0.attention.query_key_value", 48, rng)
        written(folder, {"model_type": "gpt_neox", **told})
        updates = rs.open_updates(folder)
        assert updates.names == ["h.0.attention.query_key_value"]
        (note,) = updates.notes
        assert "heads that config.json tells do not give 48 rows" in note

    def test_no_configuration(self, tmp_path, rng):
        folder = adapter(tmp_path, "h.0.attention.query_key_value", 48, rng)
        updates = rs.open_updates(folder)
        assert updates.names == ["h.0.attention.query_key_value"]
        assert "only a known model's config.json" in updates.notes[0]
        assert not rs.open_updates(folder, split="none").notes
        written(folder, {"model_type": "new_family", **LLAMA})
        assert rs.open_updates(folder).names == ["h.0.attention.query_key_value"]

    def test_one_side_that_knows_compares_with_one_that_does_not(self, tmp_path, rng):
        module = "h.0.attention.query_key_value"
        known, unknown = (adapter(tmp_path / name, module, 48, rng) for name in "ab")
        written(known, {"model_type": "gpt_neox", **LLAMA})
        assert len(rs.open_updates(known)) == 3
        result = rs.similarity(known, unknown)
        assert set(result.table.module) == {module}
        assert not result.unmatched_a + result.unmatched_b
        with pytest.raises(SourceError, match="no module in common"):
            rs.similarity(rs.open_updates(known).select(kind="q"), unknown)
        by_head = rs.open_updates(known, split="heads")
        assert len(rs.similarity(by_head, known).table) == 2 * 3
        assert len(rs.similarity(by_head, by_head).table) == 2 * 12

    def test_an_unusable_configuration(self, tmp_path, rng):
        folder = adapter(tmp_path, "h.0.attn.c_attn", 48, rng)
        (folder / "config.json").write_text("{")
        with pytest.raises(SourceError, match=r"config\.json cannot be used"):
            rs.open_updates(folder)
        assert rs.open_updates(folder, split="none").names == ["h.0.attn.c_attn"]

    def test_heads_without_their_number(self, tmp_path, rng):
        folder = adapter(tmp_path, "h.0.attn.c_attn", 48, rng)
        updates = rs.open_updates(folder, split="heads")
        assert len(updates) == 3
        assert any("no config.json" in note for note in updates.notes)
        written(folder, {"model_type": "gpt2", "n_embd": WIDTH, "n_head": 3})
        assert len(rs.open_updates(folder, split="heads")) == 3

    def test_another_tower_is_not_what_the_configuration_tells(self, tmp_path, rng):
        modules = ["visual.blocks.0.attn.qkv", "visual.blocks.0.attn.q_proj"]
        tensors = peft_tensors(modules[:1], 2, rng, out=48, in_=16)
        tensors |= peft_tensors(modules[1:], 2, rng, out=16, in_=16)
        folder = written(write_peft(tmp_path, tensors, r=2), {"model_type": "qwen2_vl", **LLAMA})
        updates = rs.open_updates(folder, split="heads")
        assert updates.names == [modules[1], *(f"{modules[0]}.{part}" for part in "kqv")]

    def test_an_unknown_way(self, rng):
        with pytest.raises(SourceError, match="cannot be split"):
            rs.open_updates(peft_tensors(["q"], 2, rng), split="all")


class TestMergedLinear:
    """Early PEFT leaves out a third of the rows, whatever these rows are."""

    def opened(self, folder, rng, module, told):
        a, b = gaussian(4, WIDTH, rng=rng), gaussian(2 * WIDTH, 2, 1, rng=rng)
        key = f"base_model.model.{module}"
        tensors = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        folder = write_peft(folder, tensors, r=2, lora_alpha=2, enable_lora=[True, False, True])
        if told:
            written(folder, told)
        whole = torch.zeros(3 * WIDTH, WIDTH, dtype=torch.float64)
        whole[:WIDTH], whole[2 * WIDTH :] = b[:WIDTH, :, 0] @ a[:2], b[WIDTH:, :, 0] @ a[2:]
        return rs.open_updates(folder), whole

    def test_thirds_that_are_q_k_and_v(self, tmp_path, rng):
        updates, whole = self.opened(tmp_path, rng, "h.0.attn.c_attn", None)
        for part, rows in zip("qkv", whole.split(WIDTH), strict=True):
            update = updates[f"h.0.attn.c_attn.{part}"]
            assert isinstance(update, FactoredUpdate)
            torch.testing.assert_close(update.dense(), rows)
            assert update.ceiling == updates.site(f"h.0.attn.c_attn.{part}").rank
        table = rs.rank(updates).table.set_index("kind")
        assert table.state[["q", "k", "v"]].tolist() == ["ok", "zero", "ok"]
        assert table.ceiling[["q", "k", "v"]].tolist() == [2, 0, 2]

    def test_thirds_that_are_some_heads(self, tmp_path, rng):
        told = {"model_type": "bloom", "n_head": HEADS, "hidden_size": WIDTH}
        module = "h.0.self_attention.query_key_value"
        updates, whole = self.opened(tmp_path, rng, module, told)
        view = whole.view(HEADS, 3, SIZE, WIDTH)
        for index, part in enumerate("qkv"):
            truth = view[:, index].reshape(-1, WIDTH)
            torch.testing.assert_close(updates[f"{module}.{part}"].dense(), truth)
            assert truth.any()
        assert any("of some heads nothing is updated" in note for note in updates.notes)

    def test_published_bloom_stays_whole(self, real):
        updates = rs.open_updates(real / "bloom" / "peft-merged-linear")
        assert len(updates) == 24
        assert any("24 fused projections stay whole" in note for note in updates.notes)

    def test_published_bloom_by_head(self, real, tmp_path):
        source = real / "bloom" / "peft-merged-linear"
        for path in source.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        written(tmp_path, {"model_type": "bloom", "n_head": 16, "hidden_size": 1024})
        whole, updates = rs.open_updates(source), rs.open_updates(tmp_path)
        module = whole.names[5]
        view = whole[module].dense().view(16, 3, 64, 1024)
        torch.testing.assert_close(updates[f"{module}.k"].dense(), view[:, 1].reshape(1024, 1024))
        # Rows 1024 to 2047 got nothing: heads 6 to 9 in full, of head 5 its v and two thirds of k.
        assert not view[6:10].any()
        assert view[:5].flatten(1).any(1).all()


class TestCommandLine:
    @pytest.fixture
    def folder(self, tmp_path, rng):
        folder = adapter(tmp_path, "h.0.attn.c_attn", 48, rng)
        return written(folder, {"model_type": "gpt2", **GPT2})

    @pytest.mark.parametrize("command", ["rank", "spectrum", "similarity", "info"])
    @pytest.mark.parametrize(("split", "count"), [("auto", 3), ("none", 1), ("heads", 12)])
    def test_split(self, folder, command, split, count):
        sources = [str(folder)] * (2 if command == "similarity" else 1)
        flags = ["--modules"] if command == "info" else []
        result = CliRunner().invoke(cli, [command, *sources, *flags, "--json", "--split", split])
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        rows = content["modules" if command == "info" else "rows"]
        assert len({row["module"] for row in rows}) == count
        assert {"expert"} <= set(rows[0])
        said = content["provenance"]["options"]["split"]
        assert said == ([split] * 2 if command == "similarity" else split)

    def test_slices_are_selected_by_kind(self, folder):
        arguments = ["rank", str(folder), "--kind", "q,v", "--json"]
        rows = json.loads(CliRunner().invoke(cli, arguments).stdout)["rows"]
        assert [row["module"] for row in rows] == ["h.0.attn.c_attn.q", "h.0.attn.c_attn.v"]

    @pytest.mark.parametrize("command", ["rank", "spectrum", "similarity", "info"])
    def test_help_and_usage(self, folder, command):
        assert "--split" in CliRunner().invoke(cli, [command, "--help"]).stdout
        sources = [str(folder)] * (2 if command == "similarity" else 1)
        assert CliRunner().invoke(cli, [command, *sources, "--split", "all"]).exit_code == 2


def test_experts_by_mixtrals_old_names_on_new_stacks(rng):
    path, stack = "model.layers.0.block_sparse_moe.experts", "model.layers.0.mlp.experts"
    base = {
        f"{stack}.gate_up_proj": torch.randn(3, 10, 8, generator=rng),
        f"{stack}.down_proj": torch.randn(3, 8, 5, generator=rng),
    }
    shapes = {"w1": (5, 8), "w3": (5, 8), "w2": (8, 5)}
    adapter = {}
    for name, (out, in_) in shapes.items():
        adapter[f"{path}.1.{name}.lora_A.weight"] = torch.randn(2, in_, generator=rng)
        adapter[f"{path}.1.{name}.lora_B.weight"] = torch.randn(out, 2, generator=rng)
    updates = rs.open_updates(adapter, base, alpha=2)
    gate, up = base[f"{stack}.gate_up_proj"][1].chunk(2)
    wanted = {"w1": gate, "w3": up, "w2": base[f"{stack}.down_proj"][1]}
    for name, weight in wanted.items():
        assert torch.equal(updates.weight(f"{path}.1.{name}"), weight)


def test_fused_and_split_projections_are_compared(rng):
    a, b = torch.randn(2, 8, generator=rng), torch.randn(20, 2, generator=rng)
    path = "model.layers.0.mlp"
    fused = {f"{path}.gate_up_proj.lora_A.weight": a, f"{path}.gate_up_proj.lora_B.weight": b}
    split = {}
    for name, rows in zip(("gate_proj", "up_proj"), b.chunk(2), strict=True):
        split |= {f"{path}.{name}.lora_A.weight": a, f"{path}.{name}.lora_B.weight": rows}
    result = rs.similarity(fused, split, alpha=2)
    assert result.table.phi_full.tolist() == pytest.approx([1] * 4)
    assert (result.unmatched_a, result.unmatched_b) == ((), ())
    assert any("one side has fused" in note for note in result.notes)
