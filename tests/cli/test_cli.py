"""The command line: quick help, one clear line for what is wrong, and each verb's files, with a scripted model."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.cli import answer_commands, commands
from sam4mllm.cli.main import main
from sam4mllm.cli.parser import build_parser
from sam4mllm.data.generated import mark
from sam4mllm.errors import DataError
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.data.tiny_datasets import (
    annotation,
    image_record,
    rectangle,
    ref,
    write_image,
    write_instances,
    write_reasonseg,
    write_refs,
)

VERBS = (
    "demo",
    "prepare",
    "inspect",
    "train",
    "segment",
    "predict",
    "evaluate",
    "calibrate",
    "score",
    "convert",
    "merge",
    "shapes",
    "doctor",
)

# The objects of the tiny data set below, as a perfect model would name them on a grid of 1000 over 20 x 10 pixels.
ANSWERS = {
    "left": "[100,100,399,499] +(200,200)(300,300) -(900,900)",
    "right": "[500,100,799,499] +(600,200)(700,300) -(900,900)",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_instances(folder / "refcoco", [image_record(5)], [annotation(50, 5), annotation(51, 5, x=10)])
    write_refs(folder / "refcoco", [ref(1, 50, 5, "val", "the left one", "left"), ref(2, 51, 5, "val", "right")])
    write_image(folder / "images/mscoco/images/train2014" / image_record(5)["file_name"])
    return folder


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb that loads a model gets a scripted one, and a segmenter whose mask is the box."""

    def pipeline(options: Namespace) -> Pipeline:
        answers = {**ANSWERS, "dragon": "No object found.", "riddle": "who knows"}
        return Pipeline(method_from_settings(MethodSection().model_dump()), ScriptedEngine(answers), BoxSegmenter())

    monkeypatch.setattr(answer_commands, "pipeline_of", pipeline)


def cpu_seconds(*arguments: str) -> float:
    """The least of five runs' processor time, which a busy machine stretches less than the clock's."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_answers_within_0_4_seconds_of_a_bare_python() -> None:
    assert cpu_seconds("-m", "sam4mllm", "--help") - cpu_seconds("-c", "pass") < 0.4


def test_help_and_the_package_load_nothing_heavy() -> None:
    code = (
        "import sys, sam4mllm, sam4mllm.cli.main; sam4mllm.cli.parser.build_parser().format_help(); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL', 'datasets', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_has_a_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: sam4mllm {verb}" in capsys.readouterr().out
    assert hasattr(commands, verb) != hasattr(answer_commands, verb)


def test_the_verbs_are_those_of_the_contract() -> None:
    assert all(f"    {verb} " in build_parser().format_help() for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "unknown verb 'trian'; did you mean train?"),
        (["segmnet", "a", "b"], "did you mean segment?"),
        (["xyzzy"], "unknown verb 'xyzzy' (see"),
        ([], "VERB"),
        (["predict", "run", "q.jsonl", "--ouput", "x", "--output", "y"], "did you mean --output?"),
        (["train", "recipe", "--divice=cpu"], "unknown argument '--divice=cpu'; did you mean --device?"),
        (["score", "p.jsonl", "--dataset", "refcocoo", "--root", ".", "--split", "val"], "refcoco"),
        (["shapes", "d", "--scenes", "0"], "1 or more"),
        (["shapes", "d", "--seed", "-1"], "0 or more"),
        (["segment", "run"], "IMAGE"),
    ],
)
def test_a_mistyped_command_gets_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("sam4mllm: error: ") and error.count("\n") == 1 and says in error


def test_settings_may_stand_before_and_after_options() -> None:
    from sam4mllm.cli.parser import parse

    options = parse(["train", "shapes_ppg", "seed=1", "--device", "cpu", "training.max_steps=3"])
    assert options.overrides == ["seed=1", "training.max_steps=3"] and options.device == "cpu"


@pytest.mark.usefixtures("scripted")
def test_an_output_that_cannot_be_written_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "image": "a.png", "phrase": "left"}))
    (tmp_path / "taken").write_text("a file, not a folder")
    arguments = ["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "taken")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("sam4mllm: error: ") and error.count("\n") == 1 and "taken" in error
    with pytest.raises(OSError, match="taken"):
        main(["--traceback", *arguments])


def test_an_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "sam4mllm: interrupted; the same command goes on from here\n"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(options: Namespace) -> int:
        raise RuntimeError("ours")

    monkeypatch.setattr(commands, "demo", defect)
    with pytest.raises(RuntimeError, match="ours"):
        main(["demo"])


@pytest.mark.usefixtures("scripted")
def test_segment_writes_the_image_the_mask_and_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "a.png")
    files = ["-o", str(tmp_path / "o.png"), "--mask", str(tmp_path / "m.png"), "--json", str(tmp_path / "l.json")]
    assert main(["segment", "run", str(image), "the left one", *files]) == 0
    assert capsys.readouterr().out == f"1 object\n{ANSWERS['left']}\n"
    mask = np.asarray(Image.open(tmp_path / "m.png"))
    assert mask.shape == (10, 20) and mask[3, 5] == 255 and mask[3, 15] == 0
    assert Image.open(tmp_path / "o.png").size == (400, 200)
    assert json.loads((tmp_path / "l.json").read_text())["status"] == "ok"


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("phrase", "status", "said"), [("a dragon", 0, "no object\nNo object found.\n"), ("a riddle", 1, "malformed")]
)
def test_segment_tells_no_object_from_malformed(
    phrase: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "run", str(write_image(tmp_path / "a.png")), phrase]) == status
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("scripted")
def test_json_on_standard_output_is_nothing_but_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["segment", "run", str(write_image(tmp_path / "a.png")), "left", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["objects"][0]["segmentation"]["size"] == [10, 20]


@pytest.mark.usefixtures("scripted")
def test_a_mask_is_not_written_where_its_values_would_blur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "a.png")
    assert main(["segment", "run", str(image), "left", "--mask", str(tmp_path / "m.jpg")]) == 2
    assert "would not keep a mask's 0 and 255; take .png" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_options_of_a_data_set_are_refused_beside_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--split", "val", "--root", "data"]) == 2
    assert "--root, --split: belongs to a data set" in capsys.readouterr().err
    assert main([*arguments, "--column", "phrase=answer"]) == 2
    assert "--column: belongs to a data set" in capsys.readouterr().err


def test_an_error_of_a_data_loaders_worker_is_told_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(options: Namespace) -> int:
        raise DataError(
            "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "x.py", line 1, in y\nsam4mllm.errors.DataError: a.png: cannot be read\n'
        )

    monkeypatch.setattr("sam4mllm.cli.main.commands.train", train)
    assert main(["train", "shapes_ppg"]) == 2
    assert capsys.readouterr().err == "sam4mllm: error: a.png: cannot be read\n"


@pytest.mark.usefixtures("scripted")
def test_predict_ends_with_1_when_a_line_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_image(tmp_path / "a.png"), tmp_path / "b.png"
    queries = tmp_path / "q.jsonl"
    asked = [("1", good, "left"), ("2", bad, "left"), ("3", good, "a dragon")]
    lines = [json.dumps({"id": identity, "image": str(image), "phrase": phrase}) for identity, image, phrase in asked]
    queries.write_text("\n".join(lines))
    arguments = ["predict", "run", str(queries), "--output", str(tmp_path / "out"), "--json", str(tmp_path / "s.json")]
    assert main(arguments) == 1
    assert "3 predictions" in (told := capsys.readouterr().err) and "1 errors" in told
    assert json.loads((tmp_path / "s.json").read_text())["error"] == 1
    write_image(bad)
    assert main(arguments) == 0


@pytest.mark.usefixtures("scripted")
def test_evaluate_predicts_and_scores_and_score_agrees(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    out = tmp_path / "out"
    assert main(["evaluate", "run", *data, "--output", str(out), "--json", str(tmp_path / "e.json")]) == 0
    printed = capsys.readouterr().out
    assert "protocol refcoco" in printed and "LISA-7B" in printed
    assert main(["score", str(out / "predictions.jsonl"), *data, "--json", "-"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((tmp_path / "e.json").read_text())
    assert (scores["n"], scores["missing"], scores["malformed"], scores["acc_50"]) == (3, 0, 0, 1.0)
    assert scores["ciou"] > 0.7 and scores["n_acc"] is None


def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, own = write_image(tmp_path / "a.png"), tmp_path / "own.jsonl"
    own.write_text(json.dumps({"image": "a.png", "phrase": "nothing"}) + "\n")
    before = image.read_bytes(), own.read_bytes()
    assert main(["convert", "--dataset", "jsonl", "--path", str(own), "-o", str(own)]) == 2
    assert "own.jsonl: is the file that is converted" in capsys.readouterr().err
    assert main(["segment", "run", str(image), "left", "-o", str(image)]) == 2
    assert "a.png: is the image that is asked about" in capsys.readouterr().err
    assert (image.read_bytes(), own.read_bytes()) == before


@pytest.mark.usefixtures("scripted")
def test_an_evaluation_without_any_image_says_so_first(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "images/mscoco/images/train2014")
    (root / "images/mscoco/images/train2014").mkdir()
    arguments = ["--dataset", "refcoco", "--root", str(root), "--split", "val", "--output", str(tmp_path / "out")]
    assert main(["evaluate", "run", *arguments]) == 2
    assert "refcoco val: none of its 1 images is there" in (said := capsys.readouterr().err) and "--images" in said


def test_convert_writes_what_is_scored_alike(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    file = tmp_path / "own.jsonl"
    assert main(["convert", *source, "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 3 phrases about 1 images\n"
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "refcoco/val/1/10", "status": "no_object"}))
    scores = []
    for data in (source, ["--dataset", "jsonl", "--path", str(file), "--protocol", "refcoco"]):
        assert main(["score", str(tmp_path / "p.jsonl"), *data, "--json", "-"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    of_source, of_own = ({k: v for k, v in each.items() if k not in ("dataset", "split")} for each in scores)
    assert of_source == of_own and (scores[1]["dataset"], scores[1]["split"]) == ("jsonl", "own")
    assert main(["convert", *source, "-o", str(file), "--limit", "2"]) == 0
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.usefixtures("scripted")
def test_predict_asks_a_data_set_as_well(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    assert main(["predict", "run", *data, "--output", str(tmp_path / "out")]) == 0
    assert "3 predictions" in capsys.readouterr().err
    for wrong in ([], ["q.jsonl", *data]):
        assert main(["predict", "run", *wrong, "--output", str(tmp_path / "out")]) == 2
        assert "give one of the two" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_evaluate_asks_a_chat_file_and_keeps_the_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "elsewhere" / "a.png")
    lines = [
        {"image": image.name, "question": "Is there a dragon?", "answer": "No."},
        {"image": image.name, "question": "Who knows the riddle?", "answer": "nobody"},
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val", "--output", str(tmp_path / "out")]
    chat = ["--chat", str(tmp_path / "chat.jsonl"), "--json", str(tmp_path / "s.json")]
    chat += ["--chat-images", str(image.parent)]
    assert main(["evaluate", "run", *data, *chat]) == 0
    assert "1 yes/no questions, 1 with a short answer, 0 not judged" in capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text())["chat"]["model"]
    assert found == {"yes_no": 1, "yes_no_accuracy": 1.0, "short": 1, "exact_match": 0.0, "unjudged": 0}


@pytest.mark.usefixtures("scripted")
def test_a_limited_evaluation_is_not_set_beside_published_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val", "--limit", "2"]
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 queries" in printed and "LISA" not in printed


@pytest.mark.usefixtures("scripted")
def test_one_command_evaluates_all_that_a_root_holds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_refs(
        root / "refcoco",
        [ref(1, 50, 5, "val", "the left one", "left"), ref(2, 51, 5, "testA", "right"), ref(3, 51, 5, "train", "x")],
    )
    write_reasonseg(root, "val", "a", ["left"], [rectangle("target", 2, 1, 7, 4)])
    out = tmp_path / "out"
    arguments = ["--dataset", "all", "--root", str(root), "--output", str(out), "--baseline", "filled-box"]
    arguments += ["--baseline", "box", "--json", str(tmp_path / "e.json")]
    assert main(["evaluate", "run", *arguments]) == 0
    printed, told = capsys.readouterr()
    results = json.loads((out / "results.json").read_text())
    assert results == json.loads((tmp_path / "e.json").read_text()) and str(out / "results.json") in told
    assert results["command"] == ["sam4mllm", "evaluate", "run", *arguments]
    assert {"date", "seconds", "versions", "commit", "machine", "pipeline", "min_pixels"} <= results.keys()
    assert results["recipe"] is None and results["seed"] is None and results["model"] == "run"
    assert results["pipeline"]["segmenter"] == BoxSegmenter().fingerprint
    splits = {(split["data"]["dataset"], split["data"]["split"]): split for split in results["splits"]}
    assert list(splits) == [("refcoco", "val"), ("refcoco", "testA"), ("reasonseg", "val")]
    for (dataset, split), found in splits.items():
        assert found["predictions"] == f"{dataset}-{split}/predictions.jsonl" and (out / found["predictions"]).is_file()
        assert found["trust"]["objects"]["n"] > 0 and len(found["trust"]["coverage"]) == 10
        assert Image.open(out / f"{dataset}-{split}/trust.png").size[0] > 600
        assert (out / found["page"]).is_file() and list(found["baselines"]) == ["filled-box", "box"]
        # The segmenter's mask is the box, whatever the points, so no baseline can differ.
        assert all(scores == found["scores"] for scores in found["baselines"].values())
        assert found["scores"]["protocol"] == ("reasonseg" if dataset == "reasonseg" else "refcoco")
    described = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    assert not [key for key in (*results, *results["splits"][0]) if f"`{key}`" not in described]
    assert "cIoU of the surest answers" in printed and "refcoco testA" in printed
    assert "val cIoU  testA cIoU" in printed and "run, filled-box" in printed and "LISA-7B" in printed
    again = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "results.json"}
    assert main(["evaluate", "run", *arguments]) == 0
    assert again == {path: path.read_bytes() for path in again}


@pytest.mark.usefixtures("scripted")
def test_generated_data_are_not_set_beside_published_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    mark(root, scenes=1, held_out=2, seed=0)
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out"), "--cases", "0"]) == 0
    assert main(["evaluate", "run", "--dataset", "all", "--root", str(root), "--output", str(tmp_path / "all")]) == 0
    assert main(["score", str(tmp_path / "out/predictions.jsonl"), *data]) == 0
    printed = capsys.readouterr().out
    assert printed.count("cIoU") >= 3 and "LISA" not in printed
    assert not (tmp_path / "out/cases").exists() and (tmp_path / "all/refcoco-val/cases/index.html").is_file()


@pytest.mark.usefixtures("scripted")
def test_a_protocol_that_does_not_fit_is_told_before_a_model_is_asked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reasonseg(root, "val", "a", ["left"], [])
    data = ["--dataset", "reasonseg", "--root", str(root), "--split", "val", "--protocol", "refcoco"]
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out")]) == 2
    assert "refcoco has no place for a phrase without target" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_was_scored_can_be_piped_to_a_program_that_stops_reading(root: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    command = f"{sys.executable} -m sam4mllm score {tmp_path}/p.jsonl --dataset refcoco --root {root} --split val"
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
