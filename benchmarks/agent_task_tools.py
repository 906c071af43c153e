"""Tools of the tasks for agents: one that is out of order, one that fails at first, and one with an effect outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from poise.errors import ToolFailed

PRICES = {"bolt": "0.40", "nut": "0.15", "washer": "0.05"}


def price_service(name: Annotated[str, Field(description="Name of a part.")]) -> str:
    """Ask the price service for the price of a part."""
    raise ToolFailed(f"The price service was switched off for good; it has no price of {name}.")


def stock_of(name: Annotated[str, Field(description="Name of a part.")]) -> str:
    """Ask the stock service how many of a part there are."""
    mark = Path(os.environ["AGENT_TASK_STATE"]) / "stock-asked"
    if not mark.exists():
        mark.touch()
        raise ToolFailed("The stock service is busy.", kind="passing")
    return {"bolt": "120", "nut": "340"}.get(name, "0")


def send_order(item: str, count: int, idempotency_key: str) -> str:
    """Send an order to the supplier."""
    orders = Path(os.environ["AGENT_TASK_STATE"]) / "orders"
    orders.mkdir(exist_ok=True)
    (orders / idempotency_key).write_text(f"{item} {count}")
    return f"Ordered {count} of {item}."
