"""Which collector has work and does none, whatever it says of its load. Pure; the clock is given.

A collector that is up, answers, and says that it is idle may still get nothing done (a grey failure). What cannot lie
is whether it acknowledges what this balancer has given it, and whether it answers when it is asked.

Rule 1: a collector is idle when it had unacknowledged work for `after_s` and acknowledged none of it, while another one
        did acknowledge: when nobody does, it is not the collectors (the log is full, or gone) and nothing is left.
Rule 2: when the others have no work that could show it, one is left all the same, but only once until anybody does
        acknowledge: that is enough to find out.
Rule 3: it is left for `pause_s`, and longer each time.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field, frozen

MOST_PAUSE_S = 300.0
FORGET_S = 900.0
LATELY_S = 45.0
"""One that was left so long ago is as one that never was."""


@frozen
class IdleSettings:
    """How long is too long."""

    after_s: float = 5.0
    pause_s: float = 10.0


@frozen
class Work:
    """What a collector has of this balancer: whether any is unacknowledged, and when any was last acknowledged."""

    outstanding: bool
    progress_at: float
    since: float = float("inf")
    """Since when it has had any, where that is known; else it is since it was first seen."""


@frozen
class Idle:
    """A collector to be left until then, and why."""

    collector: str
    until: float
    reason: str


@define
class _Left:
    times: int
    at: float


@define
class IdleCollectors:
    """What was seen of collectors so far."""

    settings: IdleSettings = IdleSettings()
    _since: dict[str, float] = field(factory=dict)
    """Since when a collector has had unacknowledged work."""
    _left: dict[str, _Left] = field(factory=dict)
    _found_out: bool = False

    def judge(self, work: Mapping[str, Work], now: float) -> list[Idle]:
        """Those that are to be left now, given all collectors that may take something."""
        after = self.settings.after_s
        for name in self._since.keys() - {name for name, its in work.items() if its.outstanding}:
            del self._since[name]
        for name, its in work.items():
            if its.outstanding:
                self._since.setdefault(name, min(now, its.since))
        waited = {name: now - max(since, work[name].progress_at) for name, since in self._since.items()}
        stalled = {name for name, seconds in waited.items() if seconds >= after}
        working = any(its.progress_at >= now - after for name, its in work.items() if name not in stalled)
        if working:
            self._found_out = False
        untried = [name for name in work if name not in self._since]
        if not stalled or not (working or (untried and not self._found_out)):
            return []
        self._found_out = not working
        return [self._leave(name, waited[name], working, now) for name in sorted(stalled)]

    def is_left_lately(self, name: str, now: float) -> bool:
        """Whether it was left so lately that meters which had just moved there may not have obeyed a move yet."""
        left = self._left.get(name)
        return left is not None and now < left.at + LATELY_S

    def _leave(self, name: str, waited_s: float, others_work: bool, now: float) -> Idle:
        before = self._left.get(name)
        times = before.times + 1 if before is not None and now < before.at + FORGET_S else 1
        self._left[name] = _Left(times, now)
        self._since.pop(name, None)
        pause = min(MOST_PAUSE_S, self.settings.pause_s * times)
        while_ = "while others do" if others_work else "and others may"
        return Idle(name, now + pause, f"nothing acknowledged for {waited_s:.0f} s {while_}")
