"""The `secondlook` command: `app` is what it can do (`secondlook.cli.commands`), `main` its entry point."""

from __future__ import annotations

import signal
from typing import Any


def main() -> None:
    """Run the command. Ctrl-C while modules load ends it at once; later it ends what is under way, and cleans up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from secondlook.cli.commands import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def __getattr__(name: str) -> Any:
    if name == "app":
        from secondlook.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
