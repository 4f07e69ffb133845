"""Tokens of captions: equal to those of Stanford's PTBTokenizer 3.4.1, which are stored in ptb_tokens.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam4mllm.evaluation.ptb_tokens import caption_tokens

STORED = [json.loads(line) for line in (Path(__file__).parent / "ptb_tokens.jsonl").read_text("utf-8").splitlines()]


def test_the_tokens_are_those_of_the_reference() -> None:
    assert len(STORED) > 100
    different = [row["caption"] for row in STORED if caption_tokens(row["caption"]) != row["tokens"].split()]
    assert different == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", ""),
        (" . , ; : ! ? - -- ' \" ... ", ""),
        ("The Cat", "the cat"),
        ("the man's, not the women's", "the man 's not the women 's"),
        ("isn't can't won't", "is n't ca n't wo n't"),
        ("(left) [right]", "-lrb- left -rrb- -lsb- right -rsb-"),
        ("a red-white T-shirt", "a red-white t-shirt"),
        ("3:45 1,000 #2 $5 50%", "3:45 1,000 # 2 $ 5 50 %"),
        ("St. Louis, no. 7, no. left", "st. louis no. 7 no left"),
        ("it\u2019s a \u201cred\u201d one\u2026", "it 's a red one"),
    ],
)
def test_captions_are_split_as_in_the_penn_treebank(caption: str, tokens: str) -> None:
    assert caption_tokens(caption) == tokens.split()
