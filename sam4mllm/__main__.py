"""The entry point of the command line: `sam4mllm SUBCOMMAND`, `python -m sam4mllm`, and behind `torchrun -m`."""

from __future__ import annotations

import sys


def main() -> int:
    """Import the command line and run it; return its exit status, also for Ctrl-C during the imports."""
    try:
        from sam4mllm.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        from sam4mllm.utils.interruption import INTERRUPTED, INTERRUPTED_LINE

        print(INTERRUPTED_LINE, file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
