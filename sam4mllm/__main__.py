"""The command line as a module: `python -m sam4mllm SUBCOMMAND ...`, and the same behind `torchrun -m`."""

import sys

from sam4mllm.cli.main import main

sys.exit(main())
