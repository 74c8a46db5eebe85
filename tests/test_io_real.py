"""Published adapters: each opens as what it is, and adds what its factors multiply to."""

import pytest
import torch
from safetensors.torch import load_file

import rankscope as rs
from rankscope.errors import SourceError


def load(path):
    if path.suffix == ".bin":
        return torch.load(path, map_location="cpu", weights_only=True)
    return load_file(path)


def product(tensors, up, down):
    return tensors[up].double() @ tensors[down].double()


def numbered(tensors, module):
    return product(tensors, f"w_b_{module}", f"w_a_{module}")


def loralib(tensors, module):
    return product(tensors, f"{module}.lora_B", f"{module}.lora_A")


def peft(tensors, module):
    key = f"base_model.model.{module}"
    return product(tensors, f"{key}.lora_B.weight", f"{key}.lora_A.weight")


def merged(tensors, module):
    """q is the first third of the rows, v the last; k has no factors."""
    key = f"base_model.model.{module}"
    a, b = (tensors[f"{key}.lora_{x}.weight"].double() for x in "AB")
    b = b[..., 0]
    return torch.cat([b[:1024] @ a[:8], torch.zeros(1024, 1024).double(), b[1024:] @ a[8:]])


def cloneofsimo(tensors, module):
    return product(tensors, f"{module}:up", f"{module}:down")


def diffusers(tensors, module):
    path, _, name = module.removesuffix(".0").rpartition(".")
    key = f"{path}.processor.{name}_lora"
    return product(tensors, f"{key}.up.weight", f"{key}.down.weight")


def mlx(tensors, module):
    return product(tensors, f"{module}.lora_a", f"{module}.lora_b").T


SAM = "sam-vit-b/run-{}/lora_rank{}.safetensors"
Q = "self_attn.q_proj"
# File, format, modules, rank, scale, tensors that are no update, formula, one module.
CASES = [
    *((SAM.format(1, r), "w_a/w_b", 24, r, None, 0, numbered, "013") for r in (2, 4, 6, 8, 16)),
    (SAM.format(2, 8), "w_a/w_b", 24, 8, None, 0, numbered, "000"),
    ("roberta-base/loralib-mnli/roberta_base_lora_mnli.bin", "loralib", 24, 8, None, 4, loralib,
     "roberta.encoder.layer.11.attention.self.value"),
    ("roberta-base/peft-agnews/adapter_model.safetensors", "peft", 36, 4, 4, None, peft,
     "roberta.encoder.layer.3.attention.self.key"),
    ("sd-1.5/cloneofsimo/lora_disney.safetensors", "cloneofsimo", 192, 1, 1, 2, cloneofsimo,
     "unet:97"),
    ("sd-1.5/cloneofsimo/analog_svd_rank4.safetensors", "cloneofsimo", 192, 4, 1, 0, cloneofsimo,
     "text_encoder:13"),
    ("sd-1.5/diffusers/pytorch_lora_weights.safetensors", "diffusers", 128, 4, 1, 0, diffusers,
     "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0"),
    ("qwen2.5-0.5b/mlx/0000100_adapters.safetensors", "mlx", 8, 8, 10, 0, mlx,
     f"model.layers.20.{Q}"),
    ("qwen2.5-0.5b/mlx/0000200_adapters.safetensors", "mlx", 8, 8, 10, 0, mlx,
     "model.layers.23.self_attn.v_proj"),
    ("qwen2.5-0.5b/peft/checkpoint-23/adapter_model.safetensors", "peft", 48, 8, 2, 0, peft,
     f"model.layers.0.{Q}"),
    ("qwen2.5-0.5b/peft/final/adapter_model.safetensors", "peft", 48, 8, 2, 0, peft,
     f"model.layers.23.{Q}"),
    ("bloom/peft-merged-linear/adapter_model.bin", "peft-merged-linear", 24, 16, 2, 0, merged,
     "transformer.h.23.self_attention.query_key_value"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_opens_as_what_it_is(real, case):
    path, name, modules, rank, scale, unread, formula, module = case
    updates = rs.open_updates(real / path)
    assert (updates.format, len(updates)) == (name, modules)
    assert {(site.rank, site.scale) for site in updates.sites} == {(rank, scale)}
    assert unread is None or len(updates.unread) == unread
    truth = formula(load(real / path), module)
    update = updates[module]
    assert update.shape == updates.site(module).shape
    torch.testing.assert_close(update.dense(), (1 if scale is None else scale) * truth)
    assert torch.linalg.vector_norm(truth) > 0


def test_every_published_file_is_covered(real):
    found = {
        str(p.relative_to(real)) for s in ("safetensors", "bin") for p in real.rglob(f"*.{s}")
    }
    assert found == {case[0] for case in CASES}


def test_alpha_of_the_authors_script(real):
    updates = rs.open_updates(real / "roberta-base" / "loralib-mnli", alpha=16)
    assert {site.scale for site in updates.sites} == {2}
    assert {(site.kind, site.layer) for site in updates.sites} == {
        (kind, layer) for kind in "qv" for layer in range(12)
    }


def test_folder_of_two_steps_lists_them(real):
    with pytest.raises(SourceError, match="no single adapter") as caught:
        rs.open_updates(real / "qwen2.5-0.5b" / "mlx")
    assert "0000100_adapters.safetensors, 0000200_adapters.safetensors" in caught.value.got


def test_kinds_of_the_diffusers_names(real):
    updates = rs.open_updates(real / "sd-1.5" / "diffusers")
    assert {site.kind for site in updates.sites} == set("qkvo")
    assert len(updates.select(kind="o")) == 32
