"""How long training lasts, and the learning rate on the way."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ctseg.schedule import Pace, Plan, Planner, Timetable, find_deadline, fit_steps, one_cycle


def count_seconds(steps, pace, steps_per_epoch):
    """What steps take, step by step."""
    return sum(
        pace.step + pace.epoch_end * (number % steps_per_epoch == 0 or number == steps)
        for number in range(1, steps + 1)
    ) + (pace.end if steps else 0)


@pytest.mark.parametrize("seconds", [0, 1, 7, 50, 99.5, 1000])
@pytest.mark.parametrize("pace", [Pace(1, 0, 0), Pace(1, 3, 5), Pace(0.3, 20, 2)])
@pytest.mark.parametrize("steps_per_epoch", [1, 3, 40])
def test_the_steps_that_fit_are_the_most_that_do(seconds, pace, steps_per_epoch):
    steps = fit_steps(seconds, pace, steps_per_epoch)
    assert steps == 0 or count_seconds(steps, pace, steps_per_epoch) <= seconds + 1e-9
    assert count_seconds(steps + 1, pace, steps_per_epoch) > seconds - 1e-9


def test_no_time_left_has_no_steps():
    assert fit_steps(-100.0, Pace(1, 1, 1), 3) == 0


def test_a_pace_that_is_measured_counts_as_much_as_what_was_thought_before(monkeypatch):
    monkeypatch.setattr("ctseg.schedule.time", SimpleNamespace(monotonic=lambda: 0.0))
    planner = Planner(40, epochs=None, ends_at=99.0, measure=lambda seconds: Pace(1, 2, 3))
    assert planner.plan(0, Plan(1)).total_steps == 90  # 2 * (40 + 2) + 10 + 2 + 3
    planner.correct(step=3, epoch_end=4)  # now 2 and 3 seconds: 40 * 2 + 3, 5 * 2 + 3, 3
    assert planner.plan(40, Plan(90)).total_steps == 85


def test_of_epochs_and_time_the_shorter_counts(monkeypatch):
    monkeypatch.setattr("ctseg.schedule.time", SimpleNamespace(monotonic=lambda: 50.0))

    def plan(epochs, ends_at, done=0, before=None):
        planner = Planner(40, epochs, ends_at, lambda seconds: given.append(seconds) or Pace(1, 2, 8))
        return planner.plan(done, before or Plan(1)).total_steps

    given = []
    assert plan(epochs=3, ends_at=math.inf) == 120 and not given
    assert plan(epochs=3, ends_at=150.0) == plan(epochs=None, ends_at=150.0) == 86  # 2 * (40 + 2) + 6 + 2 + 8
    assert given == [1.0, 1.0]
    assert plan(epochs=2, ends_at=150.0) == 80
    assert plan(epochs=3, ends_at=150.0, done=40, before=Plan(120)) == 120
    assert plan(epochs=3, ends_at=60.0, done=40, before=Plan(120)) == 40
    with pytest.raises(TimeoutError, match="no time for a step of 1.0 s"):
        plan(epochs=3, ends_at=60.0)
    given.clear()
    with pytest.raises(TimeoutError, match="no time left to begin"):
        plan(epochs=3, ends_at=50.0)
    assert plan(epochs=3, ends_at=49.0, done=40, before=Plan(120)) == 40
    assert not given  # where the time is over, nothing is measured
    with pytest.raises(ValueError, match="neither epochs nor a time"):
        plan(epochs=None, ends_at=math.inf)


@pytest.mark.parametrize("total_steps", [1, 2, 4, 5, 9, 1000])
def test_one_cycle_rises_to_the_full_rate_and_falls_to_almost_0(total_steps):
    rates = [one_cycle(Plan(total_steps).locate(step)) for step in range(total_steps + 1)]
    top = int(np.argmax(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert min(rates) >= 0 and max(rates) <= 1
    if total_steps == 1000:
        assert top == 200
        assert rates[top] == pytest.approx(1, abs=1e-3) and rates[-1] == 0


@pytest.mark.parametrize("total_steps", [21, 40, 100])
def test_a_plan_that_changes_goes_on_where_it_was_and_ends_at_the_end(total_steps):
    plan = Plan(40)
    changed = plan.change(20, total_steps)
    assert changed.locate(19) == plan.locate(19)
    shares = [changed.locate(step) for step in range(19, total_steps + 1)]
    assert shares == sorted(shares) and shares[-1] == 1
    assert np.ptp(np.diff(shares)) < 1e-9
    assert changed.change(20, 40).locate(30) == pytest.approx(plan.locate(30))


def test_a_plan_that_stays_as_it_is_keeps_its_bits():
    plan = Plan(40).change(7, 33)
    assert plan.change(20, 33) is plan


def test_rounds_share_the_time_that_is_left_by_what_they_need(monkeypatch):
    now = SimpleNamespace(seconds=100.0, monotonic=lambda: now.seconds)
    monkeypatch.setattr("ctseg.schedule.time", now)
    clock = Timetable(ends_at=154.0, needs=[1.0, 1.0, 0.7])
    assert clock.find_end(0) == pytest.approx(120.0)
    now.seconds = 130.0  # the first round took 10 seconds longer
    assert clock.find_end(1) == pytest.approx(130 + 24 / 1.7)
    assert clock.find_end(2) == 154.0
    assert Timetable(ends_at=154.0, needs=[0.0]).find_end(0) == 154.0  # there is nothing to do
    assert Timetable(ends_at=math.inf, needs=[1.0, 1.0]).find_end(0) == math.inf


def test_a_deadline_counts_from_the_start_of_the_process(monkeypatch):
    monkeypatch.setattr("ctseg.schedule._STARTED", 1000.0)
    assert find_deadline(10) == 1600.0 and find_deadline(None) == math.inf
