"""The learning rate at every corner of each schedule, and its description."""

import math

import pytest

from configurator import configure
from system.errors import UserError
from training.config import TrainConfig
from training.forecast import schedule_lines
from training.schedule import SCHEDULES, learning_rate

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
