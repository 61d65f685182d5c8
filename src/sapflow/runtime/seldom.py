"""What happens again and again, told seldom: the 1st, 2nd, 4th, 8th … time, until it is over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from attrs import define, field


@define
class Seldom:
    """How often each thing has happened in a row; of more than `max_keys` things the oldest begin anew."""

    max_keys: int = 1024
    _times: OrderedDict[Hashable, int] = field(factory=OrderedDict)

    def again(self, key: Hashable) -> int:
        """It happened: how often by now when that is to be told, else 0."""
        times = self._times.pop(key, 0) + 1
        self._times[key] = times
        if len(self._times) > self.max_keys:
            self._times.popitem(last=False)
        return times if times & (times - 1) == 0 else 0

    def over(self, key: Hashable) -> int:
        """It is over: how often it had happened."""
        return self._times.pop(key, 0)
