"""The configuration: what it chooses by itself, and what it refuses, in the user's own words."""

import dataclasses
import json

import pytest
import torch

from rankscope.errors import RankscopeError, SourceError
from rankscope.training import TrainingConfig
from rankscope.training.config import ConfigError
from rankscope.training.methods import METHODS


def refusal(**options) -> str:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**options)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert isinstance(caught.value, RankscopeError)
    return str(caught.value)


def test_every_field_has_a_value_of_its_own():
    config = TrainingConfig()

    values = dataclasses.asdict(config)
    absent = {name for name, value in values.items() if value is None}
    assert absent == {"base", "rank", "alpha", "difficulty"}  # of adapters, and of slots, only
    assert config.precision in ("bf16", "float32")
    assert config.threads == torch.get_num_threads()
    assert (config.layers, config.width) == (4, 256)


def test_the_three_methods_choose_their_own_rates_and_say_why():
    pretraining = TrainingConfig()
    lora = TrainingConfig(base="b", rank=8)
    full = TrainingConfig(base="b", rank="full")

    assert [c.method for c in (pretraining, lora, full)] == ["pre-training", "LoRA", "full"]
    assert [c.task for c in (pretraining, lora, full)] == ["mixture", "sql", "sql"]
    assert 3 <= lora.lr / full.lr <= 30  # about ten times
    assert len({c.lr_reason for c in (pretraining, lora, full)}) == 3
    assert all(len(c.lr_reason) > 40 for c in (pretraining, lora, full))


def test_a_given_rate_is_recorded_as_given():
    assert TrainingConfig(lr=0.5).lr_reason == "given by the user"
    assert TrainingConfig(lr=0.5, lr_reason="a trial").lr_reason == "a trial"


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_alpha_is_the_rank_unless_given(rank):
    assert TrainingConfig(base="b", rank=rank).alpha == rank
    assert TrainingConfig(base="b", rank=rank, alpha=16).alpha == 16


@pytest.mark.parametrize(
    "options",
    [{}, {"base": "b", "rank": "full"}, {"base": "b", "rank": 8, "save_at": (0, 20), "lr": 0.1}],
)
def test_the_written_form_leads_back(options):
    config = TrainingConfig(**options)
    written = json.loads(json.dumps(config.to_dict()))

    assert TrainingConfig.from_dict(written) == config


def test_a_file_is_read_and_options_go_before_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'base = "runs/base"\nrank = 4\ntargets = ["q", "up"]\nlr = 1e-3\nsave_at = [0, 2]\n'
    )

    config = TrainingConfig.load(file, rank=8, lr=None)
    assert (config.base, config.rank, config.targets) == ("runs/base", 8, ("q", "up"))
    assert (config.lr, config.save_at) == (1e-3, (0, 2))
    assert TrainingConfig.load(rank=None, steps=7).steps == 7


def test_a_base_may_be_a_path(tmp_path):
    assert TrainingConfig(base=tmp_path, rank=1).base == tmp_path.as_posix()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"rank = ", "Invalid value"), (b"\xff\xfe", "utf-8"), (None, "no such file")],
)
def test_an_unreadable_file_is_refused(tmp_path, content, words):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        TrainingConfig.load(file)
    assert len(str(caught.value).splitlines()) == 5
    assert str(file) in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("step = 3\n")
    with pytest.raises(ConfigError, match="write 'steps'"):
        TrainingConfig.load(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("batch", -1),
        ("warmup", -1),
        ("lr", 0),
        ("lr", "fast"),
        ("lr", float("nan")),
        ("lr", 2.0),
        ("weight_decay", -0.1),
        ("clip", 0),
        ("clip", float("inf")),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("betas", 0.9),
        ("seed", -1),
        ("seed", "zero"),
        ("save_at", (-1,)),
        ("save_at", (601,)),
        ("save_at", 5),
        ("save_every", 0),
        ("held_out", 0),
        ("precision", "fp16"),
        ("task", "chess"),
        ("labels", "wrong"),
        ("init_seed", -1),
        ("method", "chess"),
        ("method", ["LoRA"]),
        ("threads", 0),
        ("layers", 0),
        ("width", 0),
        ("width", 30),
        ("targets", ()),
        ("targets", "qv"),
        ("targets", ("q", "q")),
        ("targets", ("gate",)),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_flag(name, value):
    message = refusal(**{name: value})
    assert f"where: --{name.replace('_', '-')}" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("rank", "half"), ("rank", True), ("alpha", -1.0), ("dropout", 1.0)],
)
def test_an_adapters_option_out_of_range_is_refused_by_its_flag(name, value):
    assert f"where: --{name}" in refusal(base="b", **{"rank": 2, name: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 8}, "add --base"),
        ({"base": "b"}, "add --rank"),
        ({"base": "b", "rank": 8, "width": 64}, "the base has its size"),
        ({"base": "b", "rank": "full", "alpha": 8.0}, "give --rank a number"),
        ({"dropout": 0.1}, "give --rank a number"),
        ({"method": "LoRA"}, "add --base"),
        ({"base": "b", "method": "pre-training"}, "leave one of the two out"),
        ({"base": "b", "method": "LoRA"}, "add --rank"),
        ({"base": "b", "method": "LoRA", "rank": "full"}, "leave one of the two out"),
        ({"base": "b", "method": "full", "rank": 8}, "leave one of the two out"),
        ({"base": "b", "method": "full", "targets": ["o"]}, "layers of its own"),
        ({"base": "b", "method": "DoRA"}, "add --rank"),
        ({"base": "b", "method": "prefix", "rank": "full"}, "leave one of the two out"),
        ({"base": "b", "method": "bias", "rank": 8}, "leave one of the two out"),
        ({"base": "b", "method": "IA3", "alpha": 8.0}, "give --rank a number"),
        ({"base": "b", "method": "bottleneck", "rank": 8, "dropout": 0.1}, "give --rank a number"),
        ({"method": "bias"}, "add --base"),
        ({"difficulty": 2}, "--difficulty with --task slots"),
        ({"labels": "shuffled"}, "choose another --task"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    assert words in refusal(**options)


@pytest.mark.parametrize("value", [0, 4, "hard", True])
def test_a_difficulty_out_of_range_is_refused(value):
    assert "one of 1, 2, 3" in refusal(task="slots", difficulty=value)


def test_difficulty_and_the_seed_of_the_beginning_are_chosen_from_the_others():
    config = TrainingConfig(base="b", rank=8, seed=3, task="slots")

    assert (config.difficulty, config.init_seed) == (2, 3)
    assert TrainingConfig(base="b", rank=8, seed=3, init_seed=0).init_seed == 0


def test_what_was_written_before_an_option_existed_reads_as_it_was_meant():
    config = TrainingConfig(base="b", rank=8, seed=3)
    written = config.to_dict()
    for name in ("difficulty", "labels", "method", "init_seed"):
        del written[name]
    assert TrainingConfig.from_dict(written) == config


def test_full_fine_tuning_may_be_named_by_its_method():
    assert TrainingConfig(base="b", method="full") == TrainingConfig(base="b", rank="full")


def test_every_method_chooses_its_own_rate_and_what_its_size_is():
    for name, method in METHODS.items():
        base = {} if name == "pre-training" else {"base": "b"}
        rank = {"rank": 16} if method.size == "number" else {}
        config = TrainingConfig(method=name, **base, **rank)
        assert (config.lr, config.lr_reason, config.steps) == (
            *(method.lr, method.reason, method.steps),
        )
        assert config.alpha == ({"rsLoRA": 8}.get(name, 16) if method.scaled else None)
        assert config.rank == {"number": 16, "full": "full", "none": None}[method.size]
        assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
