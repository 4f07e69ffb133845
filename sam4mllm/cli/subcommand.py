"""The record of a subcommand, and the argparse parser that reports an error in one line."""

from __future__ import annotations

import argparse
import difflib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One subcommand: its name, its help texts, its options and its action.

    `run` imports the libraries that it needs, and returns the exit status: 0, or 1 when part of the work failed.
    `distributed` subcommands share their work among the processes of a launcher (`torchrun -m sam4mllm NAME ...`);
    `resumes` is True where the same command continues interrupted work.
    """

    name: str
    help: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    detail: str = ""
    distributed: bool = False
    resumes: bool = False

    def add_to(self, subparsers: argparse._SubParsersAction[Parser]) -> None:
        """Add the parser of this subcommand."""
        parser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[0].upper()}{self.help[1:]}. {self.detail}".strip(),
            allow_abbrev=False,
        )
        self.add_options(parser)


class Parser(ArgumentParser):
    """argparse's parser with one line per error, and the nearest known name for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        subcommand = self.prog.partition(" ")[2]
        usage = f"sam4mllm {subcommand} --help".replace("  ", " ")
        self.exit(2, f"sam4mllm: error: {message} (see `{usage}`)\n")

    def option_names(self) -> list[str]:
        """Return all option strings of this parser, such as `--device`."""
        return [option for action in self._actions for option in action.option_strings]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the known name that is closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
