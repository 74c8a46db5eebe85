"""``rankscope rank`` and ``rankscope spectrum``: of weights, with advice, of rounded files."""

import json

import pytest
import torch
from click.testing import CliRunner
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import load_file, save_file

from rankscope.cli import cli

EXTRA = (
    "noise_share noise_gain noise_affected factor_rank nuclear_rank bulk_edge bulk_edge_rank"
    " hard_threshold_rank base_cosine relative_rank_1 rank_above_base decay_exponent"
    " decay_distance decay_tail"
)
DESIGNED = (
    "module layer kind rows columns ceiling frobenius spectral relative_norm numerical_rank"
    " stable_rank participation_rank effective_rank energy_entropy_rank energy_rank_90"
    " energy_rank_95 energy_rank_99 top1_energy noise_edge rank_above_noise unchanged_fraction"
    " stored_dtype state method error_bound"
)


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")


def rows_of(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["rows"]


@pytest.fixture
def adapter(tmp_path, rng):
    modules = [f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qv"]
    return write_peft(tmp_path / "adapter", peft_tensors(modules, 4, rng), r=4)


@pytest.fixture
def checkpoint(tmp_path, rng):
    tensors = {
        f"layers.{n}.{kind}_proj.weight": gaussian(12, 8, rng=rng).float()
        for n in range(2)
        for kind in "qvo"
    }
    save_file(tensors, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def test_columns_stand_in_the_order_of_the_schema(adapter):
    designed = DESIGNED.replace("kind ", "kind expert ")
    assert list(rows_of("rank", adapter)[0]) == f"{designed} {EXTRA}".split()


def test_what_is_undefined_is_null(adapter):
    row = rows_of("rank", adapter)[0]
    undefined = (
        "relative_norm noise_edge rank_above_noise unchanged_fraction noise_share noise_gain"
        " noise_affected bulk_edge bulk_edge_rank hard_threshold_rank base_cosine"
        " relative_rank_1 rank_above_base expert"
    )
    assert {name for name, value in row.items() if value is None} == set(undefined.split())


def test_the_printed_table_is_narrow(adapter):
    header = run("rank", adapter).stdout.splitlines()[0]
    assert "effective_rank" in header
    assert "decay_exponent" not in header
    assert "noise_share" not in header  # there is none in an adapter
    assert len(header) < 200


def test_of_weight(adapter, checkpoint):
    alone = rows_of("rank", checkpoint, "--of", "weight")
    assert len(alone) == 6
    assert {row["stored_dtype"] for row in alone} == {"float32"}
    modules = [row["module"] for row in rows_of("rank", adapter)]
    changed = rows_of("rank", adapter, "--of", "weight", "--base", checkpoint)
    assert [row["module"] for row in changed] == modules
    whole = {row["module"]: row["frobenius"] for row in alone}
    assert all(row["frobenius"] == pytest.approx(whole[row["module"]]) for row in changed)
    chosen = rows_of("rank", checkpoint, "--of", "weight", "--kind", "o", "--layer", "1")
    assert [row["module"] for row in chosen] == ["layers.1.o_proj"]
    spectra = rows_of("spectrum", checkpoint, "--of", "weight")
    assert spectra[0]["singular_values"][0] == pytest.approx(alone[0]["spectral"])


def test_of_weight_that_is_none(adapter, checkpoint):
    result = run("rank", adapter, "--of", "weight")
    assert result.exit_code == 1
    assert "no base weights" in result.stderr
    assert "Traceback" not in result.stderr
    assert run("rank", checkpoint).exit_code == 1  # ΔW of a checkpoint needs its base
    assert run("rank", checkpoint, "--of", "factor").exit_code == 2


def test_advice(adapter, tmp_path):
    result = run("rank", adapter, "--advise", "--json", "-o", tmp_path / "x.json")
    advice = json.loads(result.stdout)["advice"]
    assert advice["rule"] == "energy_95"
    assert set(advice["rank_pattern"]) == {row["module"] for row in rows_of("rank", adapter)}
    assert all(1 <= rank <= 4 for rank in advice["rank_pattern"].values())
    assert {"module", "rule", "rank", "relative_error", "parameters", "bytes"} == set(
        advice["rows"][0]
    )
    assert json.loads((tmp_path / "x.json").read_text())["advice"] == advice
    assert "advice" not in json.loads(run("rank", adapter, "--json").stdout)
    printed = run("rank", adapter, "--advise").stdout.splitlines()
    assert json.loads(printed[-1])["rank_pattern"] == advice["rank_pattern"]


def test_budget(adapter):
    def pattern(*flags):
        result = run("rank", adapter, "--json", *flags)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["advice"]["rank_pattern"]

    assert sum(pattern("--budget", "100").values()) == 5  # 20 parameters a direction
    assert pattern("--budget", "400B") == pattern("--budget", "100")
    assert sum(pattern("--budget", "0.4kB", "--dtype", "bfloat16").values()) == 10


@pytest.mark.parametrize("budget", ["7", "0", "-1", "35M", "much", "1e3", "10 bananas", ""])
def test_bad_budgets_are_five_lines(adapter, budget):
    result = run("rank", adapter, f"--budget={budget}")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 5


def test_usage(adapter):
    for flags in (["--dtype", "int4"], ["--seed", "-1"], ["--seed", "x"], ["--budget"]):
        assert run("rank", adapter, *flags).exit_code == 2
        assert run("spectrum", adapter, *flags).exit_code == 2
    assert run("spectrum", adapter, "--advise").exit_code == 2


def test_figures(adapter, tmp_path):
    for command in ("rank", "spectrum"):
        path = tmp_path / f"{command}.svg"
        assert run(command, adapter, "-q", "-o", path).exit_code == 0
        assert path.stat().st_size


def test_the_readmes_example_and_the_same_file_in_bf16(data, tmp_path):
    pytest.importorskip("rankscope.measures.noise")
    flags = ("--base", data / "base", "--layer", "1", "--kind", "q,v")
    exact = rows_of("rank", data / "sql-full", *flags)
    assert [row["module"] for row in exact] == ["blocks.1.attn.q", "blocks.1.attn.v"]
    assert all(row["noise_edge"] is None for row in exact)
    assert all(row["stored_dtype"] == "float32" for row in exact)
    tuned = load_file(data / "sql-full" / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in tuned.items()}
    save_file(half, tmp_path / "model.safetensors")
    result = run("rank", tmp_path / "model.safetensors", *flags, "--json")
    assert "rounding of the storage (bfloat16) counts in numerical_rank" in result.stderr
    for one, two in zip(exact, json.loads(result.stdout)["rows"], strict=True):
        assert two["stored_dtype"] == "bfloat16"
        assert 0 < two["noise_edge"] < two["spectral"]
        assert two["rank_above_noise"] < two["numerical_rank"] == one["numerical_rank"]
        assert "numerical_rank" in two["noise_affected"]
        assert 0 < two["noise_share"] < 0.01
        # What the noise does not touch is as it was.
        assert two["stable_rank"] == pytest.approx(one["stable_rank"], rel=0.01)
        assert abs(two["energy_rank_90"] - one["energy_rank_90"]) <= 2
    spectra = rows_of("spectrum", tmp_path / "model.safetensors", *flags)
    rows = json.loads(result.stdout)["rows"]
    assert [r["noise_edge"] for r in spectra] == [r["noise_edge"] for r in rows]


def test_the_seed_is_that_of_the_noise(data, tmp_path):
    pytest.importorskip("rankscope.measures.noise")
    tuned = load_file(data / "sql-full" / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tuned.items()}, tmp_path / "model.safetensors")
    flags = ("--base", data / "base", "--include", "blocks.0.attn.o")

    def edge(seed):
        return rows_of("rank", tmp_path / "model.safetensors", *flags, "--seed", seed)[0][
            "noise_edge"
        ]

    assert edge(1) == edge(1)
    assert edge(1) != edge(2)
    assert edge(1) == pytest.approx(edge(2), rel=0.05)


def test_a_base_of_another_model_is_questioned(data, tmp_path, rng):
    base = load_file(data / "base" / "model.safetensors")
    other = {
        name: 0.05 * torch.randn(tensor.shape, generator=rng)
        for name, tensor in base.items()
        if tensor.ndim == 2
    }
    save_file(other, tmp_path / "other.safetensors")
    flags = ("--base", tmp_path / "other.safetensors", "--kind", "q")
    assert "right base" in run("rank", data / "sql-full", *flags).stderr
