"""``poise`` and ``python -m poise``; Ctrl-C is answered in a sentence also while the parts are still being imported."""

from __future__ import annotations

import os
import signal
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup, say
    if handled:
        signal.signal(signal.SIGINT, _leave)
    from poise.cli import main as run_commands

    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_commands()


def _leave(*_: Any) -> None:
    os.write(2, b"Interrupted. Run the same command again to continue.\n")
    os._exit(130)  # an exception could be swallowed by a module that is half imported


if __name__ == "__main__":
    main()
