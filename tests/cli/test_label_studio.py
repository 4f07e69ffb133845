"""`label-studio`: the backend that the command line starts, and its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.cli.main import main, parse
from tests.cli.serving import run_while_serving
from tests.data.tiny_datasets import write_image
from tests.labeling.servers import CONFIG, ask


@pytest.mark.usefixtures("scripted")
def test_the_backend_answers_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos/a.png", 20, 10)
    answers = []

    def use(port: int) -> None:
        body = {"tasks": [{"data": {"photo": "a.png", "phrase": "left"}}], "label_config": CONFIG}
        answers.append(ask(port, "POST", "/predict", body))

    assert run_while_serving(["runs/mine", "--images", "photos"], use, monkeypatch) == 0
    ((status, answer),) = answers
    assert status == 200 and answer["model_version"] == "mine" and answer["results"][0]["result"]
    assert "ML backend at http://127.0.0.1:" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_a_folder_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label-studio", "run", "--images", "none"]) == 2
    assert "none: no such folder; --images is the folder of local images" in capsys.readouterr().err


def test_only_this_machine_is_served_by_default() -> None:
    options = parse(["label-studio", "run"])
    assert (options.host, options.port, options.label_studio_url) == ("127.0.0.1", 9090, "http://localhost:8080")


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "-1"], ["--allow-url", "file:///etc"]])
def test_invalid_options_get_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["label-studio", "run", *arguments])
    assert ended.value.code == 2 and "expected " in capsys.readouterr().err
