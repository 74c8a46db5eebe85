"""kohya, LoCon and LyCORIS: ΔW is the formula's, and what LyCORIS' own modules add."""

import importlib
import json
import math
import pickle

import pytest
import torch
from oracles import gaussian
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError
from rankscope.io.names import kind_of, layer_of
from rankscope.updates import DenseUpdate, FactoredUpdate

FLAT = "lora_unet_blocks_0_attn1_to_q"
PATH = "blocks.0.attn1.to_q"


@pytest.fixture
def opened(tmp_path):
    """Write one module's tensors by suffix, or whole names, and open them."""

    def write_and_open(tensors, base=None, module=FLAT, metadata=None, **options):
        named = {f"{module}.{k}" if module else k: v.contiguous() for k, v in tensors.items()}
        path = tmp_path / "adapter.safetensors"
        save_file(named, path, metadata)
        if isinstance(base, torch.Tensor):
            base = {f"{PATH}.weight": base}
        return rs.open_updates(path, base, **options)

    return write_and_open


def only(updates):
    (update,) = updates
    site = updates.sites[0]
    assert update.shape == site.shape
    return update


def check(updates, truth, atol=1e-5):
    torch.testing.assert_close(only(updates).dense(), truth.double(), atol=atol, rtol=1e-5)


def random(rng, **shapes):
    """Float32 tensors by suffix; ``__`` in a name stands for a dot."""
    return {
        k.replace("__", "."): gaussian(*s, rng=rng).float() if s else torch.tensor(1.0)
        for k, s in shapes.items()
    }


def lora(rng, out=5, in_=6, r=2, kernel=(), **more):
    ones = (1,) * len(kernel)
    return random(rng, lora_up__weight=(out, r, *ones), lora_down__weight=(r, in_, *kernel)) | more


def alpha(value, dtype=torch.float32):
    return {"alpha": torch.tensor(value, dtype=dtype)}


def flat_product(tensors):
    tensors = {k: t.double() for k, t in tensors.items()}
    return tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1)


# kohya and LoCon


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3), (3,), (2, 2, 2)])
def test_alpha_over_rank_multiplies_the_product(opened, rng, kernel):
    tensors = lora(rng, kernel=kernel) | alpha(6.0)
    updates = opened(tensors)
    check(updates, 3 * flat_product(tensors))
    site = updates.sites[0]
    assert (updates.format, site.rank, site.scale) == ("kohya", 2, 3.0)
    assert (updates.unread, updates.notes) == ((), ())
    assert isinstance(only(updates), FactoredUpdate)


def test_the_rank_is_the_tensors_and_not_the_metadatas(opened, rng):
    metadata = {"ss_network_dim": "Dynamic", "ss_network_alpha": "1"}
    tensors = lora(rng) | alpha(4.0)
    check(opened(tensors, metadata=metadata), 2 * flat_product(tensors))


def test_a_missing_alpha_is_the_rank_and_noted(opened, rng):
    tensors = lora(rng)
    updates = opened(tensors)
    check(updates, flat_product(tensors))
    assert updates.sites[0].scale == 1.0
    assert updates.notes == (f"no alpha, taken as the rank: {FLAT}",)
    assert opened(tensors, alpha=6).notes == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_of_any_dtype(opened, rng, dtype, shape):
    tensors = lora(rng)
    updates = opened(tensors | {"alpha": torch.full(shape, 8).to(dtype)})
    assert updates.sites[0].scale == 4.0


def test_alpha_zero_is_asked_about(opened, rng):
    tensors = lora(rng) | alpha(0.0)
    with pytest.raises(AdapterError, match=f"alpha of {FLAT} is 0") as error:
        opened(tensors)
    assert "--alpha" in error.value.fix
    check(opened(tensors, alpha=2), flat_product(tensors))
    assert only(opened(tensors, alpha=0)).norm() == 0


def test_the_users_alpha_overrides_every_stored_one(opened, rng):
    tensors = lora(rng) | alpha(6.0)
    assert opened(tensors, alpha=1).sites[0].scale == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_alpha_must_be_a_number(opened, rng, value):
    with pytest.raises(AdapterError, match="alpha is no number"):
        opened(lora(rng) | alpha(value))
    with pytest.raises(AdapterError, match="alpha is no number"):
        opened(lora(rng) | {"alpha": torch.ones(2)})


@pytest.mark.parametrize("kernel", [(3, 3), (3,), (2, 2, 2)])
def test_tucker(opened, rng, kernel):
    shapes = {"lora_up__weight": (5, 2), "lora_down__weight": (2, 6)}
    tensors = random(rng, lora_mid__weight=(2, 2, *kernel), **shapes)
    for name in ("lora_up.weight", "lora_down.weight"):
        tensors[name] = tensors[name].reshape(*tensors[name].shape, *(1 for _ in kernel))
    up, down, mid = (tensors[f"lora_{p}.weight"].double() for p in ("up", "down", "mid"))
    whole = torch.einsum("mn...,im,nj->ij...", mid, up.flatten(1), down.flatten(1))
    updates = opened(tensors | alpha(1.0))
    check(updates, whole.flatten(1) / 2)
    assert only(updates).ceiling == updates.sites[0].rank == 2


def test_rs_lora_of_lycoris_is_in_the_stored_alpha(opened, rng):
    # α = 4 at r = 2 trained with rs_lora is stored as α r/√r.
    tensors = lora(rng) | alpha(4 * math.sqrt(2))
    check(opened(tensors), 4 / math.sqrt(2) * flat_product(tensors))


def test_split_qkv_is_noted(opened, rng):
    metadata = {"ss_network_args": json.dumps({"split_qkv": "True"})}
    notes = opened(lora(rng) | alpha(2.0), metadata=metadata).notes
    assert len(notes) == 1
    assert "1/3" in notes[0]


@pytest.mark.parametrize("nonsense", ["", "[1]", "{", "[" * 100_000, '{"split_qkv": "False"}'])
def test_other_network_args_are_not(opened, rng, nonsense):
    updates = opened(lora(rng) | alpha(2.0), metadata={"ss_network_args": nonsense})
    assert updates.notes == ()


# LoHa and LoKr


def loha(rng, out=7, in_=9, r=2):
    return random(
        rng, hada_w1_a=(out, r), hada_w1_b=(r, in_), hada_w2_a=(out, r), hada_w2_b=(r, in_)
    )


def test_loha_is_factored_and_of_rank_r_squared(opened, rng):
    tensors = loha(rng) | alpha(6.0)
    w = {k: t.double() for k, t in tensors.items()}
    dense = 3 * (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
    updates = opened(tensors)
    check(updates, dense)
    update = only(updates)
    assert isinstance(update, FactoredUpdate)
    assert (updates.format, updates.sites[0].rank, update.ceiling) == ("lycoris", 2, 4)
    torch.testing.assert_close(rs.svd(update).values, torch.linalg.svdvals(dense)[:4])


def test_loha_of_a_rank_whose_square_is_above_the_sides(opened, rng):
    tensors = loha(rng, r=4)
    w = {k: t.double() for k, t in tensors.items()}
    dense = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
    updates = opened(tensors)
    check(updates, dense)
    assert only(updates).ceiling == 7
    torch.testing.assert_close(rs.svd(only(updates)).values, torch.linalg.svdvals(dense))


def test_loha_tucker(opened, rng):
    tensors = random(
        rng, hada_t1=(2, 2, 3, 3), hada_w1_a=(2, 7), hada_w1_b=(2, 5),
        hada_t2=(2, 2, 3, 3), hada_w2_a=(2, 7), hada_w2_b=(2, 5),
    )  # fmt: skip
    one, two = (
        torch.einsum(
            "ij...,ip,jr->pr...",
            *(tensors[f"hada_{n}"].double() for n in (f"t{s}", f"w{s}_a", f"w{s}_b")),
        )
        for s in "12"
    )
    updates = opened(tensors | alpha(1.0))
    check(updates, (one * two).flatten(1) / 2)
    assert only(updates).ceiling == 4


LOKR = {
    "second decomposed": ({"w1": (2, 3), "w2_a": (6, 1), "w2_b": (1, 5)}, 1),
    "first decomposed": ({"w1_a": (4, 1), "w1_b": (1, 4), "w2": (3, 3)}, 1),
    "both decomposed": ({"w1_a": (4, 2), "w1_b": (2, 4), "w2_a": (5, 2), "w2_b": (2, 5)}, 2),
    "both whole": ({"w1": (2, 2), "w2": (6, 5)}, None),
    "whole convolution": ({"w1": (2, 2), "w2": (3, 4, 3, 3)}, None),
    "flattened convolution": ({"w1": (2, 2), "w2_a": (8, 1), "w2_b": (1, 36)}, 1),
    "unflattened convolution": ({"w1": (2, 2), "w2_a": (8, 1), "w2_b": (1, 4, 3, 3)}, 1),
    "tucker": ({"w1": (2, 2), "t2": (2, 2, 3, 3), "w2_a": (2, 6), "w2_b": (2, 5)}, 2),
}


def lokr_truth(tensors):
    w = {k.removeprefix("lokr_"): t.double() for k, t in tensors.items()}
    first = w["w1"] if "w1" in w else w["w1_a"] @ w["w1_b"]
    if "w2" in w:
        second = w["w2"]
    elif "t2" in w:
        second = torch.einsum("ij...,ip,jr->pr...", w["t2"], w["w2_a"], w["w2_b"])
    else:
        second = torch.einsum("or,r...->o...", w["w2_a"], w["w2_b"])
    first = first.reshape(*first.shape, *(1 for _ in second.shape[2:]))
    return torch.kron(first, second.contiguous()).flatten(1)


@pytest.mark.parametrize(("shapes", "rank"), LOKR.values(), ids=LOKR)
def test_lokr(opened, rng, shapes, rank):
    tensors = random(rng, **{f"lokr_{k}": s for k, s in shapes.items()})
    # Stored with both factors whole: 1, whatever the rank was called. It divides by nothing.
    stored = 1.0 if rank is None else 6.0
    scale = 1.0 if rank is None else stored / rank
    truth = scale * lokr_truth(tensors)
    updates = opened(tensors | alpha(stored))
    check(updates, truth)
    assert (updates.sites[0].rank, updates.sites[0].scale) == (rank, scale)
    found, wanted = rs.svd(only(updates)).values, torch.linalg.svdvals(truth)
    torch.testing.assert_close(found, wanted[: len(found)])
    assert wanted[len(found) :].sum() < 1e-10


def test_lokr_is_factored_where_that_is_low_rank(opened, rng):
    low = random(rng, lokr_w1=(2, 3), lokr_w2_a=(6, 1), lokr_w2_b=(1, 5))
    update = only(opened(low))
    assert isinstance(update, FactoredUpdate)
    assert update.ceiling == 2
    assert isinstance(only(opened(random(rng, lokr_w1=(2, 2), lokr_w2=(6, 5)))), DenseUpdate)


def test_lokr_with_both_factors_whole_ignores_every_alpha(opened, rng):
    tensors = random(rng, lokr_w1=(2, 2), lokr_w2=(3, 3))
    for stored in (0.0, 1.0, 16.0):
        check(opened(tensors | alpha(stored), alpha=7), lokr_truth(tensors))


def test_the_second_factors_rank_divides_lokrs_alpha(opened, rng):
    tensors = random(rng, lokr_w1_a=(4, 2), lokr_w1_b=(2, 4), lokr_w2_a=(6, 3), lokr_w2_b=(3, 6))
    assert opened(tensors | alpha(6.0)).sites[0].scale == 2.0


# Differences, vectors, and what is not read


def test_differences_are_dense_and_vectors_are_unread(opened, rng):
    tensors = random(rng, diff=(5, 3, 3, 3), diff_b=(5,))
    norms = random(rng, w_norm=(5,), b_norm=(5,))
    bias = random(rng, diff=(5,))
    named = {
        **{f"{FLAT}.{k}": t for k, t in tensors.items()},
        **{f"lora_unet_norm.{k}": t for k, t in norms.items()},
        **{f"lora_unet_bias.{k}": t for k, t in bias.items()},
        "emb_params": torch.ones(2, 2),
    }
    updates = opened(named, module="")
    check(updates, tensors["diff"].flatten(1))
    assert isinstance(only(updates), DenseUpdate)
    assert updates.sites[0].rank is None
    wanted = {f"{FLAT}.diff_b", "lora_unet_norm.w_norm", "lora_unet_norm.b_norm",
              "lora_unet_bias.diff", "emb_params"}  # fmt: skip
    assert set(updates.unread) == wanted
    assert updates.notes == ()


def test_a_file_of_norms_only_has_no_update(opened, rng):
    updates = opened(random(rng, w_norm=(5,)))
    assert (len(updates), updates.unread) == (0, (f"{FLAT}.w_norm",))


# DoRA


def dora_truth(weight, inner, magnitude, axis):
    merged = weight.double() + inner.reshape(weight.shape)
    others = [d for d in range(weight.ndim) if d != axis]
    norm = merged.square().sum(others, keepdim=True).sqrt()
    return (magnitude.double().reshape(norm.shape) * merged / norm - weight).flatten(1)


@pytest.mark.parametrize(
    ("kernel", "shape", "axis"),
    [
        ((), (5, 1), 0),
        ((), (5,), 0),
        ((), (1, 3), 1),
        ((3, 3), (5, 1, 1, 1), 0),
        ((3, 3), (1, 3, 1, 1), 1),
    ],
)
def test_dora_on_either_axis(opened, rng, kernel, shape, axis):
    weight = gaussian(5, 3, *kernel, rng=rng).float()
    tensors = lora(rng, in_=3, kernel=kernel) | random(rng, dora_scale=shape) | alpha(6.0)
    truth = dora_truth(weight, 3 * flat_product(tensors), tensors["dora_scale"], axis)
    check(opened(tensors, weight), truth)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4)])
def test_the_shape_tells_the_axis_of_a_square_weight(opened, rng, shape):
    weight = gaussian(4, 4, rng=rng).float()
    tensors = lora(rng, 4, 4) | random(rng, dora_scale=shape) | alpha(2.0)
    truth = dora_truth(weight, flat_product(tensors), tensors["dora_scale"], shape.index(1) ^ 1)
    check(opened(tensors, weight), truth)


@pytest.mark.parametrize(("shape", "axis"), [((1, 6), 1), ((1, 1), 0)])
def test_dora_of_a_single_row(opened, rng, shape, axis):
    weight = gaussian(1, 6, rng=rng).float()
    tensors = lora(rng, out=1) | random(rng, dora_scale=shape) | alpha(2.0)
    truth = dora_truth(weight, flat_product(tensors), tensors["dora_scale"], axis)
    check(opened(tensors, weight), truth)


def test_dora_on_loha_and_lokr(opened, rng):
    weight, magnitude = gaussian(7, 9, rng=rng).float(), random(rng, dora_scale=(7, 1))
    tensors = loha(rng) | alpha(2.0)
    inner = only(opened(tensors)).dense()
    check(
        opened(tensors | magnitude, weight), dora_truth(weight, inner, magnitude["dora_scale"], 0)
    )
    tensors = random(rng, lokr_w1=(1, 3), lokr_w2=(7, 3))
    inner = lokr_truth(tensors)
    check(
        opened(tensors | magnitude, weight), dora_truth(weight, inner, magnitude["dora_scale"], 0)
    )


def test_a_zero_row_stays_zero_under_dora(opened, rng):
    tensors = lora(rng) | alpha(2.0) | {"dora_scale": torch.ones(5, 1)}
    tensors["lora_up.weight"][0] = 0
    weight = gaussian(5, 6, rng=rng).float()
    weight[0] = 0
    assert only(opened(tensors, weight)).dense()[0].abs().sum() == 0


# Families whose ΔW depends on the base


def glora(rng, in_=6, out=5, r=2, kernel=()):
    ones = (1,) * len(kernel)
    return random(
        rng, a1__weight=(in_, r, *ones), a2__weight=(r, in_, *ones),
        b1__weight=(out, r, *ones), b2__weight=(r, in_, *kernel),
    )  # fmt: skip


def glora_truth(weight, tensors):
    a1, a2, b1, b2 = (tensors[f"{k}.weight"].double().flatten(1) for k in ("a1", "a2", "b1", "b2"))
    turned = torch.einsum("oi...,ij,jk->ok...", weight.double(), a1, a2)
    return turned.flatten(1) + b1 @ b2


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("out", [5, 6])
def test_glora(opened, rng, kernel, out):
    weight = gaussian(out, 6, *kernel, rng=rng).float()
    tensors = glora(rng, out=out, kernel=kernel)
    updates = opened(tensors | alpha(6.0), weight)
    check(updates, 3 * glora_truth(weight, tensors))
    assert (updates.sites[0].rank, updates.sites[0].scale) == (2, 3.0)


@pytest.mark.parametrize("out", [5, 6])
def test_glora_in_the_old_layout(opened, rng, out):
    weight, tensors = gaussian(out, 6, rng=rng).float(), glora(rng, out=out)
    swap = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {f"{swap[k[:2]]}.weight": t for k, t in tensors.items()}
    check(opened(old | alpha(6.0), weight), 3 * glora_truth(weight, tensors))


def test_glora_of_full_rank_is_ambiguous(opened, rng):
    with pytest.raises(AdapterError, match="do not fit together"):
        opened(glora(rng, in_=4, out=4, r=4), torch.eye(4))


def test_glora_with_rs_lora_is_noted(opened, rng):
    metadata = {"ss_network_args": '{"rs_lora": "True"}'}
    updates = opened(glora(rng) | alpha(2.0), gaussian(5, 6, rng=rng), metadata=metadata)
    assert any("rs_lora" in note for note in updates.notes)


def cayley(blocks):
    q = blocks.double() - blocks.double().mT
    eye = torch.eye(q.shape[-1], dtype=torch.float64)
    return (eye + q) @ torch.linalg.inv(eye - q)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("rescale", [False, True])
def test_diag_oft(opened, rng, kernel, rescale):
    weight = gaussian(6, 4, *kernel, rng=rng).float()
    tensors = random(rng, oft_blocks=(2, 3, 3)) | alpha(0.0)
    factor = torch.ones(6, 1)
    if rescale:
        tensors |= random(rng, rescale=(6, *(1 for _ in weight.shape[1:])))
        factor = tensors["rescale"].reshape(6, 1)
    turn = torch.block_diag(*cayley(tensors["oft_blocks"]).mT)
    flat = weight.double().flatten(1)
    updates = opened(tensors, weight)
    check(updates, factor * (turn @ flat) - flat)
    assert (updates.unread, updates.notes) == ((), ())


def test_ofts_alpha_is_a_constraint(opened, rng):
    weight = gaussian(6, 4, rng=rng).float()
    tensors = random(rng, oft_blocks=(2, 3, 3))
    blocks = tensors["oft_blocks"].double()
    norm = (blocks - blocks.mT).norm()
    turn = torch.block_diag(*cayley(blocks * (0.01 * 6 / norm)).mT)
    updates = opened(tensors | alpha(0.01), weight)
    check(updates, turn @ weight.double() - weight)
    assert "constraint" in updates.notes[0]
    # A loose one changes nothing.
    turn = torch.block_diag(*cayley(blocks).mT)
    check(opened(tensors | alpha(100.0), weight), turn @ weight.double() - weight)


def test_sd_scripts_clamps_at_a_constraint_of_zero(opened, rng):
    tensors, weight = random(rng, oft_blocks=(2, 3, 3)) | alpha(0.0), gaussian(6, 4, rng=rng)
    module = FLAT.replace("lora_", "oft_")
    assert only(opened(tensors, weight, module=module)).norm() < 1e-12
    assert only(opened(tensors, weight)).norm() > 0.1


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3_stores_what_is_added_to_one(opened, rng, kernel, on_input):
    weight = gaussian(5, 3, *kernel, rng=rng).float()
    n = 3 if on_input else 5
    shape = (1, n, 1, 1) if kernel else (n,)
    tensors = random(rng, weight=shape) | {"on_input": torch.tensor(on_input)}
    pattern = "oi...,i->oi..." if on_input else "oi...,o->oi..."
    vector = tensors["weight"].double().flatten()
    updates = opened(tensors, weight)
    check(updates, torch.einsum(pattern, weight.double(), vector).flatten(1))
    assert updates.sites[0].rank is None


BASELESS = {
    "dora": {"lora_up__weight": (5, 2), "lora_down__weight": (2, 6), "dora_scale": (5, 1)},
    "glora": {
        "a1__weight": (6, 2),
        "a2__weight": (2, 6),
        "b1__weight": (5, 2),
        "b2__weight": (2, 6),
    },
    "oft": {"oft_blocks": (1, 5, 5)},
    "ia3": {"weight": (5,), "on_input": ()},
}


@pytest.mark.parametrize("shapes", BASELESS.values(), ids=BASELESS)
def test_what_depends_on_the_base_asks_for_it(opened, rng, shapes):
    tensors = random(rng, **shapes)
    with pytest.raises(AdapterError, match="depends on its base weight") as error:
        opened(tensors)
    assert "--base" in error.value.fix
    with pytest.raises(AdapterError, match="another shape than its update"):
        opened(tensors, gaussian(50, 50, rng=rng))


CHANNELS = {
    "dora": {
        "lora_up__weight": (5, 2, 1, 1), "lora_down__weight": (2, 3, 3, 3),
        "dora_scale": (1, 27, 1, 1)},
    "glora": {
        "a1__weight": (9, 2), "a2__weight": (2, 9), "b1__weight": (5, 2), "b2__weight": (2, 27)},
    "ia3": {"weight": (1, 27, 1, 1), "on_input": ()},
}  # fmt: skip


@pytest.mark.parametrize("shapes", CHANNELS.values(), ids=CHANNELS)
def test_input_channels_are_the_bases(opened, rng, shapes):
    with pytest.raises(AdapterError, match="another shape than its update"):
        opened(random(rng, **shapes), gaussian(5, 3, 3, 3, rng=rng))


# LyCORIS' own modules: forward on the identity, since its merge scales LoHa and LoKr twice


def library(name, class_name):
    pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
    return getattr(importlib.import_module(f"lycoris.modules.{name}"), class_name)


CONVOLUTION, LINEAR = {"kernel": 3}, {"kernel": 0}
MODULES = {
    "locon": ("locon", "LoConModule", LINEAR, {}),
    "locon conv": ("locon", "LoConModule", CONVOLUTION, {}),
    "locon tucker": ("locon", "LoConModule", CONVOLUTION, {"use_tucker": True}),
    "locon rs": ("locon", "LoConModule", LINEAR, {"rs_lora": True}),
    "dora out": ("locon", "LoConModule", LINEAR, {"weight_decompose": True}),
    "dora in": ("locon", "LoConModule", LINEAR, {"weight_decompose": True, "wd_on_out": False}),
    "dora conv": ("locon", "LoConModule", CONVOLUTION, {"weight_decompose": True}),
    "dora conv in": (
        "locon", "LoConModule", CONVOLUTION, {"weight_decompose": True, "wd_on_out": False}),
    "loha": ("loha", "LohaModule", LINEAR, {}),
    "loha conv": ("loha", "LohaModule", CONVOLUTION, {}),
    "loha tucker": ("loha", "LohaModule", CONVOLUTION, {"use_tucker": True}),
    "loha dora": ("loha", "LohaModule", LINEAR, {"weight_decompose": True}),
    "lokr": ("lokr", "LokrModule", LINEAR, {"factor": 2}),
    "lokr both": ("lokr", "LokrModule", LINEAR, {"decompose_both": True, "lora_dim": 1}),
    "lokr full": ("lokr", "LokrModule", LINEAR, {"factor": 2, "full_matrix": True}),
    "lokr conv": ("lokr", "LokrModule", CONVOLUTION, {"factor": 2, "lora_dim": 1}),
    "lokr tucker": (
        "lokr", "LokrModule", CONVOLUTION, {"factor": 2, "lora_dim": 1, "use_tucker": True}),
    "glora": ("glora", "GLoRAModule", LINEAR, {}),
    "glora conv": ("glora", "GLoRAModule", CONVOLUTION, {}),
    "oft": ("diag_oft", "DiagOFTModule", LINEAR, {"alpha": 0}),
    "oft conv": ("diag_oft", "DiagOFTModule", CONVOLUTION, {"alpha": 0, "rescaled": True}),
    "oft constraint": ("diag_oft", "DiagOFTModule", LINEAR, {"constraint": 0.01}),
    "boft": ("boft", "ButterflyOFTModule", LINEAR, {}),
    "boft conv": ("boft", "ButterflyOFTModule", CONVOLUTION, {"rescaled": True}),
    "boft constraint": ("boft", "ButterflyOFTModule", LINEAR, {"constraint": 0.01}),
    "ia3": ("ia3", "IA3Module", LINEAR, {}),
    "ia3 input": ("ia3", "IA3Module", LINEAR, {"train_on_input": True}),
    "ia3 conv": ("ia3", "IA3Module", CONVOLUTION, {}),
    "ia3 conv input": ("ia3", "IA3Module", CONVOLUTION, {"train_on_input": True}),
}  # fmt: skip


def trained(name, class_name, layer, options):
    """A LyCORIS module with random parameters, and the layer that it wraps."""
    torch.manual_seed(0)
    kernel = layer["kernel"]
    org = torch.nn.Conv2d(8, 16, kernel, bias=False) if kernel else torch.nn.Linear(8, 16, False)
    options = {"lora_dim": 2, "alpha": 6.0, **options}
    module = library(name, class_name)("m", org, 1.0, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval(), org


def added(module, org):
    """What the module's forward adds, as a matrix: its answers to the unit inputs."""
    if isinstance(org, torch.nn.Conv2d):
        unit = torch.eye(8 * 9).reshape(-1, 8, 3, 3)
    else:
        unit = torch.eye(8)
    with torch.no_grad():
        return (module(unit) - org(unit)).reshape(len(unit), -1).T


@pytest.mark.parametrize("case", MODULES.values(), ids=MODULES)
def test_lycoris_modules(opened, case):
    module, org = trained(*case)
    stored = {k: t.detach().clone() for k, t in module.state_dict().items()}
    updates = opened(stored, org.weight.detach())
    check(updates, added(module, org), atol=2e-5)
    assert updates.unread == ()


@pytest.mark.parametrize("case", ["loha", "lokr"])
def test_lycoris_merges_loha_and_lokr_scaled_twice(opened, case):
    module, org = trained(*MODULES[case])
    update = only(opened({k: t.detach().clone() for k, t in module.state_dict().items()}))
    merged = module.get_diff_weight(shape=org.weight.shape)[0].detach().double()
    # alpha / r = 6 / 2 once more than what the module adds in training.
    torch.testing.assert_close(merged, 3 * update.dense(), atol=1e-5, rtol=1e-5)


def test_butterfly_by_its_permutations(opened, rng):
    weight = gaussian(16, 3, rng=rng).float()
    blocks = random(rng, oft_blocks=(2, 4, 4, 4))
    turned = weight.double()
    for stage, turn in enumerate(cayley(blocks["oft_blocks"])):
        stride = 2**stage * 2
        # Row 2ks + gs + k' of W is row 2ks + 2k' + g of the blocks' order.
        order = torch.arange(16).reshape(-1, 2, stride).transpose(1, 2).flatten()
        mixed = torch.block_diag(*turn) @ turned[order]
        turned = mixed[order.argsort()]
    check(opened(blocks, weight), turned - weight)


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", (None, "q")),
        ("lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0", (None, "o")),
        ("lora_te1_text_model_encoder_layers_11_self_attn_k_proj", (11, "k")),
        ("lora_te_text_model_encoder_layers_3_self_attn_out_proj", (3, "o")),
        ("lora_te2_text_model_encoder_layers_3_mlp_fc1", (3, "up")),
        ("lora_te2_text_model_encoder_layers_3_mlp_fc2", (3, "down")),
        ("lora_unet_double_blocks_7_img_attn_qkv", (7, "other")),
        ("lora_unet_double_blocks_7_img_attn_proj", (7, "o")),
        ("lycoris_blocks_4_v", (4, "v")),
        ("lora_prior_unet_conv_in", (None, "other")),
        ("lora_unet_" + "a_" * 40 + "x", (None, "other")),
    ],
)
def test_flat_names_tell_layer_and_kind(name, expected):
    assert (layer_of(name), kind_of(name)) == expected


@pytest.mark.parametrize(
    ("flat", "stored"),
    [
        (FLAT, PATH),
        (FLAT, f"unet.{PATH}"),
        ("lora_unet_input_blocks_4_1_proj_in", "model.diffusion_model.input_blocks.4.1.proj_in"),
        ("lora_te_text_model_fc1", "cond_stage_model.transformer.text_model.fc1"),
        ("lora_te1_text_model_fc1", "text_encoder.text_model.fc1"),
        ("lora_te2_text_model_fc1", "text_encoder_2.text_model.fc1"),
        ("lora_te3_encoder_block_0_q", "text_encoder_3.encoder.block.0.q"),
        ("lora_te3_encoder_block_0_q", "text_encoder_2.encoder.block.0.q"),
        ("lora_te2_text_model_fc1", "text_encoders.clip_g.transformer.text_model.fc1"),
        ("lora_prior_unet_a_b", "prior.a.b"),
        ("lora_prior_te_a_b", "a.b"),
        ("lycoris_layers_0_self_attn_q_proj", "layers.0.self_attn.q_proj"),
        ("lycoris_down_proj_in", "down.proj_in"),
    ],
)
def test_with_a_base_modules_bear_its_names(opened, rng, flat, stored):
    base = {f"{stored}.weight": gaussian(5, 6, rng=rng), "other.weight": torch.ones(5, 6)}
    tensors = lora(rng) | alpha(2.0)
    updates = opened(tensors, base, module=flat)
    assert updates.names == [stored]
    assert updates.notes == ()
    assert torch.equal(updates.weight(stored), base[f"{stored}.weight"])
    assert opened(tensors, module=flat).names == [flat]


def test_two_text_encoders_of_one_architecture(opened, rng):
    names = ["text_encoder.fc1", "text_encoder_2.fc1"]
    base = {f"{name}.weight": gaussian(5, 6, rng=rng) for name in names}
    both = {f"lora_te{i}_fc1.{k}": t for i in (1, 2) for k, t in lora(rng).items()}
    assert set(opened(both, base, module="").names) == set(names)


def test_two_modules_of_one_base_module_are_refused(opened, rng):
    both = {f"lora_te{i}_fc1.{k}": t for i in (1, 2) for k, t in lora(rng).items()}
    with pytest.raises(AdapterError, match="two modules of the adapter are one") as error:
        opened(both, {"fc1.weight": gaussian(5, 6, rng=rng)}, module="")
    assert "lora_te1_fc1" in error.value.got


def test_a_collision_is_told_apart_by_shape_or_refused(opened, rng):
    flat, tensors = "lora_unet_down_0_to_q", lora(rng) | alpha(2.0)
    base = {"down.0.to_q.weight": torch.ones(5, 6), "down_0.to_q.weight": torch.ones(5, 7)}
    assert opened(tensors, base, module=flat).names == ["down.0.to_q"]
    base["down_0.to_q.weight"] = torch.ones(5, 6)
    with pytest.raises(AdapterError, match="several modules") as error:
        opened(tensors, base, module=flat)
    assert error.value.got == "down.0.to_q.weight, down_0.to_q.weight"


@pytest.mark.parametrize("shape", [(5, 7), (6, 5), (5,)])
def test_a_module_that_the_base_lacks_keeps_its_flat_name(opened, rng, shape):
    updates = opened(lora(rng) | alpha(2.0), gaussian(*shape, rng=rng))
    assert updates.names == [FLAT]
    assert updates.notes == (f"not in the base, or of another shape there: {FLAT}",)


def test_linear_factors_on_a_pointwise_convolution(opened, rng):
    updates = opened(lora(rng) | alpha(2.0), gaussian(5, 6, 1, 1, rng=rng))
    assert updates.names == [PATH]
    updates = opened(lora(rng, kernel=(1, 1)) | alpha(2.0), gaussian(5, 6, rng=rng))
    assert updates.names == [PATH]


def test_dotted_names_are_read_as_they_are(opened, rng):
    module = "diffusion_model.blocks.0.self_attn.q"
    updates = opened(lora(rng) | alpha(2.0), module=module)
    assert updates.names == [module]
    base = {"blocks.0.self_attn.q.weight": gaussian(5, 6, rng=rng).float()}
    tensors = lora(rng) | alpha(2.0) | {"dora_scale": torch.ones(5, 1)}
    truth = dora_truth(*base.values(), flat_product(tensors), torch.ones(5, 1), 0)
    check(opened(tensors, base, module=module), truth)
    with pytest.raises(AdapterError, match="another shape"):
        opened(tensors, {"blocks.0.self_attn.q.weight": torch.ones(6, 6)}, module=module)


# Recognition, completeness, bad input


def test_other_files_are_not_taken_for_kohyas(rng):
    from rankscope.io.adapters.kohya import FAMILY
    from rankscope.io.tensors import TensorInfo

    names = ["base_model.model.q.hada_w1_a", "mlp.b1.weight", "h.0.diff", "q.alpha", "q.weight"]
    names += ["q.lora_A.weight", "unet.q.lora.down.weight", "to_q_lora.down.weight", "w_a_000"]
    info = TensorInfo("float32", (2, 2))
    assert not any(FAMILY.recognises({name: info}) for name in names)
    for name in (
        "x.lora_down.weight",
        "lycoris_x.diff",
        "lora_te_x.w_norm",
        "lora_unet_x.a1.weight",
    ):
        assert FAMILY.recognises({name: info})


INCOMPLETE = {
    "lora_up.weight": "lora_down.weight",
    "lora_down.weight": "lora_up.weight",
    "lora_mid.weight": "lora_down.weight",
    "hada_w1_a": "hada_w1_b",
    "lokr_w1": "lokr_w2_a",
    "lokr_w2_a": "lokr_w1_a",
    "on_input": "weight",
    "a1.weight": "a2.weight",
    "dora_scale": "lora_down.weight",
}


@pytest.mark.parametrize(("present", "missing"), INCOMPLETE.items())
def test_half_an_update_is_an_error(opened, rng, present, missing):
    complete = {f"lora_unet_b.{k}": t for k, t in lora(rng).items()}
    tensors = {f"{FLAT}.{present}": torch.ones(2, 2), f"{FLAT}.alpha": torch.tensor(1.0)}
    with pytest.raises(AdapterError, match=f"{present} without its {missing}") as error:
        opened(complete | tensors, module="")
    assert str(error.value).count("\n") == 4


MISFITS = {
    "ranks of lora": {"lora_up__weight": (5, 2), "lora_down__weight": (3, 6)},
    "rank of mid": {
        "lora_up__weight": (5, 2), "lora_down__weight": (2, 6), "lora_mid__weight": (3, 2, 3, 3)},
    "vector": {"lora_up__weight": (5, 2), "lora_down__weight": (12,)},
    "empty": {"lora_up__weight": (5, 0), "lora_down__weight": (0, 6)},
    "two products": {
        "hada_w1_a": (5, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6)},
    "one product": {
        "hada_w1_a": (5, 2), "hada_w1_b": (3, 6), "hada_w2_a": (5, 2), "hada_w2_b": (2, 6)},
    "one tucker side": {
        "hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 5), "hada_w1_b": (2, 6), "hada_w2_a": (2, 5),
        "hada_w2_b": (2, 6)},
    "tucker": {
        "lokr_w1": (2, 2), "lokr_t2": (2, 3, 3, 3), "lokr_w2_a": (2, 5), "lokr_w2_b": (2, 6)},
    "first tucker": {"lokr_w1": (2, 2), "lokr_t1": (2, 2, 3, 3), "lokr_w2": (2, 2)},
    "whole and product": {"lokr_w1": (2, 2), "lokr_w1_a": (2, 2), "lokr_w2": (2, 2)},
    "glora": {
        "a1__weight": (6, 2), "a2__weight": (2, 6), "b1__weight": (5, 3), "b2__weight": (2, 6)},
    "glora tucker": {"a1__weight": (6, 2), "bm__weight": (2, 2, 3, 3)},
    "blocks": {"oft_blocks": (2, 3, 4)},
    "butterfly": {"oft_blocks": (3, 2, 4, 4)},
    "odd butterfly": {"oft_blocks": (1, 2, 3, 3)},
    "rescale": {"oft_blocks": (2, 3, 3), "rescale": (5, 1)},
    "ia3": {"weight": (5, 2), "on_input": ()},
    "ia3 scalar": {"weight": (), "on_input": ()},
    "magnitude": {"lora_up__weight": (5, 2), "lora_down__weight": (2, 6), "dora_scale": (4, 1)},
    "magnitude of a difference": {"diff": (5, 6), "dora_scale": (5, 1)},
    "two kinds": {"lora_up__weight": (5, 2), "lora_down__weight": (2, 6), "diff": (5, 6)},
}  # fmt: skip


@pytest.mark.parametrize("shapes", MISFITS.values(), ids=MISFITS)
def test_tensors_that_do_not_fit_are_an_error(opened, rng, shapes):
    with pytest.raises(AdapterError) as error:
        opened(random(rng, **shapes), gaussian(5, 6, rng=rng))
    assert str(error.value).count("\n") == 4
    assert FLAT in error.value.where + error.value.got


def test_stray_tensors_are_unread(opened, rng):
    stray = {"weight": torch.ones(5, 6), "reshape_weight": torch.tensor([5, 6])}
    updates = opened(lora(rng) | alpha(2.0) | stray)
    assert set(updates.unread) == {f"{FLAT}.{name}" for name in stray}


def test_sets_of_formulas_are_picklable(opened, rng, monkeypatch):
    tensors = lora(rng) | alpha(2.0) | {"dora_scale": torch.ones(5, 1)}
    updates = opened(tensors, gaussian(5, 6, rng=rng))
    function = updates.sites[0].recipe.function
    # Collecting doctests imports the module a second time.
    monkeypatch.setattr(importlib.import_module(function.__module__), function.__name__, function)
    again = pickle.loads(pickle.dumps(updates))
    assert torch.equal(only(again).dense(), only(updates).dense())
