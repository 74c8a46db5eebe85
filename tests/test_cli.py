"""The command line: stdout is data, stderr everything else, exit codes as documented."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from oracles import peft_tensors, write_peft
from safetensors.torch import save_file

from rankscope.cli import cli

ROW_FIELDS = {
    "info": "source format modules rank alpha scale dtype base_model parameters bytes unread",
    "similarity": "module layer kind side dimension rank_a rank_b phi phi_first p_first phi_full"
    " chance_full chance_sd z_full p_full p_adjusted shared_directions shared_edge cosines",
    "rank": "module layer kind rows columns ceiling frobenius spectral relative_norm"
    " numerical_rank stable_rank participation_rank effective_rank energy_entropy_rank"
    " energy_rank_90 energy_rank_95 energy_rank_99 top1_energy noise_edge rank_above_noise"
    " unchanged_fraction stored_dtype state method error_bound",
    "spectrum": "module layer kind singular_values noise_edge energy method error_bound",
}


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="rankscope")


def assert_five_lines(result, code=1):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:5]] == [
        "where",
        "expected",
        "got",
        "fix",
    ]
    return result.stderr


@pytest.fixture
def adapters(tmp_path, rng):
    modules = [f"layers.{n}.{kind}_proj" for n in range(3) for kind in "qv"]
    return [
        write_peft(tmp_path / name, peft_tensors(modules, rank, rng), r=rank)
        for name, rank in (("a", 2), ("b", 4))
    ]


def arguments_of(command, adapters):
    return [command, *(adapters if command == "similarity" else adapters[:1])]


@pytest.mark.parametrize("command", ROW_FIELDS)
class TestEveryCommand:
    def test_json(self, adapters, command):
        result = run(*arguments_of(command, adapters), "--json")
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        assert content["schema"] == f"rankscope.{command}/1"
        assert set(ROW_FIELDS[command].split()) <= set(content["rows"][0])
        provenance = content["provenance"]
        assert {"inputs", "options", "versions", "device", "threads"} <= set(provenance)

    def test_table_and_files(self, adapters, command, tmp_path):
        outputs = [tmp_path / f"x{suffix}" for suffix in (".json", ".csv", ".md")]
        flags = [part for path in outputs for part in ("-o", path)]
        result = run(*arguments_of(command, adapters), *flags)
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) > 1
        assert all(path.stat().st_size for path in outputs)

    def test_quiet(self, adapters, command, tmp_path):
        result = run(*arguments_of(command, adapters), "-q", "-o", tmp_path / "x.json")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")

    def test_help_has_an_example(self, adapters, command):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Example: rankscope" in " ".join(result.stdout.split())

    def test_missing_file(self, adapters, command):
        sources = ["nowhere"] * (2 if command == "similarity" else 1)
        assert "no such file" in assert_five_lines(run(command, *sources))

    def test_unknown_output_is_refused_before_the_work(self, adapters, command):
        assert_five_lines(run(*arguments_of(command, adapters), "-o", "x.doc"))

    def test_usage_errors(self, adapters, command):
        assert run(command).exit_code == 2
        assert run(*arguments_of(command, adapters), "--nonsense").exit_code == 2


def test_similarity_numbers_are_the_libraries(adapters):
    import rankscope as rs

    content = json.loads(run("similarity", *adapters, "--json", "--side", "left").stdout)
    table = rs.similarity(*adapters, side="left").table
    assert [row["phi"] for row in content["rows"]] == [phi.tolist() for phi in table.phi]
    assert {row["side"] for row in content["rows"]} == {"left"}
    row = content["rows"][0]
    assert (row["rank_a"], row["rank_b"], row["dimension"]) == (2, 4, 12)
    assert row["phi_full"] == row["phi"][1][3]


def test_selection(adapters):
    def modules(*flags):
        content = json.loads(run("rank", adapters[0], "--json", *flags).stdout)
        return [row["module"] for row in content["rows"]]

    assert modules("--kind", "q") == [f"layers.{n}.q_proj" for n in range(3)]
    assert modules("--layer", "1-2", "--kind", "v,k") == ["layers.1.v_proj", "layers.2.v_proj"]
    assert modules("--layer", "0,2", "--include", "*q_proj") == [
        "layers.0.q_proj",
        "layers.2.q_proj",
    ]
    assert len(modules("--exclude", "layers.0.*", "--exclude", "*v_proj")) == 2
    assert_five_lines(run("rank", adapters[0], "--layer", "77"))


@pytest.mark.parametrize("flags", [["--layer", "x"], ["--layer", "5-2"], ["--kind", "z"]])
def test_selection_that_is_no_selection(adapters, flags):
    assert run("rank", adapters[0], *flags).exit_code == 2


def test_alpha_and_its_absence(tmp_path, rng):
    path = tmp_path / "adapter_model.safetensors"
    save_file(peft_tensors(["h.0.q"], 4, rng), path)
    plain, told = (run("rank", path, "--json", *f) for f in ([], ["--alpha", "8"]))
    assert "scale is unknown" in plain.stderr
    norms = [json.loads(r.stdout)["rows"][0]["frobenius"] for r in (plain, told)]
    assert norms[1] == pytest.approx(2 * norms[0])
    info = json.loads(run("info", path, "--json").stdout)["rows"][0]
    assert info["scale"] is None


def test_info_of_several_sources(adapters):
    result = run("info", *adapters, "--json", "--modules", "--metadata")
    content = json.loads(result.stdout)
    assert [row["rank"] for row in content["rows"]] == [2, 4]
    assert [row["scale"] for row in content["rows"]] == [4.0, 2.0]
    assert len(content["modules"]) == 12
    assert {"module", "shape", "rank", "scale", "format"} <= set(content["modules"][0])
    assert content["modules"][0]["shape"] == [12, 8]
    assert content["metadata"]
    assert "layers.2.v_proj" in run("info", *adapters, "--modules").stdout


def test_info_of_a_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3)}, path)
    row = json.loads(run("info", path, "--json").stdout)["rows"][0]
    assert row["format"] == "checkpoint"
    assert row["modules"] == 1
    assert row["unread"] == ["a.bias"]
    assert row["parameters"] == 9
    assert row["bytes"] == 36


def test_base_serves_whichever_side_is_a_checkpoint(tmp_path, rng, adapters):
    base = {f"layers.{n}.q_proj.weight": torch.zeros(12, 8) for n in range(3)}
    tuned = {name: torch.randn(12, 8, generator=rng) for name in base}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    flags = ["--base", tmp_path / "base.safetensors", "--json"]
    for sources in (
        (adapters[0], tmp_path / "tuned.safetensors"),
        (tmp_path / "tuned.safetensors", adapters[0]),
    ):
        content = json.loads(run("similarity", *sources, *flags).stdout)
        assert len(content["rows"]) == 6
    assert len(content["unmatched_b"]) == 3
    assert_five_lines(run("rank", tmp_path / "tuned.safetensors"))


def test_strict(adapters, tmp_path, rng):
    assert run("similarity", *adapters, "--strict").exit_code == 0
    more = peft_tensors(["layers.0.q_proj", "layers.9.q_proj"], 2, rng)
    extra = write_peft(tmp_path / "extra", more, r=2)
    assert run("similarity", adapters[0], extra).exit_code == 0
    assert "one side only" in assert_five_lines(run("similarity", adapters[0], extra, "--strict"))
    unread = write_peft(tmp_path / "unread", more | {"bias": torch.ones(2)}, r=2)
    assert "--strict" in assert_five_lines(run("rank", unread, "--strict"))


def test_untrained_adapter_is_done_with_a_note(tmp_path, rng):
    tensors = peft_tensors(["h.0.q", "h.1.q"], 2, rng)
    for name in tensors:
        if "lora_B" in name:
            tensors[name].zero_()
    folder = write_peft(tmp_path / "zero", tensors, r=2)
    for command in (["rank", folder], ["similarity", folder, folder], ["spectrum", folder]):
        result = run(*command, "--json")
        assert result.exit_code == 0, result.output
        assert len(json.loads(result.stdout)["rows"]) >= 2
    assert "untrained" in run("rank", folder).stderr
    assert run("similarity", folder, folder, "-o", tmp_path / "x.svg").exit_code == 0


def test_some_updates_that_cannot_be_measured(tmp_path, rng):
    tensors = peft_tensors(["h.0.q", "h.1.q"], 2, rng)
    tensors["base_model.model.h.1.q.lora_A.weight"][0, 0] = float("nan")
    folder = write_peft(tmp_path / "nan", tensors, r=2)
    result = run("rank", folder, "--json")
    assert result.exit_code == 3
    content = json.loads(result.stdout)
    assert [row["module"] for row in content["rows"]] == ["h.0.q"]
    assert content["failures"][0]["module"] == "h.1.q"
    assert "h.1.q" in result.stderr
    assert "Traceback" not in result.stderr
    assert_five_lines(run("rank", folder, "--include", "h.1.*"))


def test_debug_shows_the_traceback(adapters):
    with pytest.raises(Exception, match="cannot open"):
        CliRunner().invoke(cli, ["rank", "nowhere", "--debug"], catch_exceptions=False)


def test_output_that_cannot_be_written(adapters, tmp_path):
    (tmp_path / "file").touch()
    result = run("rank", adapters[0], "-q", "-o", tmp_path / "file" / "x.json")
    assert "cannot write" in assert_five_lines(result)


def test_version():
    assert "rankscope" in run("--version").stdout


def test_a_reader_that_leaves_early_is_no_error(adapters):
    command = f"{sys.executable} -c 'from rankscope.cli import main; main()' rank {adapters[0]}"
    done = subprocess.run(
        f"{command} | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(" ") or done.stdout.startswith("module")
    assert "Traceback" not in done.stderr


def test_interrupt_exits_with_130(adapters, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("rankscope.analysis.engine.study.shown", interrupt)
    result = run("rank", adapters[0])
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_unexpected_errors_are_five_lines_too(adapters, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("rankscope.analysis.rank.rank_row", fail)
    assert "a mistake of ours" in assert_five_lines(run("rank", adapters[0]))


def test_module_names_cannot_drive_the_terminal(tmp_path, rng):
    folder = write_peft(tmp_path / "evil", peft_tensors(["h.0.\x1b[2Jq"], 2, rng), r=2)
    assert "\x1b" not in run("rank", folder).output


def test_real_process_keeps_stderr_empty_off_a_terminal(adapters):
    done = subprocess.run(
        [sys.executable, "-m", "rankscope", "similarity", *map(str, adapters), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stderr == ""
    json.loads(done.stdout)


@pytest.mark.parametrize(
    "option", [("--layer", "9"), ("--include", "attn*"), ("--kind", "up")], ids=str
)
@pytest.mark.parametrize("command", ["similarity", "rank", "compare"])
def test_a_selection_of_nothing_says_what_there_is(adapters, command, option):
    given = adapters[:1] if command == "rank" else adapters
    told = assert_five_lines(run(command, *given, *option))
    assert "the selection leaves no module" in told
    assert "layers.0.q_proj; kinds q, v; layers 0 to 2" in told


def test_a_misspelt_command_is_guessed(adapters):
    result = run("similarty", *adapters)
    assert result.exit_code == 2
    assert "Did you mean 'similarity'?" in result.stderr


def test_an_adapter_is_no_base(adapters):
    assert "an adapter is no base" in assert_five_lines(run("rank", "--base", *adapters))


def test_a_source_against_itself_is_named(adapters):
    assert "A and B are the same files" in run("similarity", adapters[0], adapters[0]).stderr
    assert "the same files" not in run("similarity", *adapters).stderr


def test_the_cut_of_full_updates_is_named(tmp_path):
    for n, name in enumerate(("base", "tuned", "other")):
        weight = torch.randn(65, 65, generator=torch.Generator().manual_seed(n))
        save_file({"layers.0.q_proj.weight": weight}, tmp_path / f"{name}.safetensors")
    base, tuned, other = (tmp_path / f"{n}.safetensors" for n in ("base", "tuned", "other"))
    told = run("similarity", tuned, other, "--base", base, "--max-i", "3", "-v").stderr
    assert "other: of full updates the first 64 directions" in told
    assert "tuned: of full" not in told


def test_a_wide_table_is_cut_between_columns_for_a_narrow_terminal(adapters, monkeypatch):
    whole = run("similarity", *adapters).stdout
    monkeypatch.setenv("COLUMNS", "80")
    parts = run("similarity", *adapters).stdout.split("\n\n")
    assert max(map(len, "\n".join(parts).splitlines())) <= 80
    heads = [part.splitlines()[0].split() for part in parts]
    assert all(head[:3] == ["module", "kind", "side"] for head in heads)  # what a row is of
    assert [name for head in heads for name in head[3:]] == whole.splitlines()[0].split()[3:]
