"""The night: thousands of units, unattended, and in the morning every one is accounted for.

kills       2,000 units, 8 at a time, killed by kill -9 ten times: each has its result once, what was paid for twice,
            the size of the work files.
faults      the same with the disk full, the clock stepped, the endpoint down, and the findings held by another process,
            each for a while: the run waits or says so, and ends complete.
night       60 units of smollm2-135m by the playbook, killed three times and left alone: equal findings. Takes hours,
            and goes on where it was stopped.
throughput  such units one by one, by one worker and by six: units an hour, forward tokens a second of pruning and
            substitution, memory. Takes hours, and goes on where it was stopped.
"""

from .night_faults import faults
from .night_kills import kills
from .night_same import night
from .night_throughput import throughput
from .report import Parts

PARTS: Parts = {part.__name__: part for part in (kills, faults, night, throughput)}

__all__ = ["PARTS"]
