"""Small valid sources of every format, to be damaged."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

OUT, IN, RANK = 12, 8, 2
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
FLAT = "lora_unet_blocks_0_attn1_to_q"


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def state_json(**content):
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def words(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def bytes_(*shape):
    return torch.arange(np.prod(shape)).reshape(shape).to(torch.uint8)


BASE = {f"{Q}.weight": normal(OUT, IN), f"{V}.weight": normal(OUT, IN), "lm_head.bias": normal(9)}
PATTERNS = {"r": RANK, "lora_alpha": 8, "rank_pattern": {"v_proj": 3}, "use_rslora": False}
PATTERNS |= {"alpha_pattern": {r".*\.(q|k)_proj": 4, "v_proj": 5}, "peft_version": "0.21.2"}


def peft(**tensors):
    return {f"base_model.model.{Q}.{name}": normal(*shape) for name, shape in tensors.items()}


def lora(out=OUT, in_=IN, dtype=torch.float32):
    names = {"lora_A.weight": (RANK, in_), "lora_B.weight": (out, RANK)}
    return {
        f"base_model.model.{module}.{name}": normal(*shape, dtype=dtype)
        for module in (Q, V)
        for name, shape in names.items()
    }


def tiny(**tensors):
    return {name.replace("__", "."): normal(*shape) for name, shape in tensors.items()}


# By name: the adapter's tensors and its configuration.
ADAPTERS = {
    "lora": (
        lora()
        | {f"base_model.model.{V}.lora_B.bias": normal(OUT), "lm_head.weight": normal(5, 4)},
        {"peft_type": "LORA", **PATTERNS},
    ),
    "lora bf16": (lora(dtype=torch.bfloat16), {"peft_type": "LORA", "r": RANK, "lora_alpha": 4}),
    "conv": (peft(**{"lora_A.weight": (2, 4, 3, 3), "lora_B.weight": (6, 2, 1, 1)}), PATTERNS),
    "embedding": (peft(lora_embedding_A=(2, 20), lora_embedding_B=(8, 2)), PATTERNS),
    "dora": (
        lora()
        | {f"base_model.model.{m}.lora_magnitude_vector": normal(OUT) for m in (Q, V)},
        {"peft_type": "LORA", "use_dora": True, "r": RANK, "lora_alpha": 4},
    ),
    "pissa": (lora(), {"peft_type": "LORA", "init_lora_weights": "pissa", "r": RANK}),
    "olora": (lora(), {"peft_type": "LORA", "init_lora_weights": "olora", "r": RANK}),
    "adalora": (
        peft(lora_A=(RANK, IN), lora_B=(OUT, RANK), lora_E=(RANK, 1)),
        {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 8},
    ),
    "vera": (
        peft(vera_lambda_b=(OUT,), vera_lambda_d=(RANK,))
        | {"base_model.vera_A": normal(RANK, IN), "base_model.vera_B": normal(OUT, RANK)},
        {"peft_type": "VERA", "r": RANK},
    ),
    "peft loha": (
        peft(hada_w1_a=(OUT, 2), hada_w1_b=(2, IN), hada_w2_a=(OUT, 2), hada_w2_b=(2, IN)),
        {"peft_type": "LOHA", "r": 2, "alpha": 4},
    ),
    "peft lokr": (
        peft(lokr_w1=(3, 2), lokr_w2_a=(4, 1), lokr_w2_b=(1, 4)),
        {"peft_type": "LOKR", "r": 1, "alpha": 4},
    ),
    "ia3": (peft(ia3_l=(OUT, 1)), {"peft_type": "IA3", "feedforward_modules": ["down"]}),
    "oft": (
        peft(**{"oft_R.weight": (2, 6)}),
        {"peft_type": "OFT", "use_cayley_neumann": True, "coft": True, "eps": 1e-3},
    ),
    "boft": (peft(boft_R=(2, 2, 4, 4), boft_s=(OUT, 1)), {"peft_type": "BOFT"}),
    "tokens": (
        peft(trainable_tokens_delta=(2, IN)),
        {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 3]},
    ),
    "experts": (
        tiny(
            base_model__model__mlp__experts__base_layer__lora_A__weight=(6, 8),
            base_model__model__mlp__experts__base_layer__lora_B__weight=(12, 6),
            base_model__model__mlp__experts__lora_A__weight=(6, 6),
            base_model__model__mlp__experts__lora_B__weight=(8, 6),
        ),
        {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "kohya": (
        tiny(**{f"{FLAT}.lora_up__weight": (OUT, 2), f"{FLAT}.lora_down__weight": (2, IN)})
        | {f"{FLAT}.alpha": torch.tensor(4.0), f"{FLAT}.dora_scale": normal(OUT, 1)},
        None,
    ),
    "tucker": (
        tiny(**{"lora_unet_c.lora_up.weight": (5, 2, 1, 1)})
        | tiny(**{"lora_unet_c.lora_down.weight": (2, 6, 1, 1)})
        | {"lora_unet_c.lora_mid.weight": normal(2, 2, 3, 3)},
        None,
    ),
    "lycoris": (
        tiny(lycoris_a__hada_w1_a=(5, 2), lycoris_a__hada_w1_b=(2, 6), lycoris_a__hada_w2_a=(5, 2))
        | tiny(lycoris_a__hada_w2_b=(2, 6), lycoris_b__lokr_w1=(2, 2), lycoris_b__lokr_w2=(3, 4))
        | {"lycoris_a.alpha": torch.tensor(1.0), "lycoris_c.diff": normal(4, 4)},
        None,
    ),
    "glora": (
        {f"{FLAT}.{part}.weight": normal(*shape)
         for part, shape in {"a1": (8, 2), "a2": (2, 8), "b1": (12, 2), "b2": (2, 8)}.items()},
        None,
    ),
    "kohya oft": ({f"{FLAT}.oft_blocks": normal(2, 2, 6, 6), f"{FLAT}.alpha": normal()}, None),
    "diffusers": (
        {"unet.attn1.to_q_lora.up.weight": normal(8, 2)}
        | {"unet.attn1.to_q_lora.down.weight": normal(2, 8)}
        | {"unet.attn1.to_q_lora.alpha": torch.tensor(4.0)},
        None,
    ),
    "cloneofsimo": ({"unet:0:up": normal(8, 2), "unet:0:down": normal(2, 4)}, None),
    "mlx": (
        {f"{Q}.lora_a": normal(IN, 2), f"{Q}.lora_b": normal(2, OUT), f"{Q}.m": normal(OUT)},
        {"lora_parameters": {"rank": 2, "scale": 10.0}, "num_layers": 4},
    ),
    "mlx experts": ({"up.lora_a": normal(3, 2, 4), "up.lora_b": normal(3, 5, 2)}, None),
    "torchtune": ({f"{Q}.lora_a.weight": normal(2, 8), f"{Q}.lora_b.weight": normal(6, 2)}, None),
    "litgpt": (
        {"transformer.h.0.attn.qkv.lora_A": normal(4, 8),
         "transformer.h.0.attn.qkv.lora_B": normal(16, 2)},
        None,
    ),
    "loralib": ({"a.0.q.lora_A": normal(2, 8), "a.0.q.lora_B": normal(12, 2)}, None),
    "merged linear": (
        {"a.0.q.lora_A.weight": normal(4, 8), "a.0.q.lora_B.weight": normal(16, 2, 1)},
        {"enable_lora": [True, False, True], "r": 2},
    ),
    "numbered": ({"w_a_000": normal(2, 8), "w_b_000": normal(8, 2)}, None),
    "generic": ({"block.lora_left": normal(12, 2), "block.lora_right": normal(2, 9)}, None),
}  # fmt: skip
STACKS = {
    "mlp.experts.gate_up_proj": normal(3, 12, 8),
    "mlp.experts.down_proj": normal(3, 8, 6),
    "blocks.0.attn1.to_q.weight": normal(OUT, IN),
}
# By name: a checkpoint's tensors and the quantization_config beside them.
QUANTISED = {
    "nf4": (
        {f"{Q}.weight": bytes_(48, 1), f"{Q}.weight.absmax": bytes_(2)}
        | {f"{Q}.weight.quant_map": normal(16), f"{Q}.weight.nested_absmax": normal(1)}
        | {f"{Q}.weight.nested_quant_map": normal(256)}
        | {f"{Q}.weight.quant_state.bitsandbytes__nf4": state_json(
            shape=[OUT, IN], blocksize=64, nested_blocksize=256, nested_offset=0.1)},
        {"quant_method": "bitsandbytes"},
    ),
    "int8": (
        {f"{Q}.weight": bytes_(OUT, IN).to(torch.int8), f"{Q}.SCB": normal(OUT)},
        {"quant_method": "bitsandbytes"},
    ),
    "gptq": (
        {f"{Q}.qweight": words(2, 16), f"{Q}.qzeros": words(2, 2), f"{Q}.scales": normal(2, 16)}
        | {f"{Q}.g_idx": torch.arange(16, dtype=torch.int32) // 8},
        {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": True},
    ),
    "awq": (
        {f"{Q}.qweight": words(16, 2), f"{Q}.qzeros": words(2, 2), f"{Q}.scales": normal(2, 16)},
        {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"},
    ),
    "fp8": (
        {f"{Q}.weight": normal(OUT, IN).to(torch.float8_e4m3fn),
         f"{Q}.weight_scale_inv": normal(3, 2)},
        {"quant_method": "fp8", "weight_block_size": [4, 4]},
    ),
    "mxfp4": (
        {"mlp.experts.up_proj_blocks": bytes_(2, 4, 1, 16),
         "mlp.experts.up_proj_scales": bytes_(2, 4, 1) + 120},
        {"quant_method": "mxfp4"},
    ),
    "compressed": (
        {f"{Q}.weight_packed": words(OUT, 1), f"{Q}.weight_scale": normal(OUT, 1),
         f"{Q}.weight_shape": torch.tensor([OUT, IN])},
        {"quant_method": "compressed-tensors", "format": "pack-quantized",
         "config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": True}}}},
    ),
}  # fmt: skip
# By other libraries than safetensors alone: each has a reader of its own.
CONTAINERS = ("torch", "legacy torch", "wrapped torch", "npz", "packed npz", "gguf", "shards")
# What the quantised weights were before, where that is not `BASE`.
TUNED = {name: {f"{Q}.weight": normal(16, 16)} for name in ("gptq", "awq")}
TUNED["mxfp4"] = {"mlp.experts.up_proj": normal(2, 32, 4)}


def source_and_base(folder):
    """Return the two paths of a specimen; the base is None where it has none."""
    paths = [folder / "x", folder / "base"]
    for n, path in enumerate(paths):
        single = path / "a.gguf"  # a folder of these is not searched
        paths[n] = single if single.exists() else path
    return paths[0], paths[1] if paths[1].exists() else None


def write_all(root):
    """Write every specimen: a folder each, with the source ``x`` and maybe its base ``base``."""
    for name, (tensors, config) in ADAPTERS.items():
        write(root / name / "x", tensors, {"format": "pt", "ss_network_args": "{}"})
        write_json(root / name / "x" / "adapter_config.json", config)
        write(root / name / "base", BASE | STACKS)
    for name, (tensors, config) in QUANTISED.items():
        write(root / name / "x", TUNED.get(name, BASE))
        write(root / name / "base", tensors)
        write_json(root / name / "base" / "config.json", {"quantization_config": config})
    write_other_containers(root)


def write_other_containers(root):
    torch_options = {"_use_new_zipfile_serialization": False}
    for name, options in {"torch": {}, "legacy torch": torch_options}.items():
        folder = root / name / "x"
        folder.mkdir(parents=True)
        torch.save(lora(), folder / "adapter_model.bin", **options)
        write_json(folder / "adapter_config.json", {"peft_type": "LORA", **PATTERNS})
    (root / "wrapped torch" / "x").mkdir(parents=True)
    nested = {"epoch": 3, "model": {f"module.{k}": v for k, v in BASE.items()}}
    torch.save(nested, root / "wrapped torch" / "x" / "checkpoint.pt")
    write(root / "wrapped torch" / "base", BASE)
    for name, save in {"npz": np.savez, "packed npz": np.savez_compressed}.items():
        for part in ("x", "base"):
            (root / name / part).mkdir(parents=True)
            arrays = {k: v.numpy() + (part == "x") for k, v in (BASE | STACKS).items()}
            save(root / name / part / "weights.npz", **arrays)
    write(root / "pair" / "x", {k: v + 1 for k, v in (BASE | STACKS).items()})
    write(root / "pair" / "base", BASE | STACKS)
    write_shards(root / "shards" / "x", {f"model.{k}": v * 2 for k, v in BASE.items()})
    write(root / "shards" / "base", BASE)
    write_gguf(root)


def write(folder, tensors, metadata=None):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata)


def write_json(path, content):
    if content is not None:
        path.write_text(json.dumps(content))


def write_shards(folder, tensors):
    folder.mkdir(parents=True)
    files = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for (name, tensor), file in zip(tensors.items(), files, strict=True):
        save_file({name: tensor}, folder / file)
    index = {"metadata": {}, "weight_map": dict(zip(tensors, files, strict=True))}
    write_json(folder / "model.safetensors.index.json", index)


def write_gguf(root):
    import gguf

    name = "blk.0.attn_q.weight"
    factors = {f"{name}.lora_a": normal(2, 32), f"{name}.lora_b": normal(32, 2)}
    wide = gguf.quants.quantize(normal(32, 32).numpy(), gguf.GGMLQuantizationType.Q8_0)
    for folder, tensors in {"gguf/x": factors, "gguf/base": {name: wide}}.items():
        (root / folder).mkdir(parents=True)
        writer = gguf.GGUFWriter(root / folder / "a.gguf", "llama")
        writer.add_type("adapter" if folder == "gguf/x" else "model")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 4)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        for key, tensor in tensors.items():
            packed = isinstance(tensor, np.ndarray)
            kind = gguf.GGMLQuantizationType.Q8_0 if packed else None
            writer.add_tensor(key, tensor if packed else tensor.numpy(), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
