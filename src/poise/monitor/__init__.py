"""Probes to readings per prompt, token and turn; thresholds that keep a false-alarm rate; drift.

Knows no web. From numbers up:

    drift       a CUSUM with a stated average run length
    readings    probes of vectors; what is read of an answer
    push        what steering by itself adds to a reading
    ordinary    what a token reads in answers without the trait
    alarms      which readings pass their alarm, of finished answers and of those still coming
    score       finished conversations to readings, a window at a time
    normal      normal talk, read: the model's own answers or given ones
    calibrate   normal talk to alarms
    rows        scored answers as rows of a table
    table       the table, which survives a kill
"""

from __future__ import annotations

from poise.monitor.alarms import Raised, Watcher, alarmed, in_force
from poise.monitor.readings import Readings, sum_up

__all__ = ["Raised", "Readings", "Watcher", "alarmed", "in_force", "sum_up"]
