"""Recognition of pickles that the unpickler in C may load: plain data alone, and a memo no larger than the file.

The unpickler in C is faster than the one in Python, but allocates as many memo entries as a pickle announces. Here its
instructions are checked without carrying them out; a file that is not recognized may be valid.
"""

from __future__ import annotations

import re

# The instructions of `pickletools` for numbers, text and containers, whose length the pattern itself can find. Numbers
# are those that pickle writes: others, such as "I007", the two unpicklers may read differently.
_FIXED = re.compile(
    rb"(?:[().01Naldsteu\]}\x85\x86\x87\x88\x89\x94]"
    rb"|[SV][^\n]*+\n"
    rb"|I(?:-?[1-9][0-9]{0,17}|0|00|01)\n"
    rb"|L(?:-?[1-9][0-9]{0,17}|0)L?\n"
    rb"|F[-+.0-9e]{1,30}\n"
    rb"|[pg][0-9]{1,9}\n"
    rb"|[Khq].|M..|J....|j....|G........|\x80[\x00-\x05])*+",
    re.DOTALL,
)
_PUT = re.compile(rb"p([0-9]{1,9})\n")
# Instructions followed by the length of their data, in bytes of this number, least significant first.
_LENGTH_BYTES = {b"T": 4, b"U": 1, b"X": 4, b"\x8c": 1, b"B": 4, b"C": 1, b"\x8a": 1}
_LONG_BINPUT, _FRAME = b"r", b"\x95"


def is_plain_pickle(content: bytes) -> bool:
    """Return whether a pickle consists of instructions for plain data, and announces no more than it has."""
    # A memo entry takes at least two bytes of the file; the numbers in a text that looks like an entry do no harm.
    most = len(content) // 2
    if max(map(int, _PUT.findall(content)), default=0) > most:
        return False
    position = 0
    while True:
        match = _FIXED.match(content, position)
        assert match is not None, "the pattern matches the empty text"
        position = match.end()
        if position == len(content):
            return True
        instruction = content[position : position + 1]
        if instruction == _LONG_BINPUT:
            if int.from_bytes(content[position + 1 : position + 5], "little") > most:
                return False
            position += 5
        elif instruction == _FRAME:
            # The length of the instructions that follow, for which the unpickler in C allocates memory.
            if int.from_bytes(content[position + 1 : position + 9], "little") > len(content):
                return False
            position += 9
        elif instruction in _LENGTH_BYTES:
            start = position + 1 + _LENGTH_BYTES[instruction]
            position = start + int.from_bytes(content[position + 1 : start], "little")
        else:
            return False
        if position > len(content):
            return False
