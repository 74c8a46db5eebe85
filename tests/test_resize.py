"""Resizing and extracting: the nearest matrix of a rank, written so that PEFT adds just that."""

import itertools
import json
import math
import weakref

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import gaussian, peft_tensors, with_spectrum, write_peft
from safetensors.torch import load_file, save_file
from test_cli import assert_five_lines, run
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import rankscope as rs
from rankscope.analysis.budget import parse_budget
from rankscope.errors import AdapterError, OutputError, SourceError, UpdateError
from rankscope.io.recipes import Difference
from rankscope.measures.allocation import allocate
from rankscope.training.weights import load_model

ROW = "module layer kind rank_before rank_after energy_kept relative_error best_error bytes"


def factored(*matrices, rank=None):
    """A state dict of a raw adapter (its scale 1) whose products are the matrices."""
    tensors = {}
    for n, matrix in enumerate(matrices):
        u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        k = rank or len(s)
        # A gauge in which the factors are nothing like singular vectors.
        gauge = np.random.default_rng(n).normal(size=(k, k))
        tensors[f"h.{n}.q.lora_B.weight"] = torch.tensor(u[:, :k] * s[:k] @ gauge)
        tensors[f"h.{n}.q.lora_A.weight"] = torch.tensor(np.linalg.solve(gauge, vt[:k]))
    return tensors


def pair_of(*matrices):
    """Base and tuned state dicts whose differences are the matrices."""
    names = [f"h.{n}.q.weight" for n in range(len(matrices))]
    base = {name: torch.zeros_like(m) for name, m in zip(names, matrices, strict=True)}
    return dict(zip(names, matrices, strict=True)), base


def truncated(matrix, k):
    """The nearest matrix of rank k, by NumPy."""
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return torch.tensor(u[:, :k] * s[:k] @ vt[:k])


def both_forms(matrix):
    yield rs.open_updates(factored(matrix), alpha=min(matrix.shape))
    yield rs.open_updates(*pair_of(matrix))


class TestTruncation:
    @pytest.mark.parametrize("k", [1, 3, 5])
    def test_the_planted_spectrum_is_cut(self, rng, k):
        planted = [7.0, 5.0, 2.0, 1.0, 0.5]
        for updates in both_forms(with_spectrum(planted, 20, 12, rng)):
            result = rs.resize(updates, rank=k)
            left = rs.svd(result.updates["h.0.q"]).values
            np.testing.assert_allclose(left, planted[:k], rtol=1e-6)
            row = result.table.iloc[0]
            rest = sum(s * s for s in planted[k:]) / sum(s * s for s in planted)
            assert row.rank_after == k
            assert row.best_error == pytest.approx(math.sqrt(rest), abs=1e-12)
            assert row.energy_kept == pytest.approx(1 - rest, abs=1e-12)
            # Only the rounding to float32 is added, at right angles to what is left out.
            assert row.relative_error**2 == pytest.approx(rest, abs=1e-7)
            assert row.bytes == k * (20 + 12) * 4

    def test_the_error_is_that_of_what_is_written(self, rng, tmp_path):
        matrix = with_spectrum([4.0, 3, 2, 1], 16, 10, rng)
        for n, dtype in enumerate(("float32", "bfloat16", "float16")):
            for m, updates in enumerate(both_forms(matrix)):
                result = rs.resize(updates, rank=2, dtype=dtype)
                folder = tmp_path / f"{n}{m}"
                result.save(folder)
                written = rs.open_updates(folder)["h.0.q"].dense()
                error = torch.linalg.norm(matrix - written) / torch.linalg.norm(matrix)
                assert result.table.relative_error[0] == pytest.approx(error.item(), rel=1e-9)
                stored = load_file(folder / "adapter_model.safetensors")
                assert {str(t.dtype) for t in stored.values()} == {f"torch.{dtype}"}
                assert sum(t.nbytes for t in stored.values()) == result.table.bytes[0]

    def test_before_rounding_it_is_eckart_youngs(self, rng):
        matrix = gaussian(9, 14, rng=rng)
        s = np.linalg.svd(matrix.numpy())[1]
        for k in range(1, 9):
            expected = math.sqrt((s[k:] ** 2).sum() / (s**2).sum())
            for updates in both_forms(matrix):
                row = rs.resize(updates, rank=k).table.iloc[0]
                assert row.best_error == pytest.approx(expected, abs=1e-12)
                assert row.relative_error >= row.best_error - 1e-12

    def test_a_small_remainder_keeps_its_digits(self, rng):
        matrix = with_spectrum([1.0, 1e-9], 8, 6, rng)
        updates = rs.open_updates(factored(matrix, rank=2), alpha=2)
        row = rs.resize(updates, rank=1).table.iloc[0]
        assert row.best_error == pytest.approx(1e-9, rel=1e-4)

    def test_the_remainder_of_a_partial_spectrum(self, rng):
        # A dense update is decomposed only as far as it is kept; the rest is energy less that.
        matrix = with_spectrum([5.0, 4.0, 3.0], 30, 20, rng)
        row = rs.extract(*pair_of(matrix), rank=2).table.iloc[0]
        assert row.best_error == pytest.approx(3 / math.sqrt(50), rel=1e-12)

    def test_factors_are_balanced(self, rng):
        for updates in both_forms(with_spectrum([9.0, 4.0, 1.0], 8, 8, rng)):
            update = rs.resize(updates, rank=3).updates["h.0.q"]
            for gram in (update.up.T @ update.up, update.down @ update.down.T):
                torch.testing.assert_close(gram, torch.diag(torch.tensor([9.0, 4, 1])))

    @given(
        s=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8),
        energy=st.floats(0.01, 1.0),
        seed=st.integers(0, 99),
    )
    def test_energy_is_enough_and_no_more_than_needed(self, s, energy, seed):
        rng = torch.Generator().manual_seed(seed)
        s = sorted(s, reverse=True)
        updates = rs.open_updates(
            factored(with_spectrum(s, 11, 9, rng), rank=len(s)), alpha=len(s)
        )
        row = rs.resize(updates, energy=energy).table.iloc[0]
        assert row.energy_kept >= energy * (1 - 1e-9)
        if row.rank_after > 1:
            total = sum(x * x for x in s)
            assert sum(x * x for x in s[: row.rank_after - 1]) < energy * total * (1 + 1e-9)

    def test_ranks_beyond_the_directions_are_capped_and_said(self, rng):
        matrix = with_spectrum([3.0, 2.0], 9, 7, rng)
        for updates in both_forms(matrix):
            result = rs.resize(updates, rank=5)
            assert result.table.rank_after[0] == 2
            assert any("fewer than 5 directions" in note for note in result.notes)
            assert torch.allclose(result.updates["h.0.q"].dense(), matrix, atol=1e-6)
        assert not any("fewer" in n for n in rs.resize(updates, rank=2).notes)

    def test_zero_updates_are_left_out(self, rng, tmp_path):
        tensors = factored(gaussian(6, 4, rng=rng), torch.zeros(6, 4), rank=4)
        updates = rs.open_updates(tensors, alpha=4)
        for size in ({"rank": 2}, {"energy": 0.9}, {"budget": 20}):
            result = rs.resize(updates, **size)
            assert result.left_out == ("h.1.q",)
            assert result.updates.names == ["h.0.q"]
            row = result.table.iloc[1]
            assert (row.rank_after, row.bytes) == (0, 0)
            assert math.isnan(row.energy_kept)
            assert math.isnan(row.best_error)
            assert math.isfinite(result.total["energy_kept"])
            assert any("zero (untrained)" in note for note in result.notes)
        json.dumps(result.to_dict(), allow_nan=False)
        result.save(tmp_path / "out")
        assert rs.open_updates(tmp_path / "out").names == ["h.0.q"]

    def test_an_untrained_adapter_is_a_result_but_no_adapter(self, tmp_path):
        result = rs.resize(factored(torch.zeros(6, 4), rank=2), rank=1, alpha=2)
        assert len(result.updates) == 0
        assert math.isnan(result.total["relative_error"])
        assert "undefined" in result.to_text() or "nan" in result.to_text()
        with pytest.raises(AdapterError):
            result.save(tmp_path / "out")

    def test_numbers_whose_squares_vanish_are_zero(self, rng):
        matrix = with_spectrum([4.0, 3.0], 6, 5, rng)
        for tiny, small in zip(
            both_forms(1e-170 * matrix), both_forms(1e-30 * matrix), strict=True
        ):
            for size in ({"rank": 1}, {"energy": 0.6}, {"budget": 11}):
                assert rs.resize(tiny, **size).left_out == ("h.0.q",)
                row = rs.resize(small, **size).table.iloc[0]
                assert row.best_error == pytest.approx(0.6)
                assert row.relative_error == pytest.approx(0.6)

    def test_overflow_is_refused(self):
        tensors = {"h.0.q.lora_A.weight": torch.full((1, 1), 1e6)}
        tensors["h.0.q.lora_B.weight"] = torch.full((1, 1), 1e6)
        with pytest.raises(UpdateError, match="too large"):
            rs.resize(tensors, rank=1, alpha=1, dtype="float16")
        assert rs.resize(tensors, rank=1, alpha=1).total["relative_error"] < 1e-6


class TestAllocation:
    @given(data=st.data())
    def test_against_every_choice(self, data):
        count = data.draw(st.integers(1, 3))
        spectra = [
            sorted(data.draw(st.lists(st.integers(0, 9), max_size=4)), reverse=True)
            for _ in range(count)
        ]
        costs = data.draw(st.lists(st.integers(1, 7), min_size=count, max_size=count))
        budget = data.draw(st.integers(0, 40))
        tensors = [torch.tensor(s, dtype=torch.float64) for s in spectra]
        ranks = allocate(tensors, costs, budget)

        def cost(choice):
            return sum(r * c for r, c in zip(choice, costs, strict=True))

        def energy(choice):
            return sum(x * x for s, r in zip(spectra, choice, strict=True) for x in s[:r])

        choices = itertools.product(*(range(len(s) + 1) for s in spectra))
        best = max(energy(c) for c in choices if cost(c) <= budget)
        assert cost(ranks) <= budget
        passed_over = _first_passed_over(spectra, costs, budget)
        if passed_over is None or len(set(costs)) == 1:
            assert energy(ranks) == best
        else:
            assert energy(ranks) > best - passed_over
        assert all(0 not in s[:r] for s, r in zip(spectra, ranks, strict=True))

    def test_equal_costs_take_the_largest_values(self, rng):
        spectra = [gaussian(5, rng=rng).abs().sort(descending=True).values for _ in range(4)]
        ranks = allocate(spectra, [10] * 4, 79)
        cut = torch.cat(spectra).sort(descending=True).values[6]
        assert ranks == [int((s >= cut).sum()) for s in spectra]
        assert sum(ranks) == 7

    def test_ties_go_to_the_earlier(self):
        ones = [torch.ones(3)] * 3
        assert allocate(ones, [2, 2, 2], 9) == [3, 1, 0]

    def test_a_dear_direction_does_not_stop_cheap_ones(self):
        assert allocate([torch.tensor([9.0]), torch.tensor([1.0])], [10, 3], 5) == [0, 1]

    def test_squares_neither_overflow_nor_vanish(self):
        for unit in (1e-200, 1e200):
            spectra = [unit * torch.tensor([2.0, 1.0]).double(), unit * torch.ones(1).double()]
            assert allocate(spectra, [1, 1], 2) == [2, 0]

    @pytest.mark.parametrize(("costs", "budget"), [([1], 5), ([1, 0], 5), ([1, 1], -1)])
    def test_bad_input(self, costs, budget):
        with pytest.raises(UpdateError, match="allocated"):
            allocate([torch.ones(1)] * 2, costs, budget)

    def test_nothing_at_all(self):
        assert allocate([], [], 5) == []
        assert allocate([torch.zeros(3), torch.ones(0)], [1, 1], 5) == [0, 0]


def _first_passed_over(spectra, costs, budget):
    items = sorted(
        (-x * x / c, n, x * x, c)
        for n, (s, c) in enumerate(zip(spectra, costs, strict=True))
        for x in s
        if x
    )
    for _, _, value, cost in items:
        if cost > budget:
            return value
        budget -= cost
    return None


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "parameters"),
        [(12, 12), ("12", 12), ("8B", 2), ("35MB", 8_750_000), ("35 mib", 9_175_040),
         ("1.5GB", 375_000_000), ("0.5kB", 125), ("1KiB", 256)],
    )  # fmt: skip
    def test_what_is_one(self, text, parameters):
        assert parse_budget(text, 4) == parameters

    @pytest.mark.parametrize(
        "text", ["", "x", "35M", "-1", "1e6", "0", "3B", "1.5", "MB", "1.MB", "nanMB", "٣MB", -5]
    )
    def test_what_is_none(self, text):
        with pytest.raises(UpdateError, match="no budget") as caught:
            parse_budget(text, 4)
        assert str(caught.value).count("\n") == 4

    def test_it_is_kept_and_used_well(self, data):
        updates = rs.open_updates(data / "sql-r64-seed0")
        result = rs.resize(updates, budget="60kB", dtype="bfloat16")
        assert result.total["bytes"] <= 60_000
        even = rs.resize(updates, rank=7, dtype="bfloat16")
        assert even.total["bytes"] == 8 * 7 * 512 * 2 == 57_344
        assert 60_000 - result.total["bytes"] < 1024  # no further direction fits
        assert result.total["energy_kept"] > even.total["energy_kept"]
        kept = np.concatenate([rs.svd(u).values for _, u in result.updates.items()])
        lost = np.concatenate(
            [rs.svd(updates[r.module]).values[r.rank_after :] for r in result.table.itertuples()]
        )
        assert kept.min() >= lost.max() * (1 - 1e-2)  # equal costs: the largest of all modules

    def test_modules_that_get_nothing_are_listed(self, rng, tmp_path):
        strong, weak = with_spectrum([9.0, 8], 6, 4, rng), with_spectrum([1.0, 0.5], 6, 4, rng)
        for source in (factored(strong, weak, rank=2), pair_of(strong, weak)):
            source = source if isinstance(source, tuple) else (source, None)
            alpha = None if source[1] else 2
            result = rs.resize(rs.open_updates(*source, alpha=alpha), budget=20)
            assert list(result.table.rank_after) == [2, 0]
            assert list(result.table.relative_error[1:]) == [1.0]
            assert result.left_out == ("h.1.q",)
            assert any("no direction" in note for note in result.notes)

    def test_too_little_for_anything(self, rng):
        with pytest.raises(UpdateError) as caught:
            rs.resize(factored(gaussian(6, 4, rng=rng)), budget=9)
        assert "at least 10" in caught.value.expected


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 5), "norm": nn.LayerNorm(6)})
        self.wte = nn.Embedding(9, 6)
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv1 = nn.Conv1d(3, 4, 2)
        self.point = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(6, 9, bias=False)


def initial(cls=Net):
    torch.manual_seed(0)
    return cls()


def moved(model):
    """A fine-tune of a model: every parameter has moved."""
    torch.manual_seed(1)
    return {name: t + 0.1 * torch.randn_like(t) for name, t in model.state_dict().items()}


def merged(model, folder):
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


@pytest.mark.filterwarnings("ignore")
class TestPeft:
    @pytest.mark.parametrize("size", [{"rank": 2}, {"energy": 0.8}, {"budget": 120}])
    def test_merges_the_truncated_updates(self, size, tmp_path):
        base, tuned = initial().state_dict(), moved(initial())
        result = rs.extract(tuned, base, **size)
        result.save(tmp_path / "out")
        after = merged(initial(), tmp_path / "out")
        ranks = dict(zip(result.table.module, result.table.rank_after, strict=True))
        assert len(ranks) == 7
        assert sum(ranks.values())
        for name, tensor in base.items():
            module = name.removesuffix(".weight")
            expected = tensor.double()
            if ranks.get(module):
                delta = (tuned[name].double() - tensor.double()).flatten(1)
                expected = expected + truncated(delta, ranks[module]).reshape(tensor.shape)
            torch.testing.assert_close(after[name].double(), expected, atol=3e-6, rtol=0)

    def test_gpt2_stores_its_weights_transposed_and_ties_its_head(self, tmp_path):
        def gpt2():
            torch.manual_seed(0)
            return GPT2LMHeadModel(
                GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=6)
            )

        base = {k: v.clone() for k, v in gpt2().state_dict().items()}
        tuned = moved(gpt2())
        tuned["lm_head.weight"] = tuned["transformer.wte.weight"]
        result = rs.extract(tuned, base, rank=3)
        assert "lm_head" not in set(result.table.module)
        assert any("again and left out" in note for note in result.notes)
        assert sorted(result.table.module.str.split(".").str[-1]) == [
            "c_attn", "c_fc", "c_proj", "c_proj", "wpe", "wte",
        ]  # fmt: skip
        result.save(tmp_path / "out")
        after = merged(gpt2(), tmp_path / "out")
        for module in result.table.module:
            name = f"{module}.weight"
            expected = base[name] + truncated(tuned[name] - base[name], 3).float()
            torch.testing.assert_close(after[name], expected, atol=3e-6, rtol=0)

    def test_an_adapter_of_peft_is_resized(self, tmp_path):
        config = peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=["fc", "wte", "conv", "head"], use_rslora=True
        )
        torch.manual_seed(2)
        model = peft.get_peft_model(initial(), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "in")
        before = merged(initial(), tmp_path / "in")
        rs.resize(tmp_path / "in", rank=2).save(tmp_path / "out")
        after = merged(initial(), tmp_path / "out")
        for name, tensor in initial().state_dict().items():
            delta = before[name] - tensor
            if delta.any():
                delta = truncated(delta.flatten(1), 2).reshape(tensor.shape).float()
            torch.testing.assert_close(after[name], tensor + delta, atol=1e-5, rtol=0)

    def test_a_convolution_by_another_method_takes_its_kernel_from_the_base(self, tmp_path):
        config = peft.LoHaConfig(r=2, alpha=3, target_modules=["conv", "fc"])
        torch.manual_seed(2)
        model = peft.get_peft_model(initial(), config)
        for name, parameter in model.named_parameters():
            if "hada" in name:
                nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "in")
        rs.resize(tmp_path / "in", rank=3, base=initial()).save(tmp_path / "out")
        before, after = merged(initial(), tmp_path / "in"), merged(initial(), tmp_path / "out")
        start = initial().conv.weight.detach()
        delta = truncated((before["conv.weight"] - start).flatten(1), 3).reshape(start.shape)
        torch.testing.assert_close(after["conv.weight"], start + delta.float(), atol=1e-5, rtol=0)

    def test_a_kernel_that_nothing_tells_is_refused(self, rng):
        shapes = {
            "hada_t1": (2, 2, 3, 3),
            "hada_t2": (2, 2, 3, 3),
            "hada_w1_a": (2, 4),
            "hada_w2_a": (2, 4),
            "hada_w1_b": (2, 3),
            "hada_w2_b": (2, 3),
        }
        tensors = {f"conv.{name}": gaussian(*shape, rng=rng) for name, shape in shapes.items()}
        with pytest.raises(AdapterError) as caught:
            rs.resize(tensors | {"conv.alpha": torch.tensor(2.0)}, rank=3)
        assert "conv" in caught.value.got
        base = {"conv.weight": torch.zeros(4, 3, 3, 3)}
        result = rs.resize(tensors | {"conv.alpha": torch.tensor(2.0)}, rank=4, base=base)
        assert result.table.rank_after[0] == 4


def test_fused_projections_of_early_peft(real, tmp_path):
    updates = rs.open_updates(real / "bloom" / "peft-merged-linear").select(layer=0)
    rs.resize(updates, rank=4).save(tmp_path / "out")
    (again,) = rs.open_updates(tmp_path / "out").items()
    assert again[0] in updates.names
    nearest = truncated(updates[again[0]].dense(), 4)
    assert torch.linalg.norm(again[1].dense() - nearest) <= 1e-6 * again[1].norm()


class TestExtract:
    def test_outputs_come_nearer_with_the_rank(self, data):
        base, tuned = (load_model(data / name).eval() for name in ("base", "sql-full"))
        tokens = torch.randint(97, (4, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = tuned(tokens).log_softmax(-1)
            divergences = []
            for rank in (4, 16, 64, 256):
                result = rs.extract(data / "sql-full", data / "base", rank=rank)
                model = load_model(data / "base").eval()
                for name, update in result.updates.items():
                    model.get_submodule(name).weight += update.dense().float()
                for name in result.not_covered:
                    model.get_parameter(name).copy_(tuned.get_parameter(name))
                got = model(tokens).log_softmax(-1)
                divergences.append((wanted.exp() * (wanted - got)).sum(-1).mean().item())
            start = (wanted.exp() * (wanted - base(tokens).log_softmax(-1))).sum(-1).mean().item()
        assert start > divergences[0] > divergences[1] > divergences[2] > divergences[3]
        assert divergences[3] < 1e-6

    def test_reads_back(self, data, tmp_path):
        updates = rs.open_updates(data / "sql-full", data / "base").select(kind="q")
        rs.extract(updates, rank=8).save(tmp_path / "out")
        for name, update in rs.open_updates(tmp_path / "out").items():
            nearest = truncated(updates[name].dense(), 8)
            assert torch.linalg.norm(update.dense() - nearest) <= 1e-6 * update.norm()

    def test_all_of_the_energy_is_all_of_the_directions(self, rng):
        matrix = with_spectrum([2.0, 1.0, 1e-9], 300, 280, rng)
        base, tuned = {"w.weight": torch.zeros(300, 280).double()}, {"w.weight": matrix}
        for size, count in (({"energy": 1.0}, 3), ({"rank": 3}, 2)):
            row = rs.extract(tuned, base, **size).table.iloc[0]
            assert row.rank_after == count  # the last is below what a rank's method resolves
            assert row.relative_error < 1e-6

    def test_what_changed_and_is_no_matrix_is_listed(self):
        base, tuned = initial().state_dict(), moved(initial())
        tuned["fc.bias"] = base["fc.bias"]
        tuned["new.bias"] = torch.ones(3)
        result = rs.extract(tuned, base, rank=1)
        assert "fc.bias" not in result.not_covered
        assert {"block.norm.weight", "conv.bias", "new.bias"} <= set(result.not_covered)
        assert any("are not in the adapter" in note for note in result.notes)

    def test_what_is_no_module_fails_alone(self, rng, tmp_path):
        base = {
            "h.0.q.weight": torch.zeros(6, 4),
            "class_embedding": torch.zeros(3, 4),
            "unchanged": torch.ones(3, 4),
            "h.0.mlp.experts.down_proj": torch.zeros(2, 4, 4),
        }
        tuned = {name: torch.randn(t.shape, generator=rng) for name, t in base.items()}
        tuned["unchanged"] = base["unchanged"]
        for size in ({"rank": 1}, {"budget": 30}):
            result = rs.extract(tuned, base, **size)
            assert result.updates.names == ["h.0.q"]
            assert {f["module"] for f in result.failures} == {
                "class_embedding",
                "h.0.mlp.experts.down_proj[0]",
                "h.0.mlp.experts.down_proj[1]",
            }
            assert result.left_out == ("unchanged",)
        # The budget goes to what can be written.
        assert result.table.set_index("module").rank_after["h.0.q"] == 3

    def test_a_head_of_its_own_stays(self, rng):
        base = {"wte.weight": torch.zeros(6, 4), "lm_head.weight": torch.zeros(6, 4)}
        tuned = {name: torch.randn(6, 4, generator=rng) for name in base}
        assert rs.extract(tuned, base, rank=1).updates.names == ["lm_head", "wte"]
        del base["lm_head.weight"], tuned["lm_head.weight"]
        assert any("where the model ties it" in n for n in rs.extract(tuned, base, rank=1).notes)

    def test_one_difference_is_in_memory_at_a_time(self, rng, monkeypatch):
        live, most = weakref.WeakSet(), 0
        build = Difference.build

        def watched(recipe):
            nonlocal most
            update = build(recipe)
            live.add(update)
            most = max(most, len(live))
            return update

        monkeypatch.setattr(Difference, "build", watched)
        pair = pair_of(*(gaussian(6, 4, rng=rng) for _ in range(9)))
        for size in ({"rank": 1}, {"energy": 0.5}, {"budget": 60}):
            most = 0
            assert len(rs.extract(*pair, **size).table) == 9
            assert most == 1

    def test_an_adapter_is_no_fine_tune(self, data):
        with pytest.raises(SourceError, match="no full fine-tune"):
            rs.extract(data / "sql-r8-seed0", data / "base", rank=2)

    def test_the_hubs_name_of_the_base_is_written(self, rng, tmp_path):
        tuned, base = pair_of(gaussian(6, 4, rng=rng))
        cache = tmp_path / "models--org--name" / "snapshots" / "0a1b"
        cache.mkdir(parents=True)
        for path, content in ((cache, base), (tmp_path, tuned)):
            save_file(content, path / "model.safetensors")
        rs.extract(tmp_path / "model.safetensors", cache, rank=1).save(tmp_path / "known")
        rs.extract(tuned, base, rank=1).save(tmp_path / "unknown")
        for folder, name in (("known", "org/name"), ("unknown", None)):
            text = (tmp_path / folder / "adapter_config.json").read_text()
            assert json.loads(text).get("base_model_name_or_path") == name
            assert str(tmp_path) not in text


class TestBadInput:
    @pytest.mark.parametrize(
        "size",
        [{}, {"rank": 2, "energy": 0.5}, {"rank": 2, "energy": 0.5, "budget": 3}, {"rank": 0},
         {"rank": -1}, {"rank": 2.5}, {"rank": True}, {"energy": 0.0}, {"energy": 1.01},
         {"energy": math.nan}, {"budget": "x"}, {"budget": 0}, {"rank": 1, "dtype": "int8"}],
    )  # fmt: skip
    def test_sizes(self, size, data):
        with pytest.raises(UpdateError) as caught:
            rs.resize(data / "sql-r8-seed0", **size)
        assert str(caught.value).count("\n") == 4

    def test_a_taken_folder_is_left_alone(self, data, tmp_path):
        result = rs.resize(data / "sql-r8-seed0", rank=1)
        (tmp_path / "out").mkdir()
        result.save(tmp_path / "out")  # empty is as good as new
        before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
        with pytest.raises(OutputError, match="taken"):
            result.save(tmp_path / "out")
        assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="taken"):
            result.save(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_number_is_no_suffix(self, data, tmp_path):
        rs.resize(data / "sql-r8-seed0", energy=0.95).save(tmp_path / "energy-0.95")
        assert len(rs.open_updates(tmp_path / "energy-0.95")) == 8
        with pytest.raises(OutputError, match="not known"):
            rs.resize(data / "sql-r8-seed0", rank=1).save(tmp_path / "x.doc")

    def test_the_wrong_base(self, rng):
        tuned, _ = pair_of(gaussian(6, 4, rng=rng))
        with pytest.raises(SourceError, match="no matrix in common"):
            rs.extract(tuned, {"h.0.q.weight": torch.zeros(5, 4)}, rank=1)

    def test_nan_fails_alone(self, rng):
        good, bad = gaussian(6, 4, rng=rng), torch.full((6, 4), math.nan)
        for size in ({"rank": 1}, {"energy": 0.5}, {"budget": 20}):
            result = rs.extract(*pair_of(good, bad), **size)
            assert [f["module"] for f in result.failures] == ["h.1.q"]
            assert result.updates.names == ["h.0.q"]

    @pytest.mark.parametrize(
        ("name", "own"),
        [("lora_unet_mid_attn_to_q", False), ("h.0.q", True), ("lora_te_x.0.q", False)],
    )
    def test_names_that_are_no_paths_are_said(self, name, own, rng):
        tensors = {
            f"{name}.lora_down.weight": torch.randn(2, 4, generator=rng),
            f"{name}.lora_up.weight": torch.randn(4, 2, generator=rng),
            f"{name}.alpha": torch.tensor(2.0),
        }
        said = any("PEFT will not find" in note for note in rs.resize(tensors, rank=1).notes)
        assert said is not own

    def test_numbers_are_no_names(self, rng):
        tensors = {f"w_{x}_000": torch.randn(*s, generator=rng) for x, s in
                   (("a", (2, 4)), ("b", (4, 2)))}  # fmt: skip
        assert any("PEFT will not find" in note for note in rs.resize(tensors, rank=1).notes)


class TestCommand:
    @pytest.fixture
    def sources(self, tmp_path, rng):
        modules = [f"layers.{n}.{kind}_proj" for n in range(2) for kind in "qv"]
        adapter = write_peft(tmp_path / "a", peft_tensors(modules, 4, rng))
        names = [f"{module}.weight" for module in modules]
        paths = []
        for n, name in enumerate(("base", "tuned")):
            paths.append(tmp_path / f"{name}.safetensors")
            save_file({key: n * torch.randn(12, 8, generator=rng) for key in names}, paths[-1])
        return {"resize": [adapter], "extract": [paths[1], "--base", paths[0]]}

    @pytest.mark.parametrize("command", ["resize", "extract"])
    def test_json_and_files(self, command, sources, tmp_path):
        out, table = tmp_path / "new" / "small", tmp_path / "x.csv"
        result = run(
            command,
            *sources[command],
            "--rank",
            2,
            "--kind",
            "q",
            "--json",
            "-o",
            out,
            "-o",
            table,
        )
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        assert content["schema"] == f"rankscope.{command}/1"
        assert content["provenance"]["command"] == command
        assert set(ROW.split()) <= set(content["rows"][0])
        assert [row["rank_after"] for row in content["rows"]] == [2, 2]
        assert {"total", "left_out", "not_covered", "failures"} <= set(content)
        assert rs.open_updates(out).names == ["layers.0.q_proj", "layers.1.q_proj"]
        assert table.read_text().startswith("module,")
        again = run(command, *sources[command], "--rank", 2, "-o", out)
        assert "taken" in assert_five_lines(again)

    @pytest.mark.parametrize("command", ["resize", "extract"])
    def test_table_and_quiet(self, command, sources, tmp_path):
        result = run(command, *sources[command], "--budget", "1kB", "--dtype", "bfloat16")
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) == 6
        assert "total: " in result.stdout
        quiet = run(command, *sources[command], "--energy", 0.9, "-q", "-o", tmp_path / "out")
        assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")

    @pytest.mark.parametrize("command", ["resize", "extract"])
    def test_usage(self, command, sources):
        given = sources[command]
        wrong = "|--rank 2 --energy 0.5|--rank 0|--energy 1.5|--energy 0|--rank x|--dtype int8"
        for flags in map(str.split, wrong.split("|")):
            result = run(command, *given, *flags)
            assert result.exit_code == 2, result.output
        assert "no budget" in assert_five_lines(run(command, *given, "--budget", "35M"))
        assert run("extract", sources["extract"][0], "--rank", 1).exit_code == 2
        for name in ("x.svg", "x.doc"):
            assert_five_lines(run(command, *given, "--rank", 1, "-o", name))

    def test_modules_that_cannot_be_written_are_exit_3(self, sources, tmp_path, rng):
        path, base = tmp_path / "more.safetensors", tmp_path / "less.safetensors"
        for where, n in ((path, 1), (base, 0)):
            content = {"h.0.q.weight": n * torch.ones(4, 4), "probe": n * torch.ones(4, 4)}
            save_file(content, where)
        result = run("extract", path, "--base", base, "--rank", 1, "-o", tmp_path / "out")
        assert result.exit_code == 3
        assert "probe" in result.stderr
        assert rs.open_updates(tmp_path / "out").names == ["h.0.q"]
        assert_five_lines(run("extract", path, "--base", base, "--rank", 1, "--include", "probe"))

    def test_strict(self, sources, tmp_path, rng):
        tensors = peft_tensors(["h.0.q"], 2, rng) | {"bias": torch.ones(2)}
        folder = write_peft(tmp_path / "unread", tensors, r=2)
        assert run("resize", folder, "--rank", 1).exit_code == 0
        assert "--strict" in assert_five_lines(run("resize", folder, "--rank", 1, "--strict"))
