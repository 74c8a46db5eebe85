"""MLX and torchtune: both write lora_a and lora_b, in two orientations and at two scales."""

import json
import pickle

import numpy as np
import pytest
import torch
from oracles import gaussian
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError, SourceError

Q = "model.layers.20.self_attn.q_proj"


def folder(path, tensors, config=None):
    path.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, path / "adapters.safetensors")
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def linear(rng, name=Q):
    return {f"{name}.lora_a": gaussian(8, 2, rng=rng), f"{name}.lora_b": gaussian(2, 12, rng=rng)}


def test_linear_is_transposed_and_its_scale_used_as_it_is(tmp_path, rng):
    tensors = linear(rng)
    config = {"lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0, "dropout": 0.0}}
    updates = rs.open_updates(folder(tmp_path, tensors, config))
    (site,) = updates.sites
    assert updates.format == "mlx"
    assert (site.module, site.shape, site.rank, site.scale) == (Q, (12, 8), 2, 10)
    a, b = tensors.values()
    torch.testing.assert_close(updates[Q].dense(), 10 * b.T @ a.T)
    x = gaussian(8, rng=rng)
    torch.testing.assert_close(updates[Q].dense() @ x, 10 * (x @ a) @ b)
    assert not updates.notes
    assert not updates.unread


def test_scale_without_a_configuration_is_unknown(tmp_path, rng):
    updates = rs.open_updates(folder(tmp_path, linear(rng)))
    assert updates.sites[0].scale is None
    assert any("scale is unknown" in note for note in updates.notes)
    told = rs.open_updates(tmp_path, alpha=6)
    assert told.sites[0].scale == 3
    assert not told.notes


@pytest.mark.parametrize("config", [{}, {"lora_parameters": {"rank": 2}}], ids=str)
def test_configuration_without_a_scale_means_twenty(tmp_path, rng, config):
    updates = rs.open_updates(folder(tmp_path, linear(rng), config))
    assert updates.sites[0].scale == 20
    assert any("default, 20" in note for note in updates.notes)


@pytest.mark.parametrize("scale", ["10", True, float("nan"), [1]])
def test_unusable_scale(tmp_path, rng, scale):
    config = {"lora_parameters": {"scale": scale}}
    with pytest.raises(AdapterError, match="unusable scale"):
        rs.open_updates(folder(tmp_path, linear(rng), config))


def test_stored_scale_comes_before_the_configuration(tmp_path, rng):
    tensors = linear(rng) | {f"{Q}.scale": torch.tensor(7.0)}
    config = {"lora_parameters": {"scale": 10.0}}
    updates = rs.open_updates(folder(tmp_path, tensors, config))
    assert updates.sites[0].scale == 7
    assert not updates.unread


def test_two_adapters_in_a_folder_are_named_one_by_one(tmp_path, rng):
    tensors = linear(rng)
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"scale": 10.0}}')
    names = ["0000100_adapters.safetensors", "0000200_adapters.safetensors"]
    for name in names:
        save_file(tensors, tmp_path / name)
    with pytest.raises(SourceError, match="no single adapter") as caught:
        rs.open_updates(tmp_path)
    assert ", ".join(names) in caught.value.got
    for name in names:
        assert rs.open_updates(tmp_path / name).sites[0].scale == 10


def test_arrays_of_the_first_mlx(tmp_path, rng):
    tensors = linear(rng)
    np.savez(tmp_path / "adapters.npz", **{name: t.numpy() for name, t in tensors.items()})
    updates = rs.open_updates(tmp_path)
    a, b = tensors.values()
    torch.testing.assert_close(updates[Q].dense(), (a @ b).T)
    assert updates.sites[0].scale is None


def test_experts_are_updates_of_their_own(rng):
    name = "model.layers.3.mlp.switch_mlp.gate_proj"
    a, b = gaussian(3, 2, 8, rng=rng), gaussian(3, 12, 2, rng=rng)
    updates = rs.open_updates({f"{name}.lora_a": a, f"{name}.lora_b": b}, alpha=10)
    assert updates.names == [f"{name}[{e}]" for e in range(3)]
    updates = pickle.loads(pickle.dumps(updates))
    for e, (site, update) in enumerate(zip(updates.sites, updates, strict=True)):
        assert (site.shape, site.rank, site.scale) == ((12, 8), 2, 5)
        assert (site.kind, site.layer) == ("gate", 3)
        torch.testing.assert_close(update.dense(), 5 * b[e] @ a[e])


def test_embedding_is_not_transposed(rng):
    name = "model.embed_tokens"
    a, b = gaussian(20, 2, rng=rng), gaussian(2, 8, rng=rng)
    updates = rs.open_updates({f"{name}.lora_a": a, f"{name}.lora_b": b})
    assert updates.sites[0].shape == (20, 8)
    torch.testing.assert_close(updates[name].dense(), a @ b)


@pytest.mark.parametrize("name", [Q, "model.embed_tokens"])
def test_dora_is_row_by_row_and_needs_its_base(tmp_path, rng, name):
    tensors = linear(rng, name)
    a, b = tensors.values()
    product = a @ b if "embed" in name else (a @ b).T
    tensors[f"{name}.m"] = gaussian(len(product), rng=rng).abs()
    weight = gaussian(*product.shape, rng=rng)
    path = folder(tmp_path, tensors, {"lora_parameters": {"scale": 3.0}})
    with pytest.raises(AdapterError, match="depends on its base"):
        rs.open_updates(path)
    updates = rs.open_updates(path, {f"{name}.weight": weight})
    merged = torch.stack(
        [m * row / row.norm() for m, row in zip(tensors[f"{name}.m"], weight + 3 * product,
                                                strict=True)]
    )  # fmt: skip
    updates = pickle.loads(pickle.dumps(updates))
    torch.testing.assert_close(updates[name].dense(), merged - weight)
    assert updates.sites[0].shape == tuple(weight.shape)
    assert not updates.unread


@pytest.mark.parametrize(
    "weight", [torch.zeros(12, 4), torch.zeros(12, 8, dtype=torch.int32)], ids=["shape", "packed"]
)
def test_dora_with_a_base_that_does_not_fit(rng, weight):
    tensors = linear(rng) | {f"{Q}.m": torch.ones(12)}
    with pytest.raises(AdapterError, match="does not fit"):
        rs.open_updates(tensors, {f"{Q}.weight": weight})


UNFIT = {
    "half": {f"{Q}.lora_a": (8, 2)},
    "vectors": {f"{Q}.lora_a": (8,), f"{Q}.lora_b": (2, 12)},
    "empty": {f"{Q}.lora_a": (8, 0), f"{Q}.lora_b": (0, 12)},
    "ranks": {f"{Q}.lora_a": (8, 3), f"{Q}.lora_b": (2, 12)},
    "mixed": {f"{Q}.lora_a": (3, 2, 8), f"{Q}.lora_b": (2, 12)},
    "experts": {f"{Q}.lora_a": (3, 2, 8), f"{Q}.lora_b": (4, 12, 2)},
    "scales": {f"{Q}.lora_a": (8, 2), f"{Q}.lora_b": (2, 12), f"{Q}.scale": (2,)},
    "magnitudes": {f"{Q}.lora_a": (8, 2), f"{Q}.lora_b": (2, 12), f"{Q}.m": (5,)},
}


@pytest.mark.parametrize("shapes", UNFIT.values(), ids=UNFIT)
def test_factors_that_do_not_fit(shapes):
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(AdapterError):
        rs.open_updates(tensors, {f"{Q}.weight": torch.ones(12, 8)})


def test_other_tensors_are_unread(rng):
    extra = {"model.norm.weight": torch.ones(8), "model.other.m": torch.ones(8)}
    assert set(rs.open_updates(linear(rng) | extra).unread) == set(extra)


class TestTorchtune:
    NAME = "layers.0.attn.q_proj"

    def tensors(self, rng):
        return {
            f"{self.NAME}.lora_a.weight": gaussian(2, 8, rng=rng),
            f"{self.NAME}.lora_b.weight": gaussian(12, 2, rng=rng),
        }

    def test_product_at_alpha_over_rank(self, tmp_path, rng):
        tensors = self.tensors(rng) | {"norm.scale": torch.ones(8)}
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
        updates = rs.open_updates(folder(tmp_path, tensors, config))
        assert updates.format == "torchtune"
        a, b, _ = tensors.values()
        torch.testing.assert_close(updates[self.NAME].dense(), 3 * b @ a)
        assert updates.sites[0].scale == 3
        assert updates.unread == ("norm.scale",)
        assert any("rotary order" in note for note in updates.notes)

    def test_without_alpha(self, rng):
        tensors = {n.replace("q_proj", "v_proj"): t for n, t in self.tensors(rng).items()}
        updates = rs.open_updates(tensors)
        assert updates.sites[0].scale is None
        assert len(updates.notes) == 1
        assert rs.open_updates(tensors, alpha=4).sites[0].scale == 2

    def test_unusable_alpha(self, tmp_path, rng):
        with pytest.raises(AdapterError, match="unusable lora_alpha"):
            rs.open_updates(folder(tmp_path, self.tensors(rng), {"lora_alpha": "6"}))

    def test_dora_and_half_a_pair_are_refused(self, rng):
        tensors = self.tensors(rng)
        with pytest.raises(AdapterError, match="no product"):
            rs.open_updates(tensors | {f"{self.NAME}.magnitude": torch.ones(12)})
        del tensors[f"{self.NAME}.lora_b.weight"]
        with pytest.raises(AdapterError, match="no product"):
            rs.open_updates(tensors)
