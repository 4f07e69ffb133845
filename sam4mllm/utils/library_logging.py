"""What libraries say to users who can do nothing about it. This module silences it by name, and nothing else."""

from __future__ import annotations

import logging
import os
import warnings


def silence_libraries() -> None:
    """For the command line alone: who imports this package keeps his libraries as they are."""
    # bitsandbytes tells of kernels that it would like to have, even where nothing is quantised.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Where DeepSpeed is installed, each training meets it, and it says on standard output that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    # Without a network the Hub's client tells of every one of its retries; our error says it once.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # peft asks transformers in words that are on their way out.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # So are our recipes, which want to be read by older ones, too.
    warnings.filterwarnings("ignore", message=".*`gradient_checkpointing", category=FutureWarning)
