"""Probes to readings per prompt, token and turn; thresholds that keep a false-alarm rate; drift.

Knows no web. From numbers up:

    readings            what is read of an answer: prompt, mean and peak
    steering_offset     what steering by itself adds to a reading
    baseline            what a token reads in answers without the trait
    alarms              which readings pass their alarm, of finished answers and of those still being generated
    scoring             finished conversations to readings, a window at a time
    reference_readings  normal conversations, read: the model's own answers or those in the data
    token_readings      answers token by token, for notebooks
    calibrate           reference readings to alarms
    run_chart           drift along a run, with false alarms promised a run
    table_rows          answers with their readings as rows of a table
    table               the table in a file, which survives a kill
"""

from __future__ import annotations

from poise.monitor.alarms import AlarmWatcher, RaisedAlarm, alarms_in_force, raised_alarms
from poise.monitor.readings import AnswerReadings, summarize_projections
from poise.monitor.run_chart import RunChart, RunCusum, fit_run_chart

__all__ = [
    "AlarmWatcher",
    "AnswerReadings",
    "RaisedAlarm",
    "RunChart",
    "RunCusum",
    "alarms_in_force",
    "fit_run_chart",
    "raised_alarms",
    "summarize_projections",
]
