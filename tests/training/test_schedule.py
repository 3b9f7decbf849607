"""The learning rate at every corner of each schedule, its description, and what a resumed run may change of it."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from configurator import configure
from formats import checkpoint
from system.errors import UserError
from train_gpt2 import train
from training import evaluation
from training.config import TrainConfig
from training.forecast import rate_chart, schedule_lines
from training.schedule import SCHEDULES, learning_rate, planned_rates
from training.setup import warn_of_other_rates

GPT3 = {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 715, "max_steps": 19073}
UNIT = {"max_lr": 1.0, "min_lr": 0.0, "warmup_steps": 10, "max_steps": 110}  # the decay can take 100 steps


def rates(steps, **settings):
    return [learning_rate(step, TrainConfig(**UNIT | settings)) for step in steps]


def test_learning_rate_of_the_cosine_at_its_corners():
    cfg = TrainConfig(**GPT3)
    assert learning_rate(0, cfg) == pytest.approx(6e-4 / 715)
    assert learning_rate(714, cfg) == pytest.approx(6e-4)
    assert learning_rate(715, cfg) == pytest.approx(6e-4)
    assert learning_rate((715 + 19073) // 2, cfg) == pytest.approx((6e-4 + 6e-5) / 2)
    assert learning_rate(19072, cfg) == pytest.approx(6e-5, rel=1e-4)
    assert learning_rate(19073, cfg) == learning_rate(10**6, cfg) == 6e-5
    assert learning_rate(0, TrainConfig(warmup_steps=0)) == pytest.approx(6e-4)


def test_learning_rate_of_the_defaults_has_the_bits_of_the_formula():
    cfg = TrainConfig()
    for step in range(715):
        assert learning_rate(step, cfg) == 6e-4 * (step + 1) / 715
    for step in range(715, 19073):
        share = 0.5 * (1 + math.cos(math.pi * ((step - 715) / (19073 - 715))))
        assert learning_rate(step, cfg) == 6e-5 + share * (6e-4 - 6e-5)


def test_learning_rate_of_the_linear_schedule_is_a_straight_line():
    assert rates((4, 10, 60, 85, 110), schedule="linear") == pytest.approx([0.5, 1.0, 0.5, 0.25, 0.0])


def test_learning_rate_of_wsd_is_constant_until_its_last_fifth():
    assert rates((4, 9, 10, 50, 88), schedule="wsd") == [0.5, 1.0, 1.0, 1.0, 1.0]
    sqrt_of_11th = 0.30151134457776363
    assert rates((90, 99, 110, 200), schedule="wsd") == pytest.approx([1 - sqrt_of_11th, 1 - 0.5**0.5, 0, 0])
    assert rates((74, 83, 90, 110), schedule="wsd", decay_steps=36, min_lr=0.5) == pytest.approx(
        [1.0, 0.75, 2 / 3, 0.5]
    )
    assert rates((4, 9, 14, 16), schedule="wsd", max_steps=18, decay_steps=100) == [
        0.5,
        1.0,
        1 - 0.5**0.5,
        1 - 0.75**0.5,
    ]


def test_learning_rate_of_the_constant_schedule_is_max_lr_after_the_warm_up():
    assert rates((4, 9, 10, 109, 10**6), schedule="constant") == [0.5, 1.0, 1.0, 1.0, 1.0]
    cfg = configure(TrainConfig, ["--schedule=constant", "--max_lr=3e-5", "--warmup_steps=0"])
    assert learning_rate(0, cfg) == 3e-5, "although min_lr, which it does not use, is larger"


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_steps_end_the_decay_before_the_run(schedule):
    assert rates((10, 35, 60, 61, 109), schedule=schedule, decay_steps=50, min_lr=0.1) == pytest.approx(
        [1.0, 0.55, 0.1, 0.1, 0.1]
    )
    assert rates((35,), schedule=schedule, decay_steps=50) == rates((35,), schedule=schedule, max_steps=60)


@pytest.mark.parametrize("name", [name for name, schedule in SCHEDULES.items() if schedule.shape])
def test_shape_of_a_decay_falls_from_1_to_0(name):
    values = [SCHEDULES[name].shape(i / 100) for i in range(101)]
    assert (values[0], values[-1]) == (1.0, 0.0)
    assert values == sorted(values, reverse=True)


def test_constant_schedule_refuses_decay_steps():
    with pytest.raises(UserError, match="decay_steps = 5: expected None with schedule = constant"):
        configure(TrainConfig, ["--schedule=constant", "--decay_steps=5"])


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, ["rises to 1.00e+00 in 10 steps, falls (cosine) to 0.00e+00 at step 110"]),
        (
            {"warmup_steps": 0, "decay_steps": 30, "schedule": "linear"},
            ["starts at 1.00e+00, falls (linear) to 0.00e+00 at step 30, stays there until step 110"],
        ),
        (
            {"schedule": "wsd"},
            ["rises to 1.00e+00 in 10 steps, stays there until step 88, falls (wsd) to 0.00e+00 at step 110"],
        ),
        ({"schedule": "constant"}, ["rises to 1.00e+00 in 10 steps, stays there until step 110"]),
        (
            {"decay_steps": 200},
            [
                "rises to 1.00e+00 in 10 steps, falls (cosine) to 5.00e-01 at step 110",
                "warning: decay_steps = 200, but only 100 steps follow the warm-up: lower --decay_steps or raise"
                " --max_steps",
            ],
        ),
        (
            {"max_steps": 8, "decay_steps": 200},
            [
                "rises to 8.00e-01 in 8 steps",
                "warning: the run never leaves the warm-up: warmup_steps = 10, but max_steps = 8: lower --warmup_steps"
                " or raise --max_steps",
            ],
        ),
    ],
)
def test_schedule_lines_describe_each_phase(settings, lines):
    first, *warnings = lines
    assert schedule_lines(TrainConfig(**UNIT | settings)) == [f"learning rate: {first}", *warnings]


def test_schedule_lines_warn_only_of_a_run_that_ends_in_its_warm_up():
    for max_steps, warns in ((9, True), (10, True), (11, False)):
        assert (len(schedule_lines(TrainConfig(**UNIT | {"max_steps": max_steps}))) == 2) == warns


SHORT = {"warmup_steps": 1, "checkpoint_interval": 4, "keep_last": 0, "B": 8, "total_batch_size": 256}


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_resume_with_more_steps_has_the_bits_of_the_longer_run_if_wsd_has_not_decayed(
    make_run, tmp_path, monkeypatch, capsys, schedule
):
    """A cosine run serves as the counter-check: the comparison and the warning notice its other rates."""
    monkeypatch.setattr(evaluation, "plot_runs", lambda *args, **kwargs: None)  # slow
    settings = SHORT | {"schedule": schedule}
    train(make_run(**settings, max_steps=10, log_dir=tmp_path / "long"))
    settings["log_dir"] = tmp_path / "extended"
    train(make_run(**settings, max_steps=5))
    checkpoint.path_of(tmp_path / "extended", 5).unlink()
    train(make_run(**settings, max_steps=10, resume=True))
    same = []
    for step in (8, 10):  # a wsd run of 10 steps decays after 8
        long, extended = (checkpoint.load(checkpoint.path_of(tmp_path / name, step)) for name in ("long", "extended"))
        same += [torch.equal(weight, extended["model"][name]) for name, weight in long["model"].items()]
    assert all(same) == (schedule == "wsd")
    assert ("warning: max_steps changed from 5 to 10: " in capsys.readouterr().out) == (schedule == "cosine")


@pytest.fixture
def warnings_for(tmp_path):
    """A function of the settings of a run of 4 steps and of those it is resumed with, {name: value}: the warnings."""

    def warnings(before, after):
        lines, base = [], {"warmup_steps": 1, "max_lr": 1e-3, "min_lr": 1e-4, "log_dir": str(tmp_path)}
        cfg = TrainConfig(**base | {"max_steps": 8} | after)
        saved = {"step": 4, "train_config": base | {"max_steps": 4} | before}
        warn_of_other_rates(cfg, "model_00004.pt", saved, SimpleNamespace(print=lines.append))
        return lines

    return warnings


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            {},
            {},
            "max_steps changed from 4 to 8: with that from the start, step 3 would have had a learning rate of 8.31e",
        ),
        ({}, {}, "not 3.25e-04, so the losses are not those of such a run; a run with --schedule wsd can be extended"),
        ({"schedule": "linear"}, {"schedule": "linear"}, "step 3 would have had a learning rate of 7.43e-04, not 4.00"),
        (
            {},
            {"max_steps": 4, "max_lr": 5e-4},
            "max_lr changed from 0.001 to 0.0005: with that from the start, step 0 would",
        ),
        (
            {},
            {"schedule": "constant"},
            "schedule changed from cosine to constant and max_steps changed from 4 to 8: with",
        ),
    ],
)
def test_resume_with_other_rates_warns_with_their_largest_difference(warnings_for, before, after, words):
    [line] = warnings_for(before, after)
    assert line.startswith("warning: ")
    assert words in line


def test_resume_with_other_rates_names_the_last_checkpoint_that_extends_a_wsd_run(warnings_for):
    wsd = {"schedule": "wsd", "decay_steps": 2}
    [line] = warnings_for(wsd, wsd)
    assert "step 3 would have had a learning rate of 1.00e-03, not 3.64e-04" in line
    assert line.endswith("; a checkpoint of step 2 or before extends the run without that")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"schedule": "constant"}, {"schedule": "constant"}),
        ({"decay_steps": 3}, {"decay_steps": 3}),
        ({"schedule": "wsd", "max_steps": 20}, {"schedule": "wsd", "max_steps": 10**6}),
        ({}, {"max_steps": 4}),
        ({"schedule": "of another version"}, {}),
    ],
)
def test_resume_with_the_same_rates_does_not_warn(warnings_for, before, after):
    assert warnings_for(before, after) == []


def test_resume_refuses_learning_rates_of_a_hostile_checkpoint(warnings_for):
    with pytest.raises(UserError, match=r"model_00004\.pt is damaged or not the checkpoint of a run"):
        warnings_for({"max_lr": "high"}, {})


def test_rate_chart_draws_the_warmup_and_the_decay():
    cfg = TrainConfig(**UNIT | {"schedule": "wsd", "warmup_steps": 55, "decay_steps": 28})
    assert rate_chart(cfg, columns=9) == "  ▁▃▅▆███▃▁"
    assert rate_chart(TrainConfig(max_lr=0.0, min_lr=0.0), columns=3) == "  ▁▁▁"
    assert rate_chart(TrainConfig(max_steps=1, warmup_steps=0), columns=3) == "  ███"


def test_planned_rates_continue_the_run_from_its_settings():
    settings = dataclasses.asdict(TrainConfig(**UNIT | {"schedule": "linear"}))
    assert planned_rates(settings, 59, points=2) == ([59, 84, 109], pytest.approx([0.51, 0.26, 0.01]))
    assert planned_rates(settings, 109) == ([], [])


@pytest.mark.parametrize(
    "wrong", [{"schedule": "spiral"}, {"max_steps": "many"}, {"max_steps": 10**400}, {"max_lr": None}, {"min_lr": [1]}]
)
def test_planned_rates_of_damaged_settings_are_empty(wrong):
    settings = dataclasses.asdict(TrainConfig(**UNIT))
    assert planned_rates(settings | wrong, 0) == ([], [])
    assert planned_rates({}, 0) == ([], [])
