"""The state of a server's parts, asked for at each scrape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from poise.serve.access_log import AccessLog
from poise.serve.metrics import Metrics
from poise.serve.reload import Reloader
from poise.serve.responses import VERSION
from poise.serve.service import Service

__all__ = ["add_gauges"]

OLD_NAMES = {
    "poise_readings_written": "poise_readings_written_total",
    "poise_readings_lost": "poise_readings_lost_total",
    "poise_store_failures": "poise_store_failures_total",
    "poise_webhook_sent": "poise_webhook_sent_total",
    "poise_webhook_lost": "poise_webhook_lost_total",
}
"""Counters that version 0.1.0 gave as gauges, under names without their ending."""


def add_gauges(service: Service, access_log: AccessLog | None, reloader: Reloader) -> None:
    """Add what is not counted request by request."""
    metrics, scheduler = service.metrics, service.scheduler
    _say_what_runs(service)
    gauge = metrics.add_gauge
    gauge("poise_ready", "1 while requests are taken.", lambda: float(scheduler.alive))
    gauge("poise_healthy", "0 where only a new start helps.", lambda: float(scheduler.healthy))
    gauge("poise_queue", "Answers that wait to begin.", lambda: scheduler.waiting)
    gauge("poise_running", "Answers that are being generated.", lambda: scheduler.running)
    gauge("poise_step_age_seconds", "Time that the model has been in its present step.", lambda: scheduler.step_age)
    _add_count(metrics, "poise_failed_steps", "Steps in which the model failed.", lambda: scheduler.failed_steps)
    if kept := service.engine.kept_tokens:
        gauge("poise_prefix_tokens", "Tokens of earlier texts that are kept.", kept)
    gauge("poise_reload_last_successful", "0 where the last reload was refused.", lambda: float(not reloader.failed))
    gauge(
        "poise_reload_last_success_timestamp_seconds",
        "Time of the last reload that was taken, or of the start.",
        lambda: reloader.succeeded,
    )
    gauge("poise_runs", "Runs that are remembered.", lambda: len(service.runs.book))
    counts, store = service.store.counts, service.store
    _add_count(metrics, "poise_readings_written", "Readings on disk since the start.", lambda: counts.written)
    _add_count(metrics, "poise_readings_lost", "Readings given up: the disk refused too long.", lambda: counts.lost)
    _add_count(metrics, "poise_store_failures", "Writes that were refused and tried again.", lambda: counts.failures)
    gauge("poise_readings_waiting", "Readings that are not on disk yet.", lambda: store.waiting)
    if hook := service.webhook:
        _add_count(metrics, "poise_webhook_sent", "Alarms that the webhook took.", lambda: hook.sent)
        _add_count(metrics, "poise_webhook_lost", "Alarms that the webhook never took.", lambda: hook.lost)
        _add_count(metrics, "poise_webhook_failures", "Posts that failed, and were tried again.", lambda: hook.failures)
        gauge("poise_webhook_waiting", "Alarms that wait to be posted.", lambda: hook.waiting)
    if lines := access_log:
        _add_count(metrics, "poise_access_log_lines", "Lines in the access log.", lambda: lines.written)
        _add_count(metrics, "poise_access_log_lost", "Lines that were given up.", lambda: lines.lost)


def _add_count(metrics: Metrics, name: str, text: str, value: Callable[[], float]) -> None:
    metrics.add_counter(name, text, value)
    if name in OLD_NAMES:
        metrics.add_gauge(name, f"Old name of {OLD_NAMES[name]}.", value)


def _say_what_runs(service: Service) -> None:
    engine = service.engine
    labels = {
        "version": VERSION,
        "model": service.name,
        "device": engine.device.type,
        "dtype": engine.dtype,
        "engine": engine.name,
    }
    service.metrics.add_info("poise_info", "What runs here.", labels)
    if engine.device.type == "cuda":
        for place, which in enumerate(("free", "total")):
            memory = partial(_gpu_memory, engine.device, place)
            service.metrics.add_gauge(f"poise_device_memory_{which}_bytes", f"GPU's memory, {which}.", memory)


def _gpu_memory(device: torch.device, place: int) -> float:
    return float(torch.cuda.mem_get_info(device)[place])
