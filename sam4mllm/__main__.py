"""`python -m sam4mllm`: the command line."""

import sys

from sam4mllm.cli.main import main

sys.exit(main())
