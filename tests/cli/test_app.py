"""`app`: its options, and the checks before models are loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sam4mllm.cli.main import main, parse


def test_only_this_machine_is_served_by_default() -> None:
    options = parse(["app", "run"])
    assert (options.host, options.port, options.root, options.save) == (
        "127.0.0.1",
        7860,
        None,
        Path("corrections.jsonl"),
    )


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "70000"], ["--max-upload", "0"]])
def test_invalid_options_get_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["app", "run", *arguments])
    assert ended.value.code == 2 and "expected " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "none"], "none: no such folder; --root"),
        (["--save", "folder"], "folder: is not a file; --save"),
        (["--save", "none/a.jsonl"], "none"),
        ([], "the page needs gradio: pip install 'sam4mllm[app]'"),
    ],
)
def test_problems_are_reported_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "no-such-run", *arguments]) == 2
    assert message in capsys.readouterr().err
