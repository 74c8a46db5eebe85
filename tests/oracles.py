"""Matrices and adapters whose answers are known by construction."""

import json
import math

import torch
from safetensors.torch import save_file


def gaussian(*shape, rng):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def haar(d, k, rng):
    """k random orthonormal columns in d dimensions."""
    q, r = torch.linalg.qr(gaussian(d, k, rng=rng))
    return q * torch.sign(torch.diagonal(r))


def with_spectrum(s, out, in_, rng):
    """A matrix with the singular values `s` and random directions."""
    s = torch.as_tensor(s, dtype=torch.float64)
    return haar(out, len(s), rng) * s @ haar(in_, len(s), rng).T


def hadamard(d):
    """The orthonormal Hadamard basis; d is a power of two."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < d:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(d)


def rotated(x, complement, angles):
    """Columns of `x` turned towards those of `complement` by `angles`: the principal angles."""
    angles = torch.as_tensor(angles, dtype=torch.float64)
    return x * angles.cos() + complement * angles.sin()


def peft_tensors(modules, rank, rng, *, out=12, in_=8, dtype=torch.float32):
    tensors = {}
    for module in modules:
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = gaussian(rank, in_, rng=rng).to(dtype)
        tensors[f"{key}.lora_B.weight"] = gaussian(out, rank, rng=rng).to(dtype)
    return tensors


def write_peft(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def phi_by_definition(u, v, i, j):
    """φ(i, j) straight from its definition, without a shared product."""
    product = u[:, :i].T @ v[:, :j]
    return (torch.linalg.matrix_norm(product) ** 2 / min(i, j)).item()
