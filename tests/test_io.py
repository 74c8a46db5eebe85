"""Sources: containers, pairs, numbered files, memory, names, and what goes wrong with them."""

import pickle

import pytest
import torch
from oracles import gaussian, peft_tensors, with_spectrum, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError, RankscopeError, SourceError, UpdateError
from rankscope.io.names import KINDS, kind_of, layer_of, natural_key
from rankscope.io.sources import open_weights
from rankscope.updates import DenseUpdate

NAMES = {
    "model.layers.3.self_attn.q_proj": (3, "q"),
    "model.layers.3.self_attn.k_proj": (3, "k"),
    "model.layers.31.self_attn.v_proj": (31, "v"),
    "model.layers.3.self_attn.o_proj": (3, "o"),
    "model.layers.3.mlp.gate_proj": (3, "gate"),
    "model.layers.3.mlp.up_proj": (3, "up"),
    "model.layers.3.mlp.down_proj": (3, "down"),
    "model.embed_tokens": (None, "embed"),
    "lm_head": (None, "head"),
    "roberta.encoder.layer.9.attention.self.query": (9, "q"),
    "roberta.encoder.layer.9.attention.self.value": (9, "v"),
    "roberta.encoder.layer.9.attention.output.dense": (9, "o"),
    "roberta.encoder.layer.9.intermediate.dense": (9, "up"),
    "roberta.encoder.layer.9.output.dense": (9, "down"),
    "roberta.embeddings.word_embeddings": (None, "embed"),
    "transformer.h.0.attn.c_attn": (0, "other"),
    "transformer.h.0.attn.c_proj": (0, "o"),
    "transformer.h.0.mlp.c_fc": (0, "up"),
    "transformer.h.0.mlp.c_proj": (0, "down"),
    "transformer.wte": (None, "embed"),
    "blocks.2.attn.q": (2, "q"),
    "blocks.2.mlp.down": (2, "down"),
    "embed": (None, "embed"),
    "head": (None, "head"),
    "text_model.encoder.layers.5.self_attn.out_proj": (5, "o"),
    "text_model.encoder.layers.5.mlp.fc1": (5, "up"),
    "distilbert.transformer.layer.1.attention.q_lin": (1, "q"),
    "classifier.out_proj": (None, "head"),
    "transformer.h.4.self_attention.query_key_value": (4, "other"),
    "transformer.h.4.mlp.dense_4h_to_h": (4, "down"),
    "000": (None, "other"),
    "encoder.block.0.layer.1.DenseReluDense.wo": (0, "down"),
    "encoder.block.0.layer.1.DenseReluDense.wi_0": (0, "gate"),
    "encoder.block.0.layer.1.DenseReluDense.wi_1": (0, "up"),
    "encoder.block.0.layer.0.SelfAttention.o": (0, "o"),
    "bert.encoder.layer.0.crossattention.output.dense": (0, "o"),
    "decoder.layers.0.encoder_attn.out_proj": (0, "o"),
    "transformer.h.0.crossattention.c_proj": (0, "o"),
    "layers.0.attention.wo": (0, "o"),
    "blk.3.attn_q": (3, "q"),
    "blk.3.attn_output": (3, "o"),
    "blk.3.ffn_down": (3, "down"),
    "token_embd": (None, "embed"),
    "model.layers.0.block_sparse_moe.gate": (0, "other"),
    "model.layers.0.mlp.gate": (0, "other"),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_layer_and_kind(name, expected):
    assert (layer_of(name), kind_of(name)) == expected
    assert kind_of(name) in KINDS


def test_natural_order(rng):
    modules = ["h.10.q", "h.2.q", "h.2.k", "head"]
    updates = rs.open_updates(peft_tensors(modules, 2, rng))
    assert updates.names == ["h.2.k", "h.2.q", "h.10.q", "head"]
    assert sorted(modules, key=natural_key) == updates.names


@pytest.fixture
def updates(rng):
    modules = [f"layers.{n}.attn.{kind}_proj" for n in range(12) for kind in "qv"]
    return rs.open_updates(peft_tensors(modules, 3, rng))


def test_select_and_find(updates):
    assert len(updates.select(kind="q")) == 12
    assert len(updates.select(kind={"q", "v"}, layer=range(8, 16))) == 8
    assert updates.select(layer=3, name="*q_proj").names == ["layers.3.attn.q_proj"]
    assert updates.select(names=["layers.0.attn.v_proj"]).names == ["layers.0.attn.v_proj"]
    assert len(updates.select(kind="k")) == 0
    assert updates.find(layer=2, kind="q").shape == (12, 8)
    with pytest.raises(SourceError, match="not exactly one"):
        updates.find(kind="q")
    with pytest.raises(SourceError, match="no such module"):
        updates["layers.99.attn.q_proj"]


def test_iteration_is_in_order_and_yields_updates(updates):
    assert len(list(updates)) == len(updates) == 24
    names = [name for name, _ in updates.items()]
    assert names == updates.names
    assert names[:3] == ["layers.0.attn.q_proj", "layers.0.attn.v_proj", "layers.1.attn.q_proj"]
    assert "layers.0.attn.q_proj" in updates
    assert "24 peft updates" in repr(updates)


def test_sets_of_files_are_lazy_and_picklable(tmp_path, rng):
    folder = write_peft(tmp_path, peft_tensors(["a.0.q"], 4, rng))
    updates = rs.open_updates(folder)
    expected = updates["a.0.q"].dense()
    copy = pickle.loads(pickle.dumps(updates))
    torch.testing.assert_close(copy["a.0.q"].dense(), expected)
    assert len(pickle.dumps(updates)) < 4000  # no weights travel


class TestPairs:
    def pair(self, rng):
        base = {
            "h.0.q.weight": gaussian(6, 4, rng=rng).float(),
            "h.1.q.weight": gaussian(6, 4, rng=rng).float(),
            "norm.weight": torch.ones(4),
            "mask": torch.ones(4, 4, dtype=torch.bool),
        }
        tuned = {name: t + 0.5 if t.is_floating_point() else t for name, t in base.items()}
        return tuned, base

    def test_difference(self, tmp_path, rng):
        tuned, base = self.pair(rng)
        save_file(tuned, tmp_path / "tuned.safetensors")
        save_file(base, tmp_path / "base.safetensors")
        updates = rs.open_updates(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors")
        assert updates.names == ["h.0.q", "h.1.q"]
        assert isinstance(updates["h.0.q"], DenseUpdate)
        expected = tuned["h.0.q.weight"].double() - base["h.0.q.weight"].double()
        assert torch.equal(updates["h.0.q"].dense(), expected)
        assert torch.equal(updates.weight("h.0.q"), base["h.0.q.weight"])
        assert set(updates.unread) == {"norm.weight", "mask"}
        assert [i["path"] for i in updates.inputs] == [
            str(tmp_path / "tuned.safetensors"),
            str(tmp_path / "base.safetensors"),
        ]

    def test_left_over_tensors_are_named(self, rng):
        tuned, base = self.pair(rng)
        tuned["new.weight"] = torch.ones(2, 2)
        base["gone.weight"] = torch.ones(2, 2)
        tuned["h.1.q.weight"] = torch.ones(7, 4)
        updates = rs.open_updates(tuned, base)
        assert updates.names == ["h.0.q"]
        text = " ".join(updates.notes)
        assert "only in the tuned checkpoint: new.weight" in text
        assert "only in the base: gone.weight" in text
        assert "of another shape than in the base: h.1.q.weight" in text

    def test_gpt2_weights_are_turned_to_out_in(self, rng):
        base = {
            "h.0.attn.c_attn.weight": gaussian(4, 12, rng=rng),
            "h.0.attn.c_proj.weight": gaussian(4, 4, rng=rng),
            "h.0.attn.other.weight": gaussian(4, 4, rng=rng),
        }
        tuned = {name: t * 2 for name, t in base.items()}
        updates = rs.open_updates(tuned, base, split="none")
        assert updates["h.0.attn.c_attn"].shape == (12, 4)
        for module, turned in (("c_attn", True), ("c_proj", True), ("other", False)):
            stored = base[f"h.0.attn.{module}.weight"]
            truth = stored.T if turned else stored
            assert torch.equal(updates[f"h.0.attn.{module}"].dense(), truth)
            assert torch.equal(updates.weight(f"h.0.attn.{module}"), truth)

    def test_modules(self):
        torch.manual_seed(0)
        model, base = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        updates = rs.open_updates(model, base=base)
        expected = (model.weight.double() - base.weight.double()).detach()
        assert torch.equal(next(iter(updates)).dense(), expected)

    def test_checkpoint_without_base(self, rng):
        tuned, _ = self.pair(rng)
        with pytest.raises(SourceError, match="no update without its base"):
            rs.open_updates(tuned)
        weights = open_weights(tuned)
        assert torch.equal(weights["h.0.q"].dense(), tuned["h.0.q.weight"].double())

    def test_nothing_in_common(self):
        with pytest.raises(SourceError, match="no matrix in common"):
            rs.open_updates({"a": torch.ones(2, 2)}, {"b": torch.ones(2, 2)})


class TestNumbered:
    def tensors(self, rng, rank=3):
        return {
            "w_a_000": gaussian(rank, 8, rng=rng),
            "w_b_000": gaussian(10, rank, rng=rng),
            "w_a_001": gaussian(rank, 8, rng=rng),
            "w_b_001": gaussian(10, rank, rng=rng),
        }

    def test_product_and_what_is_unknown(self, rng):
        tensors = self.tensors(rng)
        updates = rs.open_updates(tensors)
        assert updates.format == "w_a/w_b"
        assert updates.names == ["000", "001"]
        site = updates.sites[0]
        assert (site.layer, site.kind, site.scale, site.rank) == (None, "other", None, 3)
        torch.testing.assert_close(updates["000"].dense(), tensors["w_b_000"] @ tensors["w_a_000"])
        assert any("scale" in note for note in updates.notes)
        assert rs.open_updates(tensors, alpha=6).sites[0].scale == 2

    def test_swapped_letters_are_found_by_shape(self, rng):
        tensors = self.tensors(rng)
        swapped = {n.translate(str.maketrans("ab", "ba")): t for n, t in tensors.items()}
        torch.testing.assert_close(
            rs.open_updates(swapped)["000"].dense(), rs.open_updates(tensors)["000"].dense()
        )

    @pytest.mark.parametrize(
        "tensors",
        [
            {"w_a_000": torch.ones(3, 8)},
            {"w_b_000": torch.ones(8, 3)},
            {"w_a_000": torch.ones(8, 3), "w_b_000": torch.ones(8, 3)},
            {"w_a_000": torch.ones(8), "w_b_000": torch.ones(8, 3)},
        ],
    )
    def test_incomplete(self, tensors):
        with pytest.raises(AdapterError, match="incomplete"):
            rs.open_updates(tensors)


class TestWeight:
    @pytest.mark.parametrize("prefix", ["", "model.", "outer.model."])
    def test_base_is_matched_by_name(self, rng, prefix):
        base = {f"{prefix}h.{n}.q.weight": gaussian(12, 8, rng=rng) for n in range(3)}
        updates = rs.open_updates(peft_tensors(["h.0.q", "h.1.q"], 2, rng), base)
        assert torch.equal(updates.weight("h.1.q"), base[f"{prefix}h.1.q.weight"])

    def test_stored_transposed(self, rng):
        base = {"h.0.q.weight": gaussian(8, 12, rng=rng)}
        updates = rs.open_updates(peft_tensors(["h.0.q"], 2, rng), base)
        assert torch.equal(updates.weight("h.0.q"), base["h.0.q.weight"].T)

    def test_relative_norm_of_an_adapter(self, rng):
        base = {"h.0.q.weight": with_spectrum([3.0, 4.0], 12, 8, rng)}
        updates = rs.open_updates(peft_tensors(["h.0.q"], 2, rng), base, alpha=4)
        row = rs.rank(updates).table.iloc[0]
        assert row.relative_norm == pytest.approx(updates["h.0.q"].norm() / 5)

    def test_what_cannot_be_found(self, rng):
        adapter = peft_tensors(["h.0.q"], 2, rng)
        with pytest.raises(SourceError, match="no base weights"):
            rs.open_updates(adapter).weight("h.0.q")
        for base, message in (
            ({"h.1.q.weight": torch.ones(12, 8)}, "no weight for this module"),
            ({"q.weight": torch.ones(12, 8)}, "no weight for this module"),
            ({"h.0.q.weight": torch.ones(5, 8)}, "another shape"),
        ):
            with pytest.raises(SourceError, match=message):
                rs.open_updates(adapter, base).weight("h.0.q")


def damaged(path, tensors, how):
    save_file(tensors, path)
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "header cut":
        path.write_bytes(content[:20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("these are not the weights you are looking for\n")
    elif how == "huge header":
        path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    elif how == "trailing bytes":
        path.write_bytes(content + b"more")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(
    "how", ["truncated", "header cut", "empty", "text", "huge header", "trailing bytes"]
)
def test_damaged_files(tmp_path, rng, how, suffix):
    path = tmp_path / f"adapter_model{suffix}"
    damaged(path, peft_tensors(["a.0.q"], 2, rng), how)
    with pytest.raises(SourceError) as caught:
        rs.open_updates(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 5


def test_damaged_torch_archive(tmp_path):
    path = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SourceError, match="not a readable torch file"):
        rs.open_updates(path)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_pickle_is_executed(tmp_path, capsys, legacy):
    path = tmp_path / "adapter_model.bin"
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SourceError, match="not a readable torch file"):
        rs.open_updates(path)
    assert "executed" not in capsys.readouterr().out


def test_torch_file_without_tensors(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"step": 3}, path)
    with pytest.raises(SourceError, match="no tensors found"):
        rs.open_updates(path)


def test_missing_file_and_unusable_objects(tmp_path):
    with pytest.raises(SourceError, match="cannot open the file"):
        rs.open_updates(tmp_path / "none.safetensors")
    with pytest.raises(SourceError, match="not understood"):
        rs.open_updates(3)
    with pytest.raises(SourceError, match="no address on the hub"):
        rs.open_updates("hf://name")


def test_permission_denied(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.touch()

    # As root permission bits stop nothing; the operating system's answer is played.
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(SourceError, match="cannot open") as caught:
        rs.open_updates(path)
    assert caught.value.got == "permission denied"


class TestFolders:
    def test_several_adapters_are_listed(self, tmp_path, rng):
        for n in (2, 10):
            save_file(peft_tensors(["a.0.q"], 2, rng), tmp_path / f"lora_{n}.safetensors")
        with pytest.raises(SourceError, match="no single") as caught:
            rs.open_updates(tmp_path)
        assert "lora_2.safetensors, lora_10.safetensors" in caught.value.got

    def test_no_adapter(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(SourceError, match="no single"):
            rs.open_updates(tmp_path)

    def test_adapters_one_level_down_are_suggested(self, tmp_path, rng):
        write_peft(tmp_path / "checkpoint-23", peft_tensors(["a.0.q"], 4, rng))
        with pytest.raises(SourceError) as caught:
            rs.open_updates(tmp_path)
        assert "checkpoint-23" in caught.value.got

    def test_what_trainers_leave_is_ignored_and_safetensors_preferred(self, tmp_path, rng):
        tensors = peft_tensors(["a.0.q"], 4, rng)
        write_peft(tmp_path, tensors)
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "adapter_model.bin"):
            (tmp_path / name).write_bytes(b"not opened")
        assert len(rs.open_updates(tmp_path)) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_update_does_not_hide_the_others(rng, bad):
    tensors = peft_tensors(["a.0.q", "a.1.q"], 4, rng)
    tensors["base_model.model.a.0.q.lora_B.weight"][3, 1] = bad
    updates = rs.open_updates(tensors)
    with pytest.raises(UpdateError, match="not finite"):
        updates["a.0.q"]
    result = rs.rank(updates)
    assert result.table.module.tolist() == ["a.1.q"]
    assert result.failures[0]["module"] == "a.0.q"
    assert "1 NaN or infinite of 48" in result.failures[0]["got"]
    with pytest.raises(RankscopeError):
        rs.rank(updates.select(layer=0))


def test_half_precision_files(tmp_path, rng):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        tensors = peft_tensors(["a.0.q"], 4, rng, dtype=dtype)
        folder = write_peft(tmp_path / str(dtype), tensors)
        updates = rs.open_updates(folder)
        a, b = (tensors[f"base_model.model.a.0.q.lora_{x}.weight"].double() for x in "AB")
        torch.testing.assert_close(updates["a.0.q"].dense(), 2 * b @ a)
        assert updates.sites[0].dtype == str(dtype).removeprefix("torch.")


def test_two_tensors_of_one_module_are_refused():
    base = {"x": torch.zeros(2, 2), "x.weight": torch.zeros(2, 2)}
    with pytest.raises(SourceError, match="same name"):
        rs.open_updates({name: tensor + 1 for name, tensor in base.items()}, base)


def test_one_tower_is_not_the_whole_model(rng):
    base = {"layers.0.q.weight": torch.ones(12, 8)}
    adapter = peft_tensors(["vision_model.layers.0.q"], 2, rng)
    with pytest.raises(SourceError, match="no weight for this module"):
        rs.open_updates(adapter, base).weight("vision_model.layers.0.q")
    adapter = peft_tensors(["bert.layers.0.q"], 2, rng)
    assert rs.open_updates(adapter, base).weight("bert.layers.0.q").shape == (12, 8)


def test_orientation_may_be_told_by_the_base_alone(rng):
    base = {
        "h.0.attn.c_attn.weight": gaussian(8, 24, rng=rng),
        "h.0.attn.c_proj.weight": gaussian(8, 8, rng=rng),
    }
    change = gaussian(8, 8, rng=rng)
    tuned = {"h.0.attn.c_proj.weight": base["h.0.attn.c_proj.weight"] + change}
    torch.testing.assert_close(rs.open_updates(tuned, base)["h.0.attn.c_proj"].dense(), change.T)


def test_stored_dtype_of_a_pair_is_the_coarser_one(rng):
    plain, rounded = gaussian(8, 8, rng=rng).float(), gaussian(8, 8, rng=rng).bfloat16()
    for tuned, base in ((plain, rounded), (rounded, plain)):
        site = rs.open_updates({"w.weight": tuned}, {"w.weight": base}).sites[0]
        assert site.dtype == "bfloat16"


def test_provenance_tells_adapters_and_configurations_apart(tmp_path, rng):
    one = write_peft(tmp_path / "one", peft_tensors(["a.0.q"], 4, rng))
    two = write_peft(tmp_path / "two", peft_tensors(["a.0.q"], 4, rng), lora_alpha=16)
    first, second = (rs.open_updates(folder).inputs for folder in (one, two))
    assert first[0]["sha256"] == second[0]["sha256"]  # the headers are alike
    assert first[0]["content_sha256"] != second[0]["content_sha256"]
    assert first[1]["path"].endswith("adapter_config.json")
    assert first[1]["sha256"] != second[1]["sha256"]


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_safetensors_header_of_any_length_is_one(tmp_path, length):
    # Its low bytes may look like the first ones of a pickle or a zip.
    path = tmp_path / "x.safetensors"
    save_file({"w_a_000": torch.ones(2, 3), "w_b_000": torch.ones(3, 2)}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip().ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + content[8 + size :])
    assert len(rs.open_updates(path)) == 1
