"""Batch prediction: resumed to the same bytes, an error line for each bad input, one folder for one job."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam4mllm.cli.output import print_summary
from sam4mllm.data.masks import area
from sam4mllm.data.predictions import Confidence, Query, read_predictions
from sam4mllm.errors import DataError
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import Result, prediction_line
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.simulated import Killed


def answer(conversation: Conversation) -> str:
    """Return another box for each phrase: that of "thing 7" begins at 7."""
    question = conversation.turns[-1].text
    if "dragon" in question:
        return "No object found."
    if "riddle" in question:
        return "it is hard to say"
    number = int(question.split('"')[1].split()[-1])
    return f"[{number:03d},{number:03d},500,500] +(300,300)(310,310) -(900,900)"


def make_pipeline(image_batch: int = 2, die_after: int | None = None) -> tuple[Pipeline, ScriptedEngine]:
    def reply(conversation: Conversation) -> str:
        if die_after is not None and len(engine.asked) >= die_after:
            raise Killed
        return answer(conversation)

    engine = ScriptedEngine(reply)
    method = method_from_settings({"name": "ppg", "positives": 2, "negatives": 1, "grid": 1000, "phrases": 1})
    return Pipeline(method, engine, BoxSegmenter(), image_batch=image_batch, engine_identity={"name": "test"}), engine


def make_queries(folder: Path, images: int = 6, phrases: int = 3) -> list[Query]:
    """Return queries of several images in turn, so that those of one image are not adjacent."""
    for index in range(images):
        Image.fromarray(np.full((40 + index, 60, 3), index, dtype=np.uint8)).save(folder / f"{index}.png")
    return [
        Query(f"q/{index}/{number}", folder / f"{index}.png", f"thing {10 * index + number}")
        for number in range(phrases)
        for index in range(images)
    ]


def lines_of(output: Path) -> dict[str, dict]:
    return {line["id"]: line for line in map(json.loads, (output / "predictions.jsonl").read_text().splitlines())}


def test_every_query_has_a_line_that_can_be_read(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    queries += [Query("none", queries[0].image, "a dragon"), Query("odd", queries[1].image, "a riddle")]
    pipeline, _ = make_pipeline()
    summary = predict(pipeline, queries, tmp_path / "out", shard_size=4)
    assert (summary.ok, summary.no_object, summary.malformed, summary.error) == (18, 1, 1, 0)
    assert summary.total == 20
    read = {line.id: line for line in read_predictions(summary.predictions)}
    assert read.keys() == {query.id for query in queries}
    line = read["q/3/1"]
    assert line.status == "ok" and line.phrase == "thing 31" and line.image == tmp_path / "3.png"
    assert line.objects[0].segmentation["size"] == [43, 60] and area(line.objects[0].segmentation) > 100
    assert line.objects[0].prompt is not None and len(line.objects[0].prompt.points) == 3
    assert line.score == line.objects[0].score == 1 and read["odd"].score == 0
    assert read["none"].objects == () and read["odd"].status == "malformed" and read["odd"].answer


def test_malformed_answers_that_were_cut_off_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine([Reply("[1,2", finished=False), Reply("what"), Reply("[1,2,3,4]")])
    pipeline = Pipeline(make_pipeline()[0].method, engine, BoxSegmenter(), max_new_tokens=3)
    summary = predict(pipeline, make_queries(tmp_path, 1, 3), tmp_path / "out")
    assert (summary.ok, summary.malformed, summary.cut_off, summary.total) == (1, 2, 1, 3)
    assert summary.to_json()["cut_off"] == 1
    print_summary(summary)
    assert "1 ok, 0 no object, 2 malformed (1 cut off), 0 errors" in capsys.readouterr().err
    # A run that computes nothing counts the lines that exist.
    assert predict(pipeline, make_queries(tmp_path, 1, 3), tmp_path / "out") == summary


def test_the_line_has_the_fields_of_the_contract(tmp_path: Path) -> None:
    pipeline, _ = make_pipeline()
    predict(pipeline, make_queries(tmp_path, 1, 1), str(tmp_path / "out"))
    (line,) = lines_of(tmp_path / "out").values()
    assert line.keys() - {"score"} == {"id", "image", "phrase", "status", "answer", "objects", "error"}
    assert line["objects"][0].keys() == {"box_xyxy", "points_xy", "point_labels", "segmentation", "score", "confidence"}
    assert line["error"] is None and line["objects"][0]["point_labels"] == [1, 1, 0]


@pytest.mark.parametrize("die_after", [0, 1, 5, 9, 17])
def test_a_killed_job_resumes_to_the_same_bytes(tmp_path: Path, die_after: int) -> None:
    queries = make_queries(tmp_path)
    predict(make_pipeline()[0], queries, tmp_path / "complete", shard_size=4)
    with pytest.raises(Killed):
        predict(make_pipeline(die_after=die_after)[0], queries, tmp_path / "killed", shard_size=4)
    assert not (tmp_path / "killed" / "predictions.jsonl").exists()
    pipeline, engine = make_pipeline()
    predict(pipeline, queries, tmp_path / "killed", shard_size=4)
    assert len(engine.asked) == 18 - die_after // 6 * 6
    assert (tmp_path / "killed/predictions.jsonl").read_bytes() == (
        tmp_path / "complete/predictions.jsonl"
    ).read_bytes()


def test_a_finished_job_asks_nothing_again_and_reports_its_progress(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    first = predict(make_pipeline()[0], queries, tmp_path / "out", shard_size=4)
    pipeline, engine = make_pipeline(image_batch=5)
    advanced: list[int] = []
    assert predict(pipeline, queries, tmp_path / "out", shard_size=4, advance=advanced.append) == first
    assert engine.asked == [] and sum(advanced) == len(queries)


def test_progress_counts_every_query_once(tmp_path: Path) -> None:
    advanced: list[int] = []
    predict(make_pipeline()[0], make_queries(tmp_path), tmp_path / "out", shard_size=4, advance=advanced.append)
    assert sum(advanced) == 18


def test_queries_about_bad_images_are_errors_and_a_later_run_answers_them(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    (tmp_path / "1.png").unlink()
    (tmp_path / "4.png").write_text("not an image")
    summary = predict(make_pipeline()[0], queries, tmp_path / "out", shard_size=4)
    assert (summary.ok, summary.error) == (12, 6)
    lines = lines_of(tmp_path / "out")
    assert "no such file" in lines["q/1/0"]["error"] and lines["q/1/0"]["objects"] == []
    assert "not an image" in lines["q/4/2"]["error"]
    make_queries(tmp_path)
    summary = predict(make_pipeline()[0], queries, tmp_path / "out", shard_size=4)
    assert (summary.ok, summary.error) == (18, 0)


def test_an_image_that_the_model_fails_on_gives_errors_for_its_queries_alone(tmp_path: Path) -> None:
    class Failing(BoxSegmenter):
        def embed(self, images):  # type: ignore[no-untyped-def]
            if any(image.shape == (42, 60, 3) for image in images):
                raise ValueError("too odd")
            return super().embed(images)

    pipeline, _ = make_pipeline(image_batch=6)
    pipeline.segmenter = Failing()
    summary = predict(pipeline, make_queries(tmp_path), tmp_path / "out")
    assert (summary.ok, summary.error) == (15, 3)
    assert lines_of(tmp_path / "out")["q/2/0"]["error"] == "ValueError: too odd"


@pytest.mark.parametrize("image_batch", [1, 3])
def test_a_phrase_that_is_refused_gives_an_error_for_its_query_alone(tmp_path: Path, image_batch: int) -> None:
    queries = make_queries(tmp_path)
    changed = [replace(query, phrase="a token <image> 1") if query.id == "q/2/1" else query for query in queries]
    pipeline, engine = make_pipeline(image_batch)
    generate = engine.generate

    def refusing(conversations, max_new_tokens):
        if any("<image>" in conversation.turns[-1].text for conversation in conversations):
            raise DataError("the model's processor refuses the text")
        return generate(conversations, max_new_tokens)

    engine.generate = refusing
    predict(make_pipeline()[0], queries, tmp_path / "clean")
    summary = predict(pipeline, changed, tmp_path / "out")
    assert (summary.ok, summary.error) == (17, 1)
    clean, out = lines_of(tmp_path / "clean"), lines_of(tmp_path / "out")
    assert out.pop("q/2/1")["error"] == "the model's processor refuses the text"
    assert out == {name: line for name, line in clean.items() if name != "q/2/1"}


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    class Overflowing(BoxSegmenter):
        def decode_points(self, *arguments):  # type: ignore[no-untyped-def]
            decoded = super().decode_points(*arguments)
            return type(decoded)(decoded.low_res_logits, decoded.iou * torch.nan, decoded.index, decoded.sizes_wh)

    pipeline, _ = make_pipeline()
    pipeline.segmenter = Overflowing()
    summary = predict(pipeline, make_queries(tmp_path, 2, 1), tmp_path / "out")
    assert summary.error == 2 and "predicted IoUs are not finite" in lines_of(tmp_path / "out")["q/0/0"]["error"]


def test_a_probability_that_is_not_finite_is_an_error() -> None:
    masks = torch.zeros((0, 4, 4), dtype=torch.bool)
    result = Result(masks, [], torch.zeros(0), "no_object", "No object found.", None, (Confidence(math.nan),), math.nan)
    with pytest.raises(
        DataError, match=r"the model's probabilities are not finite: .nan.; load it with --dtype float32"
    ):
        prediction_line(Query("a", Path("a.png"), "a"), result)


def test_a_folder_of_another_job_is_refused_with_the_difference(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    pipeline, _ = make_pipeline()
    predict(pipeline, queries, tmp_path / "out")
    with pytest.raises(DataError, match=r"different: queries"):
        predict(pipeline, [*queries[1:], Query("q/0/0", queries[0].image, "thing 99")], tmp_path / "out")
    other = Pipeline(pipeline.method, pipeline.engine, pipeline.segmenter, engine_identity={"adapter": "another"})
    with pytest.raises(DataError, match=r"different: engine\)"):
        predict(other, queries, tmp_path / "out")


def test_a_later_calibration_rescores_existing_answers(tmp_path: Path) -> None:
    queries, out = make_queries(tmp_path), tmp_path / "out"
    first, _ = make_pipeline()
    predict(first, queries, out)
    plain = lines_of(out)
    pairs = [(Confidence(None, None, iou), iou > 0.5) for iou in (0.1, 0.9) * 20]
    made = fit_calibration(pairs, [], "val")
    for calibration, probability in ((made, made.objects.probability(Confidence(None, None, 1.0))), (None, 1.0)):
        again, engine = make_pipeline()
        again.calibration = calibration
        predict(again, queries, out)
        assert engine.asked == []
        scores = {item["score"] for line in lines_of(out).values() for item in line["objects"]}
        assert scores == {round(probability, 4)}
    assert lines_of(out) == plain


def test_queries_about_a_replaced_image_are_answered_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queries = make_queries(tmp_path)
    predict(make_pipeline()[0], queries, tmp_path / "out", shard_size=3)
    before = lines_of(tmp_path / "out")
    Image.fromarray(np.full((50, 70, 3), 9, dtype=np.uint8)).save(tmp_path / "2.png")
    (tmp_path / "4.png").rename(tmp_path / "moved.png")
    pipeline, engine = make_pipeline()
    summary = predict(pipeline, queries, tmp_path / "out", shard_size=3)
    assert (summary.ok, summary.error) == (18, 0) and len(engine.asked) == 3
    (message,) = caplog.messages
    assert "the images of 1 shard(s) were replaced since they were answered" in message
    assert message.endswith(f"the first one is {tmp_path / '2.png'}")
    after = lines_of(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"q/2/0", "q/2/1", "q/2/2"}
    assert after["q/2/0"]["objects"][0]["segmentation"]["size"] == [50, 70]
    # Now the records are those of the new image.
    pipeline, engine = make_pipeline()
    predict(pipeline, queries, tmp_path / "out", shard_size=3)
    assert not engine.asked and len(caplog.messages) == 1


def test_shards_without_digests_of_their_images_are_kept(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    predict(make_pipeline()[0], queries, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/images")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    pipeline, engine = make_pipeline()
    predict(pipeline, queries, tmp_path / "out")
    assert not engine.asked


def test_shards_of_older_versions_are_rescored(tmp_path: Path) -> None:
    """Their key `evidence` is now `confidence`."""
    queries, out = make_queries(tmp_path), tmp_path / "out"
    pipeline, _ = make_pipeline()
    predict(pipeline, queries, out, shard_size=4)
    for shard in (out / "shards").iterdir():
        shard.write_text(shard.read_text().replace('"confidence"', '"evidence"'))
    again, engine = make_pipeline()
    again.calibration = fit_calibration(
        [(Confidence(None, None, iou), iou > 0.5) for iou in (0.1, 0.9) * 20], [], "val"
    )
    summary = predict(again, queries, out, shard_size=4)
    assert engine.asked == [] and summary.ok == 18
    confidences = [item.confidence for line in read_predictions(summary.predictions) for item in line.objects]
    assert confidences == [Confidence(None, None, 1.0)] * 18
    assert '"evidence"' not in summary.predictions.read_text()


def test_an_image_is_embedded_once_wherever_its_queries_are(tmp_path: Path) -> None:
    embedded: list[int] = []

    class Counting(BoxSegmenter):
        def embed(self, images):  # type: ignore[no-untyped-def]
            embedded.append(len(images))
            return super().embed(images)

    pipeline, _ = make_pipeline()
    pipeline.segmenter = Counting()
    predict(pipeline, make_queries(tmp_path), tmp_path / "out", shard_size=4)
    assert sum(embedded) == 6
