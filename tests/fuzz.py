"""Damages small valid sources at random, and demands an error in five lines or finite numbers.

``python tests/fuzz.py --minutes 10 --seed 1`` for a long run, ``--only 1:8712`` for one case. A
case is known by the seed and its number. Each must end within seconds and a bounded memory.
"""

import argparse
import json
import math
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from fuzz_specimens import CONTAINERS, source_and_base, write_all
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rankscope as rs
from rankscope.errors import RankscopeError

SECONDS = 10  # for one case; all take milliseconds
MEMORY = 512 * 2**20  # more than the process has when it begins

VALUES = [
    *(None, True, False, -1, 0, 1, 2, 3, 8, 65, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 5e-324),
    *(math.nan, math.inf, "", "16", "nan", "LORA", "a" * 5000, "../x", "\x1b[2J", "(a|a)*b", "(("),
    *([], {}, [[]], {"a": []}, [0], [10**9, 10**9], ["q_proj"], [[0, 1]], {"q_proj": 3}),
    *("pissa", "olora", "loftq", "corda", "ADALORA", "LOHA", "OFT", "BOFT", "VERA", "IA3"),
]  # fmt: skip
WORDS = [
    *("weight", "lora_A", "lora_B", "lora_a", "base_layer", "modules_to_save", "default", "alpha"),
    *("0", "1", "experts", "lora_magnitude_vector", "lora_mid", "dora_scale", "bias", "embed", ""),
    *("model", "base_model", "c_attn", "lora_E", "hada_w1_a", "lokr_w1", "oft_R", "scale", "[0]"),
    *("weight_scale", "SCB", "qweight", "absmax", "g_idx", "\x1b[2J", "\u202e", "é", "lora_up"),
]  # fmt: skip
DTYPES = [
    *(torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32),
    *(torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
]
NUMBERS = [math.nan, math.inf, -math.inf, 0.0, 1e38, 1e300, 1e-310, 65504.0, -1.0]


def damage(folder, rng):
    """Change one to three things about the files of a folder."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        ways = [change_bytes, *WAYS.get(path.suffix, ())]
        way = rng.choice([*ways, *ways[1:], *ways[1:]])
        try:
            way(path, rng)
        except Exception:  # it was broken before: what reads it here is no part of the test
            change_bytes(path, rng)


def change_bytes(path, rng):
    path.write_bytes(changed(bytearray(path.read_bytes()), rng))


def changed(content, rng):
    """Return bytes with some flipped, cut, moved, repeated, or replaced by large numbers."""
    if not content:
        return bytes([rng.randrange(256)])
    # Headers stand in front, or behind in an archive.
    reach = len(content) if rng.random() < 0.3 else min(len(content), 600)
    place = rng.randrange(reach)
    place = len(content) - 1 - place if rng.random() < 0.15 else place
    size = rng.choice([1, 2, 4, 8, 64, 500])
    way = rng.randrange(7)
    if way == 0:
        for _ in range(rng.choice([1, 1, 3, 20])):
            content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif way == 1:
        content[place] = rng.randrange(256)
    elif way == 2:
        del content[place:]
    elif way == 3:
        del content[place : place + size]
    elif way == 4:
        start = rng.randrange(len(content))
        content[place:place] = content[start : start + size]
    elif way == 5:
        number = rng.choice(
            [0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
        )
        part = struct.pack("<Q", number)[: rng.choice([2, 4, 8])]
        content[place : place + len(part)] = part
    else:
        content[place : place + size] = bytes([rng.choice([0, 0x7F, 0xFF])]) * size
    return bytes(content)


def change_json(path, rng):
    path.write_text(json.dumps(changed_tree(json.loads(path.read_text()), rng)))


def changed_tree(tree, rng):
    """Return a tree with one value replaced, removed, renamed, or buried."""
    places = list(walk(tree))
    if not places:
        return rng.choice(VALUES)
    owner, key = rng.choice(places)
    way = rng.randrange(6)
    if way == 0:
        del owner[key]
    elif way == 1 and isinstance(owner, dict):
        owner[rng.choice([*WORDS, mangled(key, rng)])] = owner.pop(key)
    elif way == 2:
        other, name = rng.choice(places)
        owner[key] = json.loads(json.dumps(other[name]))
    elif way == 3:
        for _ in range(rng.choice([1, 2, 50])):
            owner[key] = [owner[key]] if rng.random() < 0.5 else {"a": owner[key]}
    else:
        owner[key] = rng.choice(VALUES)
    return tree


def walk(tree):
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(entries):
        yield tree, key
        if isinstance(value, dict | list):
            yield from walk(value)


def mangled(name, rng):
    """Return a name with a word of it replaced, removed, added or cut."""
    words = name.split(".")
    place = rng.randrange(len(words))
    way = rng.randrange(4)
    if way == 0:
        words[place] = rng.choice(WORDS)
    elif way == 1:
        words.insert(place, rng.choice(WORDS))
    elif way == 2:
        del words[place]
    else:
        words[place] = words[place][: rng.randrange(len(words[place]) + 1)]
    return ".".join(words)


def changed_tensors(tensors, rng):
    """Return a dictionary with tensors renamed, reshaped, converted, spoiled, or gone."""
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    way = rng.randrange(7)
    if way == 0:
        del tensors[name]
    elif way == 1:
        tensors[mangled(name, rng)] = tensors.pop(name)
    elif way == 2:
        tensors[mangled(name, rng)] = tensor.clone()
    elif way == 3:
        tensors[name] = tensor.to(rng.choice(DTYPES))
    elif way == 4 and tensor.is_floating_point() and tensor.numel():
        spoiled = tensor.double() if rng.random() < 0.5 else tensor.float()
        spoiled.view(-1)[: rng.choice([1, 10**9])] = rng.choice(NUMBERS)
        tensors[name] = spoiled
    else:
        tensors[name] = reshaped(tensor, rng)
    return tensors


def reshaped(tensor, rng):
    way = rng.randrange(8)
    if way == 0:
        return tensor.flatten()
    if way == 1:
        return tensor.flatten()[:1].reshape(())
    if way == 2:
        return tensor[:0]
    if way == 3:
        return tensor.mT.contiguous()
    if way == 4:
        return tensor[None].clone()
    if way == 5:
        return tensor[..., None].clone()
    if way == 6:
        return torch.cat([tensor, tensor], rng.randrange(tensor.ndim))
    return tensor.narrow(rng.randrange(tensor.ndim), 0, 1).clone()


def change_tensors(path, rng):
    tensors = changed_tensors(load_file(path), rng)
    save_file(tensors, path, {"format": "pt"})


def change_header(path, rng):
    """Change the JSON in front of the numbers; its length stays right."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tree = changed_tree(json.loads(content[8 : 8 + length]), rng)
    text = json.dumps(tree).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def change_metadata(path, rng):
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    key = rng.choice(["lora_adapter_metadata", "ss_network_args", "alpha", "ss_network_alpha"])
    metadata[key] = rng.choice([json.dumps(rng.choice(VALUES)), "[" * 5000, "{", '{"alpha": "x"}'])
    save_file(load_file(path), path, metadata)


def change_torch(path, rng):
    content = torch.load(path, weights_only=True)
    holder = content.get("model", content)
    changed_tensors(holder, rng)
    legacy = not zipfile.is_zipfile(path)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def change_arrays(path, rng):
    with np.load(path) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    tensors = changed_tensors(tensors, rng)
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})


def change_member(path, rng):
    """Change one member of an archive; its checksum is right again."""
    with zipfile.ZipFile(path) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    chosen = rng.choice(list(members))
    members[chosen] = changed(bytearray(members[chosen]), rng)
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members.items():
            archive.writestr(info.filename, content, info.compress_type)


WAYS = {
    ".json": (change_json,),
    ".safetensors": (*[change_tensors] * 3, *[change_header] * 2, change_metadata),
    ".bin": (change_torch, change_member),
    ".pt": (change_torch, change_member),
    ".npz": (change_arrays, change_member),
}


def judge(source, base):
    """Open, describe and walk a source: a `RankscopeError` of five lines, or finite numbers."""
    with allowed():
        rs.info(source, modules=True, metadata=True).to_dict()
    with allowed():
        text = rs.info(source, base=base).to_text()
        assert all(line.isprintable() for line in text.splitlines()), text
    for options in ({"base": base}, {"alpha": 16}):
        with allowed():
            walk_updates(rs.open_updates(source, **options))


def walk_updates(updates):
    for site in updates.sites:
        with allowed():
            update = updates[site.module]
            assert update.shape == site.shape
            assert bool(update.dense().isfinite().all())
        with allowed():
            weight = updates.weight(site.module)
            assert tuple(weight.shape) == site.shape


@contextmanager
def allowed():
    try:
        yield
    except RankscopeError as error:
        lines = str(error).split("\n")
        assert len(lines) == 5, lines
        assert all(line.isprintable() for line in lines), lines


def case(seed, number, specimens, scratch):
    """Damage one of the specimens and judge it; return what was wrong, or None."""
    rng = random.Random(f"{seed}:{number}")
    names = sorted(folder.name for folder in specimens.iterdir())
    folder = specimens / rng.choice([*names, *CONTAINERS * 3])
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damage(scratch, rng)
    try:
        with hurried(), warnings.catch_warnings():
            warnings.simplefilter("error")
            judge(*source_and_base(scratch))
    except (Exception, Late):
        return f"{seed}:{number} {folder.name}\n{traceback.format_exc()}"
    return None


class Late(BaseException):
    """A case took too long; no reader's ``except Exception`` may swallow it."""


@contextmanager
def hurried():
    def late(signum, frame):
        raise Late(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bound_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case, as SEED:NUMBER; its files stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        specimens, scratch = Path(root, "specimens"), Path(root, "case")
        write_all(specimens)
        if options.only:
            seed, number = map(int, options.only.split(":"))
            scratch = Path(tempfile.mkdtemp(), "case")
            print(scratch, case(seed, number, specimens, scratch), sep="\n")
            return
        for folder in specimens.iterdir():
            judge(*source_and_base(folder))  # all is imported that will be
        bound_memory()
        sys.exit(bool(hunt(options, specimens, scratch)))


def hunt(options, specimens, scratch):
    """Judge case after case; print each kind of failure once and return how many there are."""
    began, failures = time.monotonic(), {}
    for number in range(options.cases):
        if time.monotonic() - began > 60 * options.minutes:
            break
        wrong = case(options.seed, number, specimens, scratch)
        if wrong:
            *_, place, _, last = ["", "", *wrong.strip().splitlines()]
            if failures.setdefault((place, last.split(":")[0]), wrong) is wrong:
                print(wrong, flush=True)
    print(f"{number + 1} cases, {len(failures)} kinds of failure", file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    main()
