"""The learning rate at every corner of each schedule."""

import pytest

from training.config import TrainConfig
from training.schedule import SCHEDULES, learning_rate

GPT3 = {"max_lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 715, "max_steps": 19073}


def test_learning_rate_of_the_cosine_at_its_corners():
    cfg = TrainConfig(**GPT3)
    assert learning_rate(0, cfg) == pytest.approx(6e-4 / 715)
    assert learning_rate(714, cfg) == pytest.approx(6e-4)
    assert learning_rate(715, cfg) == pytest.approx(6e-4)
    assert learning_rate((715 + 19073) // 2, cfg) == pytest.approx((6e-4 + 6e-5) / 2)
    assert learning_rate(19072, cfg) == pytest.approx(6e-5, rel=1e-4)
    assert learning_rate(19073, cfg) == learning_rate(10**6, cfg) == 6e-5
    assert learning_rate(0, TrainConfig(warmup_steps=0)) == pytest.approx(6e-4)


def test_learning_rate_of_the_linear_schedule_is_a_straight_line():
    cfg = TrainConfig(max_lr=1.0, min_lr=0.0, warmup_steps=10, max_steps=110, schedule="linear")
    assert [learning_rate(step, cfg) for step in (4, 10, 60, 85, 110)] == pytest.approx([0.5, 1.0, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_falls_from_1_to_0(name):
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    assert (values[0], values[-1]) == pytest.approx((1.0, 0.0))
    assert values == sorted(values, reverse=True)
