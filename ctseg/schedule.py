"""How long training lasts: the steps that fit into a time, and the learning rate on the way."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_MEASURING = 0.01  # the share of the time that is used to find out the pace
_STARTED = time.monotonic()  # of this notebook, about: it imports the package first of all


def find_deadline(minutes: float | None) -> float:
    """The `time.monotonic()` so many minutes after the package was imported; infinity for None."""
    return math.inf if minutes is None else _STARTED + 60 * minutes


class Timetable:
    """When each of several rounds should end, so that the last one ends in time.

    Args:
        ends_at: the `time.monotonic()` at which all should be finished; infinity for no limit.
        needs: the time of each round, in any unit.
    """

    def __init__(self, ends_at: float, needs: Sequence[float]):
        self.ends_at, self.needs = ends_at, needs

    def find_end(self, number: int) -> float:
        """When a round that starts now should end: the others share what was lost or won before it."""
        now, left = time.monotonic(), self.needs[number:]
        if self.ends_at == math.inf or not sum(left):
            return self.ends_at
        return now + (self.ends_at - now) * left[0] / sum(left)


@dataclass(frozen=True)
class Plan:
    """Where the steps lie in the schedule, and how many there are; that may change on the way.

    Args:
        total_steps: all of them, those that are done included.
        anchor: the step behind which the rest of the schedule is spread evenly over the rest of the steps.
        position: the share of the schedule that is done with this step.
    """

    total_steps: int
    anchor: int = -1
    position: float = 0.0

    @property
    def is_cut(self) -> bool:
        """Whether it ends where it was last changed, with much of the schedule still to come."""
        return self.anchor == self.total_steps - 1 and self.position < 0.9

    def locate(self, step: int) -> float:
        """The share of the schedule, in (0, 1), that is done with a step behind the anchor.

        >>> Plan(total_steps=3).locate(1)
        0.5
        """
        passed = (step - self.anchor) / (self.total_steps - self.anchor)
        return self.position + (1 - self.position) * passed

    def change(self, done: int, total_steps: int) -> "Plan":
        """Spread the rest of the schedule, `done` steps being done, so that there are `total_steps`.

        >>> plan = Plan(total_steps=3).change(done=2, total_steps=5)
        >>> plan.locate(1), plan.locate(3)
        (0.5, 0.75)
        """
        if total_steps == self.total_steps:
            return self
        return Plan(total_steps, done - 1, self.locate(done - 1))


class Pace(NamedTuple):
    """Seconds of a step, of what follows the steps of an epoch, and of what follows all epochs."""

    step: float
    epoch_end: float
    end: float


def fit_steps(seconds: float, pace: Pace, steps_per_epoch: int) -> int:
    """How many steps fit into a time, with the end of each epoch, a last shorter one included, and of all.

    >>> fit_steps(100, Pace(step=1, epoch_end=2, end=10), steps_per_epoch=40)  # 2 * (40 + 2) + 4 + 2 + 10
    84
    >>> fit_steps(5, Pace(step=1, epoch_end=2, end=10), steps_per_epoch=40)
    0
    """
    epochs, rest = divmod(max(0.0, seconds - pace.end), steps_per_epoch * pace.step + pace.epoch_end)
    return int(epochs) * steps_per_epoch + max(0, int((rest - pace.epoch_end) / pace.step))


class Planner:
    """Plans the steps by the number of epochs and by a time, of which the shorter counts.

    Args:
        steps_per_epoch: of a whole epoch.
        epochs: their number; None where only the time counts.
        ends_at: the `time.monotonic()` at which all should be finished; infinity for no limit.
        measure: finds out the pace in about the seconds that it is given; called only where time is a limit.

    Raises:
        ValueError: neither epochs nor a time.
    """

    def __init__(
        self, steps_per_epoch: int, epochs: int | None, ends_at: float, measure: Callable[[float], Pace]
    ):
        if not epochs and ends_at == math.inf:
            raise ValueError("got neither epochs nor a time at which training ends; expected one of them")
        self.steps_per_epoch, self.epochs, self.ends_at = steps_per_epoch, epochs, ends_at
        self._measure, self._pace = measure, None

    def plan(self, done: int, before: Plan) -> Plan:
        """The plan from now on, `done` steps being done by the plan before.

        Raises:
            TimeoutError: there is no time for a first step.
        """
        limit, pace = self.steps_per_epoch * self.epochs if self.epochs else math.inf, self._pace
        if self.ends_at < math.inf:
            left = self.ends_at - time.monotonic()
            if not pace and left > 0:
                pace = self._pace = self._measure(_MEASURING * left)
                left = self.ends_at - time.monotonic()
            limit = min(limit, done + (fit_steps(left, pace, self.steps_per_epoch) if pace else 0))
        if not limit:
            why = "left to begin"
            if pace:
                why = (
                    f"for a step of {pace.step:.1f} s, a validation of {pace.epoch_end:.1f} s and the "
                    f"out-of-fold predictions of {pace.end:.1f} s"
                )
            raise TimeoutError(f"no time {why}; raise budget_minutes or deadline_minutes")
        return before.change(done, limit)

    def correct(self, *, step: float, epoch_end: float) -> None:
        """Correct the pace, if there is one, by an epoch's seconds: half of what was thought before stays."""
        if self._pace:
            step, epoch_end = (self._pace.step + step) / 2, (self._pace.epoch_end + epoch_end) / 2
            self._pace = self._pace._replace(step=step, epoch_end=epoch_end)

    def count_epochs(self, plan: Plan, done: int = 0) -> int:
        """How many epochs the steps of a plan make that are not done, a last shorter one included."""
        return math.ceil((plan.total_steps - done) / self.steps_per_epoch)


def one_cycle(done: float) -> float:
    """The share of the largest lr where a share of the schedule is done: a straight rise, then half a cosine.

    It rises over the first fifth and falls to 0 (Smith 2018). PyTorch's OneCycleLR rises and falls by one
    kind of curve, and cannot change its length.

    >>> one_cycle(0.1), one_cycle(0.2), one_cycle(1.0)
    (0.5, 1.0, 0.0)
    """
    rise = 0.2
    return done / rise if done < rise else 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (1 - rise))


SCHEDULES = {"constant": lambda done: 1.0, "one_cycle": one_cycle}  # as the setting `schedule` names them
