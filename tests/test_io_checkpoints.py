"""Full checkpoints in every container and shape that people keep them in."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from oracles import gaussian, peft_tensors
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import SourceError
from rankscope.io.containers.lens import clean_names
from rankscope.io.sources import open_source, open_weights

MODULES = [f"model.layers.{n}.self_attn.{kind}_proj" for n in range(3) for kind in "qv"]


def weights(rng, modules=MODULES):
    tensors = {f"{module}.weight": gaussian(6, 4, rng=rng).float() for module in modules}
    return tensors | {"model.norm.weight": gaussian(4, rng=rng).float()}


def in_shards(tensors, count):
    names = list(tensors)
    return [{name: tensors[name] for name in names[n::count]} for n in range(count)]


def write_sharded(folder, tensors, *, suffix=".safetensors", stem="model", count=3):
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for n, part in enumerate(in_shards(tensors, count), 1):
        name = f"{stem}-{n:05}-of-{count:05}{suffix}"
        save = save_file if suffix == ".safetensors" else torch.save
        save(part, folder / name)
        index |= dict.fromkeys(part, name)
    path = folder / f"{stem}{suffix}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return path


def nested(tensors):
    renamed = {
        f"module.{name.replace('layers.', 'layers._orig_mod.')}": t for name, t in tensors.items()
    }
    optimizer = {"state": {0: {"exp_avg": torch.ones(6, 4)}}}
    return {"epoch": 3, "loss": torch.tensor(0.5), "state_dict": renamed, "optimizer": optimizer}


def write(folder, tensors, how):
    """Write a checkpoint and return what names it."""
    folder.mkdir()
    if how == "single":
        save_file(tensors, folder / "model.safetensors")
    elif how == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif how == "legacy bin":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif how == "sharded":
        write_sharded(folder, tensors)
    elif how == "sharded bin":
        write_sharded(folder, tensors, suffix=".bin", stem="pytorch_model")
    elif how == "index":
        return write_sharded(folder, tensors)
    elif how == "nested":
        torch.save(nested(tensors), folder / "last.ckpt")
    elif how == "wrapped safetensors":
        save_file(nested(tensors)["state_dict"], folder / "model.safetensors")
    elif how == "npz":
        np.savez(folder / "weights.npz", **{n: t.numpy() for n, t in tensors.items()})
    elif how == "packed npz":
        np.savez_compressed(folder / "weights.npz", **{n: t.numpy() for n, t in tensors.items()})
    elif how == "policy":
        torch.save(tensors, folder / "policy.pth")
        torch.save({"state": {}}, folder / "policy.optimizer.pth")
        with zipfile.ZipFile(folder / "best.zip", "w") as archive:
            archive.writestr("data", "{}")
            archive.write(folder / "policy.optimizer.pth", "policy.optimizer.pth")
            archive.write(folder / "policy.pth", "policy.pth")
        return folder / "best.zip"
    return folder


CONTAINERS = [
    "single", "bin", "legacy bin", "sharded", "sharded bin", "index", "nested",
    "wrapped safetensors", "npz", "packed npz", "policy",
]  # fmt: skip


@pytest.mark.parametrize("how", CONTAINERS)
def test_every_container_gives_the_same_difference(tmp_path, rng, how):
    tuned, base = weights(rng), weights(rng)
    source = write(tmp_path / "tuned", tuned, how)
    updates = rs.open_updates(source, write(tmp_path / "base", base, "sharded"))
    updates = pickle.loads(pickle.dumps(updates))
    assert updates.names == MODULES
    assert updates.unread == ("model.norm.weight",)
    assert updates.notes == ()
    for module, update in updates.items():
        name = f"{module}.weight"
        assert torch.equal(update.dense(), tuned[name].double() - base[name].double())
        assert torch.equal(updates.weight(module), base[name])


@pytest.mark.parametrize("how", CONTAINERS)
def test_provenance_names_every_file(tmp_path, rng, how):
    updates = open_weights(write(tmp_path / "x", weights(rng), how))
    assert len(updates.inputs) == (4 if how in ("sharded", "sharded bin", "index") else 1)
    assert len({record["path"] for record in updates.inputs}) == len(updates.inputs)
    for record in updates.inputs:
        assert len(record["sha256"]) == 64
        assert record["bytes"] > 0


class TestFolders:
    def test_files_beside_an_index_are_ignored(self, tmp_path, rng):
        tensors = weights(rng)
        write_sharded(tmp_path, tensors)
        save_file({"other": torch.ones(2, 2)}, tmp_path / "consolidated.safetensors")
        (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
        assert set(open_source(tmp_path).store.tensors) == set(tensors)

    def test_usual_names_win(self, tmp_path, rng):
        save_file(peft_tensors(["a.0.q"], 2, rng), tmp_path / "adapter_model.safetensors")
        save_file(weights(rng), tmp_path / "model.safetensors")
        torch.save(weights(rng), tmp_path / "pytorch_model.bin")
        for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "random_states_0.pt"):
            (tmp_path / name).write_bytes(b"not opened")
        assert rs.open_updates(tmp_path).format == "peft"
        (tmp_path / "adapter_model.safetensors").unlink()
        assert open_source(tmp_path).label.endswith("model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        assert open_source(tmp_path).label.endswith("pytorch_model.bin")

    def test_snapshots_of_the_hub_are_links(self, tmp_path, rng):
        repository = tmp_path / "models--org--name"
        snapshot = repository / "snapshots" / "abc"
        path = write_sharded(repository / "blobs", weights(rng))
        snapshot.mkdir(parents=True)
        for file in path.parent.iterdir():
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
        assert open_weights(snapshot).names == MODULES
        assert open_weights(snapshot / path.name).names == MODULES

    def test_a_linked_folder_and_a_named_link_are_followed(self, tmp_path, rng):
        write(tmp_path / "x", weights(rng), "single")
        (tmp_path / "folder").symlink_to(tmp_path / "x")
        (tmp_path / "w.safetensors").symlink_to(tmp_path / "x" / "model.safetensors")
        assert open_weights(tmp_path / "folder").names == MODULES
        assert open_weights(tmp_path / "w.safetensors").names == MODULES


class TestNesting:
    @pytest.mark.parametrize(
        "content",
        [
            lambda t: {"model_state_dict": t, "optimizer_state_dict": {"state": {}}},
            lambda t: {"model": {"state_dict": t}, "step": 1},
            lambda t: {"params_ema": t},
            lambda t: {"student": t, "iteration": torch.tensor(3)},
            lambda t: {f"module.module.{name}": x for name, x in t.items()},
            lambda t: {f"_fsdp_wrapped_module.{name}": x for name, x in t.items()},
        ],
    )
    def test_the_model_is_found(self, tmp_path, rng, content):
        torch.save(content(weights(rng)), tmp_path / "x.pt")
        assert open_weights(tmp_path / "x.pt").names == MODULES

    @pytest.mark.parametrize(
        ("content", "listed"),
        [
            (
                {"student": {"a": torch.ones(2, 2)}, "teacher": {"a": torch.ones(2, 2)}},
                "student, teacher",
            ),
            (
                {"params": {"a": torch.ones(2, 2)}, "params_ema": {"a": torch.ones(2, 2)}},
                "params_ema",
            ),
            ({"b": torch.ones(2, 2), "model": {"a": torch.ones(2, 2)}}, "model, b"),
        ],
    )
    def test_several_models_are_listed(self, tmp_path, content, listed):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(SourceError, match="several models") as caught:
            open_source(tmp_path / "x.pt")
        assert listed in caught.value.got

    @pytest.mark.parametrize(
        ("content", "nest"),
        [
            (lambda t, o: {"model": o, "ema": t}, "ema"),
            (lambda t, o: {"model": o, "model_ema": t}, "model_ema"),
            (lambda t, o: {"state_dict": o, "best": {"state_dict": t}}, "best"),
            (lambda t, o: {"state_dict": {"student": o, "teacher": t}, "step": 1}, "teacher"),
            (lambda t, o: {"student": o, "teacher": {"model": o, "ema": t}}, "teacher::ema"),
            (lambda t, o: {"model": t}, "model"),
            (lambda t, o: {"extra": torch.ones(2, 2), "model": t}, "model"),
        ],
    )
    def test_one_of_several_is_named(self, tmp_path, rng, content, nest):
        tensors, others = weights(rng), weights(rng)
        torch.save(content(tensors, others), tmp_path / "x.pt")
        store = pickle.loads(pickle.dumps(open_source(f"{tmp_path / 'x.pt'}::{nest}").store))
        assert list(store.tensors) == list(tensors)
        assert all(torch.equal(store.read(name), tensors[name]) for name in tensors)
        assert store.label.endswith(f"x.pt::{nest}")
        (record,) = store.files
        assert (record["path"], record["nest"]) == (str(tmp_path / "x.pt"), nest)

    def test_the_advice_works(self, tmp_path, rng):
        content = {
            "student": weights(rng),
            "teacher": {"model": weights(rng), "ema": weights(rng)},
        }
        torch.save(content, tmp_path / "x.pt")
        place = str(tmp_path / "x.pt::teacher")
        with pytest.raises(SourceError, match="several models") as caught:
            open_source(place)
        assert open_source(caught.value.fix.split()[-1]).label == f"{place}::model"
        result = rs.rank(f"{place}::ema", base=f"{place}::model")
        assert len(result.table) == len(MODULES)
        nests = [record["nest"] for record in result.provenance["inputs"]["source"]]
        assert nests == ["teacher::ema", "teacher::model"]

    @pytest.mark.parametrize("nest", ["", "teacher", "optimizer", "student::ema", "\x1b[2J"])
    def test_keys_that_are_not_there(self, tmp_path, rng, nest):
        content = {"student": weights(rng), "ema": weights(rng), "optimizer": {"lr": 0.1}}
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(SourceError, match="no model of this name") as caught:
            open_source(f"{tmp_path / 'x.pt'}::{nest}")
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize("place", ["a::b", "x.pt::" + "k" * 5000, "\0::b", "hf://org::x"])
    def test_places_that_are_none(self, tmp_path, place):
        with pytest.raises(SourceError):
            open_source(str(tmp_path / place) if "hf" not in place else place)

    def test_files_of_one_model_and_names_with_colons(self, tmp_path, rng):
        save_file(weights(rng), tmp_path / "a::b.safetensors")
        assert open_weights(tmp_path / "a::b.safetensors").names == MODULES
        save_file(weights(rng), tmp_path / "a.safetensors")
        with pytest.raises(SourceError, match="holds one model"):
            open_source(f"{tmp_path / 'a.safetensors'}::ema")

    @pytest.mark.parametrize(
        "content", [{"optimizer": {"a": torch.ones(2)}}, [torch.ones(2)], {"model": {"step": 1}}]
    )
    def test_no_model(self, tmp_path, content):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(SourceError, match="no tensors found"):
            open_source(tmp_path / "x.pt")

    def test_names_that_would_collide_stay(self):
        names = ["module.a", "module._orig_mod.a"]
        assert clean_names(names) == dict(zip(names, names, strict=True))
        assert list(clean_names(["module.a", "b"])) == ["module.a", "b"]

    def test_compiled_modules_in_memory(self):
        model = torch.nn.Linear(3, 2, bias=False)
        state = {f"_orig_mod.h.0.{name}": t for name, t in model.state_dict().items()}
        assert open_weights(state).names == ["h.0"]


class TestArrays:
    def test_dtypes_and_orders(self, tmp_path):
        array = np.arange(6.0).reshape(2, 3)
        np.savez(
            tmp_path / "x.npz",
            plain=array,
            fortran=np.asfortranarray(array),
            swapped=array.astype(">f4"),
            scalar=np.float32(2),
            words=np.array(["a", "b"]),
        )
        store = open_source(tmp_path / "x.npz").store
        for name in ("plain", "fortran", "swapped"):
            assert torch.equal(store.read(name).double(), torch.from_numpy(array))
        assert store.read("scalar").shape == ()
        assert open_weights(tmp_path / "x.npz").unread == ("scalar", "words")


class TestPairs:
    @pytest.mark.parametrize("prefix", ["model.", "transformer.", "base_model.language_model."])
    @pytest.mark.parametrize("side", ["tuned", "base"])
    def test_one_prefix_for_all_names(self, rng, prefix, side):
        bare = ["h.0.q.weight", "h.1.q.weight", "h.2.q.weight"]
        tuned = {name: gaussian(4, 4, rng=rng) for name in bare}
        base = {name: gaussian(4, 4, rng=rng) for name in bare}
        longer = tuned if side == "tuned" else base
        for name in bare:
            longer[prefix + name] = longer.pop(name)
        longer["lm_head.weight"] = gaussian(9, 4, rng=rng)
        updates = pickle.loads(pickle.dumps(rs.open_updates(tuned, base)))
        names = [n for n in tuned if n != "lm_head.weight"]
        assert updates.names == [n.removesuffix(".weight") for n in names]
        for name, other in zip(names, (n for n in base if n != "lm_head.weight"), strict=True):
            module = name.removesuffix(".weight")
            assert torch.equal(updates[module].dense(), tuned[name] - base[other])
            assert torch.equal(updates.weight(module), base[other])
        assert any("lm_head.weight" in note for note in updates.notes)

    def test_a_prefix_that_is_not_unique_is_not_taken(self, rng):
        tuned = {f"{p}.h.0.q.weight": gaussian(4, 4, rng=rng) for p in ("student", "teacher")}
        with pytest.raises(SourceError, match="no matrix in common"):
            rs.open_updates(tuned, {"h.0.q.weight": torch.ones(4, 4)})

    def test_buffers_are_never_measured(self, rng):
        base = {
            "h.0.q.weight": gaussian(4, 4, rng=rng),
            "h.0.attn.bias": torch.ones(4, 4),
            "h.0.attn.masked_bias": torch.ones(4, 4),
            "h.0.attn.mask": torch.ones(4, 4, dtype=torch.uint8),
            "h.0.rotary_emb.inv_freq": torch.ones(4, 4),
            "embeddings.position_ids": torch.ones(4, 4),
            "bn.running_mean": torch.ones(4, 4),
            "bn.num_batches_tracked": torch.tensor(3),
            "mlp.experts.gate_up_proj_bias": torch.ones(4, 4),
        }
        tuned = {name: tensor * 2 for name, tensor in base.items()}
        updates = rs.open_updates(tuned, base)
        assert updates.names == ["h.0.q"]
        assert set(updates.unread) == set(base) - {"h.0.q.weight"}

    def test_convolutions_become_matrices(self, rng):
        base = {
            "conv.weight": gaussian(6, 3, 2, 2, rng=rng),
            "conv1d.weight": gaussian(6, 3, 5, rng=rng),
            "positions": gaussian(1, 5, 3, rng=rng),
        }
        tuned = {name: tensor + gaussian(*tensor.shape, rng=rng) for name, tensor in base.items()}
        updates = rs.open_updates(tuned, base)
        assert updates.names == ["conv", "conv1d"]
        for module, columns in (("conv", 12), ("conv1d", 15)):
            name = f"{module}.weight"
            assert updates.site(module).shape == (6, columns)
            assert torch.equal(updates[module].dense(), (tuned[name] - base[name]).flatten(1))
            assert torch.equal(updates.weight(module), base[name].flatten(1))
        assert updates.unread == ("positions",)
        assert open_weights(base)["conv"].shape == (6, 12)

    def test_stacked_experts(self, rng):
        name = "model.layers.1.mlp.experts.down_proj"
        base = {name: gaussian(3, 6, 4, rng=rng), "model.embed_tokens.weight": torch.ones(4, 4)}
        tuned = {n: tensor + 1 for n, tensor in base.items()}
        updates = rs.open_updates(tuned, base)
        assert updates.names == ["model.embed_tokens", *(f"{name}[{e}]" for e in range(3))]
        assert torch.equal(updates[f"{name}[2]"].dense(), tuned[name][2] - base[name][2])
        assert torch.equal(updates.weight(f"{name}[2]"), base[name][2])
        assert updates.site(f"{name}[1]").layer == 1
        assert updates.unread == ()
        assert any("stacked experts" in note for note in updates.notes)
        assert len(rs.rank(updates).table) == 4

    @pytest.mark.parametrize(("d", "f"), [(6, 4), (4, 4), (8, 4)])
    @pytest.mark.parametrize("turned", [False, True])
    def test_stacked_experts_of_either_orientation(self, rng, d, f, turned):
        names = [f"model.layers.0.mlp.experts.{one}_proj" for one in ("gate_up", "down")]
        shapes = [(3, 2 * f, d), (3, d, f)]
        base = {n: gaussian(*s, rng=rng) for n, s in zip(names, shapes, strict=True)}
        tuned = {n: tensor + gaussian(*tensor.shape, rng=rng) for n, tensor in base.items()}
        if turned:  # as gpt-oss stores them, (E, in, out)
            base, tuned = ({n: t.mT.contiguous() for n, t in c.items()} for c in (base, tuned))
        updates = rs.open_updates(tuned, base, split="none")
        updates = pickle.loads(pickle.dumps(updates))
        for name, shape in zip(names, shapes, strict=True):
            delta = tuned[name][1] - base[name][1]
            wanted = delta.T if turned else delta
            assert updates.site(f"{name}[1]").shape == shape[1:]
            assert torch.equal(updates[f"{name}[1]"].dense(), wanted)
            weight = base[name][1]
            assert torch.equal(updates.weight(f"{name}[1]"), weight.T if turned else weight)

    @pytest.mark.parametrize(("rows", "where"), [((9, 7), "the tuned"), ((7, 9), "the base")])
    def test_vocabularies_of_two_sizes(self, rng, rows, where):
        names = ["model.embed_tokens.weight", "lm_head.weight"]
        tuned = {name: gaussian(rows[0], 4, rng=rng) for name in names}
        base = {name: gaussian(rows[1], 4, rng=rng) for name in names}
        updates = pickle.loads(pickle.dumps(rs.open_updates(tuned, base)))
        assert len(updates) == 2
        for name in names:
            module = name.removesuffix(".weight")
            assert updates.site(module).shape == (7, 4)
            assert torch.equal(updates[module].dense(), tuned[name][:7] - base[name][:7])
            assert torch.equal(updates.weight(module), base[name][:7])
            assert any(n.startswith(f"{name}: 2 rows that only {where}") for n in updates.notes)

    def test_other_heads_and_widths_are_not_cut(self, rng):
        base = {
            "q.weight": gaussian(4, 4, rng=rng),
            "classifier.weight": gaussian(2, 4, rng=rng),
            "embed_tokens.weight": gaussian(5, 4, rng=rng),
        }
        tuned = base | {
            "classifier.weight": gaussian(3, 4, rng=rng),
            "embed_tokens.weight": gaussian(5, 8, rng=rng),
        }
        updates = rs.open_updates(tuned, base)
        assert updates.names == ["q"]
        assert "of another shape" in " ".join(updates.notes)

    def test_tied_heads_are_noted(self, rng):
        base = {"model.embed_tokens.weight": gaussian(5, 4, rng=rng)}
        tuned = base | {"lm_head.weight": gaussian(5, 4, rng=rng)}
        for one, other, side in ((tuned, base, "the base"), (base, tuned, "the tuned checkpoint")):
            updates = rs.open_updates(one, other)
            assert updates.names == ["model.embed_tokens"]
            assert f"lm_head.weight: {side} seems to tie it" in " ".join(updates.notes)

    def test_composed_and_scaled_weights_are_noted(self, rng):
        base = {
            "a.weight": gaussian(4, 4, rng=rng),
            "b.weight_v": gaussian(4, 4, rng=rng),
            "b.weight_g": gaussian(4, 1, rng=rng),
            "c.parametrizations.weight.original1": gaussian(4, 4, rng=rng),
            "d.weight": gaussian(4, 4, rng=rng).to(torch.float8_e4m3fn),
        }
        updates = rs.open_updates(base, base)
        assert updates.names == ["a"]
        text = " ".join(updates.notes)
        assert "computed from several tensors" in text
        assert "b.weight_g, b.weight_v" in text
        assert "without their scales are not measured: d.weight" in text
