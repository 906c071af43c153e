"""Counts what vLLM puts aside where its cache is full."""

from __future__ import annotations

from typing import Any

import pytest


def count_preemptions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the requests that vLLM puts aside, as they come."""
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted: list[str] = []
    preempt = Scheduler._preempt_request

    def count(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(self, request, *arguments, **options)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    return preempted
