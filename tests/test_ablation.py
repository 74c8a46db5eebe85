"""Directions kept and removed: closed forms, planted directions, bad input."""

import pytest
import torch
from oracles import gaussian, haar, peft_tensors, with_spectrum
from torch.testing import assert_close

from rankscope.analysis.ablation import truncate
from rankscope.analysis.intruders import intruders
from rankscope.errors import SourceError, UpdateError
from rankscope.io.sources import open_updates


def pair(matrix, base=None):
    base = torch.zeros_like(matrix) if base is None else base
    return {"w.weight": base + matrix}, {"w.weight": base}


def planted(rng, s=(4.0, 3.0, 2.0, 1.0), out=12, in_=8):
    return with_spectrum(s, out, in_, rng)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_directions_are_the_truncated_svd(side, rng):
    matrix = planted(rng)
    tuned, base = pair(matrix)
    result = truncate(tuned, base=base, k=2, side=side)
    u, s, vt = torch.linalg.svd(matrix)
    assert_close(result.updates["w"].dense(), (u[:, :2] * s[:2]) @ vt[:2])
    assert result.table.energy_share[0] == pytest.approx((16 + 9) / 30)
    assert result.table.relative_error[0] == pytest.approx((5 / 30) ** 0.5)


@pytest.mark.parametrize("control", [None, 3])
@pytest.mark.parametrize("side", ["right", "left"])
def test_kept_and_removed_add_up(side, control, rng):
    tensors = peft_tensors(["h.0.q", "h.1.q"], 4, rng)
    updates = open_updates(tensors, alpha=8)
    kept, rest = (
        truncate(updates, k=2, side=side, remove=remove, control=control).updates
        for remove in (False, True)
    )
    for name, update in updates.items():
        assert_close(kept[name].dense() + rest[name].dense(), update.dense())


def test_a_control_has_the_same_singular_values_elsewhere(rng):
    tuned, base = pair(planted(rng))
    own, control = (truncate(tuned, base=base, k=2, control=c) for c in (None, 0))
    s, t = (torch.linalg.svdvals(one.updates["w"].dense()) for one in (own, control))
    assert_close(s, t)
    assert control.table.energy_share[0] == pytest.approx(own.table.energy_share[0])
    again = truncate(tuned, base=base, k=2, control=0)
    assert_close(again.updates["w"].dense(), control.updates["w"].dense(), rtol=0, atol=0)
    assert own.updates["w"].inner(control.updates["w"]) < 0.9 * own.updates["w"].norm() ** 2


def test_every_module_of_a_control_draws_its_own(rng):
    same = gaussian(8, 8, rng=rng)
    tuned = {"h.0.q.weight": same, "h.1.q.weight": same}
    base = {name: torch.zeros_like(same) for name in tuned}
    one, other = truncate(tuned, base=base, k=2, control=0).updates
    assert abs(one.inner(other)) < 0.9 * one.norm() * other.norm()


def test_shared_directions_are_those_planted(rng):
    d = 64
    common, rest = haar(d, 6, rng).split([2, 4], dim=1)
    left = haar(d, 4, rng)
    one = left * torch.tensor([4.0, 3.0, 2.0, 1.0]) @ torch.cat([common, rest[:, :2]], 1).T
    other = left * torch.tensor([4.0, 3.0, 2.0, 1.0]) @ torch.cat([rest[:, 2:], common], 1).T
    (tuned, base), (second, _) = pair(one), pair(other)
    result = truncate(tuned, base=base, directions="shared", other=second)
    assert result.table.directions.tolist() == [2]
    assert_close(result.updates["w"].dense(), one @ common @ common.T, atol=1e-9, rtol=0)
    assert result.table.energy_share[0] == pytest.approx(25 / 30)


def test_unrelated_updates_share_nothing(rng):
    (one, base), (other, _) = (pair(with_spectrum([2.0, 1.0], 96, 96, rng)) for _ in range(2))
    result = truncate(one, base=base, directions="shared", other=other)
    assert result.table.directions.tolist() == [0]
    assert not result.updates["w"].dense().any()


def test_the_intruder_is_found_and_removed(rng):
    d = 64
    weight = torch.diag(torch.linspace(1.0, 2.0, d, dtype=torch.float64))
    spread = torch.full((d, 1), d**-0.5, dtype=torch.float64)
    update = 10 * haar(d, 1, rng) @ spread.T
    tuned, base = pair(update, weight)
    result = truncate(tuned, base=base, directions="intruder", remove=True)
    assert result.table.directions[0] >= 1
    assert result.updates["w"].norm() < 0.3 * 10
    assert truncate(base, base=base, directions="intruder").table.directions.tolist() == [0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_intruders_are_those_that_are_counted(side, rng):
    d = 32  # nearly equal values of W mix under a small update, and are no intruders
    values = torch.linspace(1.001, 1.0, d, dtype=torch.float64)
    weight = haar(d, d, rng) * values @ haar(d, d, rng).T
    tuned, base = pair(0.02 * gaussian(d, d, rng=rng) / d**0.5, weight)
    count = intruders(tuned, base=base, k=10).table.set_index("side").intruders[side]
    chosen = truncate(tuned, base=base, directions="intruder", k=10, side=side)
    assert chosen.table.directions.tolist() == [count]
    assert count < 10


def test_noise_is_what_lies_below_its_edge(rng):
    n = 96
    signal = with_spectrum([40.0, 30.0], n, n, rng)
    update = (signal + gaussian(n, n, rng=rng) / 2).float()
    tuned, base = pair(update, gaussian(n, n, rng=rng).float())
    result = truncate(tuned, base=base, directions="noise", remove=True)
    assert n - 2 >= result.table.directions[0] > n / 2
    kept = result.updates["w"].dense()
    assert torch.linalg.matrix_norm(kept - signal) < torch.linalg.matrix_norm(signal)


def test_the_score_is_of_base_plus_what_is_left(rng):
    weight = gaussian(6, 6, rng=rng).float()
    tuned, base = pair(gaussian(6, 6, rng=rng).float(), weight)
    seen = {}
    result = truncate(tuned, base=base, k=6, evaluate=lambda w: seen.update(w) or {"loss": 0.5})
    assert result.score == result.to_dict()["score"] == {"loss": 0.5}
    assert_close(seen["w.weight"], tuned["w.weight"], rtol=0, atol=1e-6)
    assert seen["w.weight"].dtype == torch.float32
    assert_close(result.weights()["w.weight"], seen["w.weight"])


def test_a_zero_update_stays_zero():
    tuned, base = pair(torch.zeros(4, 4))
    result = truncate(tuned, base=base, k=2)
    assert result.table.directions.tolist() == [0]
    assert result.table.energy_share.isna().all()


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 0}, {"directions": "last", "k": 1}, {"k": 1, "side": "up"},
     {"directions": "shared"}, {"k": 1, "other": {}}],
)  # fmt: skip
def test_bad_choices(options, rng):
    with pytest.raises(UpdateError, match="cannot be chosen"):
        truncate(open_updates(peft_tensors(["h.0.q"], 2, rng), alpha=2), **options)


def test_what_a_choice_needs(rng):
    updates = open_updates(peft_tensors(["h.0.q"], 2, rng), alpha=2)
    with pytest.raises(SourceError, match="base weights"):
        truncate(updates, directions="intruder")
    with pytest.raises(UpdateError, match="no noise"):
        truncate(updates, directions="noise")
