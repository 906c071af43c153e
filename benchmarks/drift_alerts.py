"""How often do ordinary answers raise the dashboard's drift alert, and how soon does a real change? Prints Markdown.

    python benchmarks/drift_alerts.py [--model smollm2-135m] [--answers 10000] [--runs 20] [--every 1000]

A pool of real readings: the model answers the extraction questions of the library's traits, unsteered, and `impolite`'s
vector reads each answer's mean. A second pool is of the same questions with steering switched on. Each of the runs is a
new dashboard: the server's own writer puts readings drawn with replacement from the first pool into a database, the
dashboard's own reader, charts and alerts take them in, and what it raises over ANSWERS ordinary answers is counted.
Then readings from the second pool come, and the answers until the alert are counted beside the delay that is stated.

Each run's chart is set on `baseline` readings drawn anew, so that the figures are over calibrations, as the promise is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from poise import contrast
from poise.activations import project
from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.drift import DriftChart
from poise.dashboard.rules import AlertRule, DashboardSettings, WatchedSource
from poise.dashboard.watching import DashboardWatch
from poise.engine import SamplingParams
from poise.extract import extract
from poise.model import Model, ask, load_model
from poise.serve.readings_db import ReadingRecord, ReadingsStore
from poise.statistics.estimates import mean_estimate
from poise.steer import Steering
from poise.trait import library
from poise.workflows.generation import generate

AFTER = 400  # answers after the change, at most


def pools(model: Model, n: int, dose: float, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean readings of answers without steering and with it."""
    questions = [question for name in library.names() for question in library.load_trait(name).questions.extraction]
    questions = list(dict.fromkeys(questions))[:n]
    vector = extract(contrast.exemplars(library.load_trait("impolite"), model), model)
    read = vector.at("read")
    pools = []
    for steering in (None, Steering.add(vector, dose=dose, layer=max(read.layer - 4, 0))):
        answers = generate(
            questions,
            model,
            sampling=SamplingParams(max_new_tokens=tokens, temperature=0.7),
            steering=steering,
            batch=16,
        )
        texts = [model.encode(ask(q), a.text) for q, a in zip(questions, answers, strict=True) if a.text.strip()]
        rows = [project(model, [text], [read.probe])[0][:, 0][text.start : text.end] for text in texts]
        pools.append(np.array([float(row.mean()) for row in rows if len(row)]))
    return pools[0], pools[1]


def put(path: Path, values: np.ndarray) -> None:
    """By the server's own writer."""
    store = ReadingsStore(path)
    for start in range(0, len(values), 5000):
        store.put(
            [
                ReadingRecord(time=time.time(), request=f"r{i}", trait="impolite", mean=float(v), peak=float(v))
                for i, v in enumerate(values[start : start + 5000])
            ]
        )
        while store.waiting:
            time.sleep(0.05)
    store.close(60)


def one_run(
    ordinary: np.ndarray, changed: np.ndarray, options: argparse.Namespace, rng: np.random.Generator
) -> tuple[int, int | None, float] | None:
    """False alarms, answers until the alert after the change, and the stated delay; nothing without a chart."""
    with tempfile.TemporaryDirectory() as folder:
        readings = Path(folder) / "readings.sqlite"
        rule = AlertRule(name="drift", when="drift", trait="impolite", every=options.every, baseline=options.baseline)
        source = WatchedSource(name="server", readings=str(readings))
        watch = DashboardWatch(
            DashboardSettings(servers=(source,), rules=(rule,)), AlertDatabase(Path(folder) / "dashboard.sqlite")
        )
        put(readings, rng.choice(ordinary, options.baseline))
        watch.poll()
        row = watch.database.rows("SELECT chart FROM charts")[0]
        if row["chart"] is None:
            return None
        chart = DriftChart.model_validate_json(row["chart"])
        put(readings, rng.choice(ordinary, options.answers))
        watch.poll()
        alerts = watch.database.rows("SELECT * FROM alerts")
        false = sum(alert["times"] for alert in alerts)
        with watch.database.changing() as db:
            db.execute("DELETE FROM alerts")
        put(readings, rng.choice(changed, AFTER))
        watch.poll()
        raised = watch.database.rows("SELECT text FROM alerts")
        seen = int(raised[0]["text"].split(": ")[1].split(" answers")[0].replace(",", "")) if raised else None
        stated = max(limit.delays[0].most for limit in chart.limits)
        return false, None if seen is None else seen - options.answers, stated


def main(options: argparse.Namespace) -> None:
    model = load_model(options.model)
    ordinary, changed = pools(model, options.pool, options.dose, options.tokens)
    shift = (changed.mean() - ordinary.mean()) / ordinary.std()
    print(
        f"{model.name}; pools of {len(ordinary)} ordinary readings and {len(changed)} with a dose of "
        f"{options.dose:.0%},\n{shift:+.2f} standard deviations away. A chart is set on {options.baseline} of them; "
        f"promised: a false alarm\nevery {options.every:,.0f} ordinary answers or more rarely.\n"
    )
    rng = np.random.default_rng(0)
    results = [one_run(ordinary, changed, options, rng) for _ in range(options.runs)]
    runs = [result for result in results if result is not None]
    if not runs:
        print("No chart could be set: the readings are too widely spread for this promise.")
        return
    false = mean_estimate([count for count, _, _ in runs])
    promised = options.answers / options.every
    few = sum(count <= promised for count, _, _ in runs)
    delays = [delay for _, delay, _ in runs if delay is not None]
    stated = np.median([stated for _, _, stated in runs])
    print(
        f"False alarms in {options.answers:,} ordinary answers: {false:.2f}, n = {len(runs)} runs; promised: "
        f"{promised:g} at most.\nRuns with at most {promised:g}: {few} of {len(runs)}. Charts that could not be set: "
        f"{len(results) - len(runs)}.\nAfter the change: alert in {len(delays)} of {len(runs)} runs within {AFTER} "
        "answers"
        + (f"; median {np.median(delays):.0f}, 95 % within {np.quantile(delays, 0.95):.0f}" if delays else "")
        + f"; stated for one standard deviation: {stated:.0f} answers in 95 % of cases."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--every", type=float, default=1000.0)
    parser.add_argument("--baseline", type=int, default=300)
    parser.add_argument("--pool", type=int, default=160)
    parser.add_argument("--dose", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=32)
    main(parser.parse_args())
