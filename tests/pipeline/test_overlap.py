"""Decoding, answering and writing that overlap: the same bytes whatever the timing, errors, and bounded memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sam4mllm.pipeline import image_files
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.job import Job
from sam4mllm.utils.distributed import DistributedContext
from tests.pipeline.test_batch import make_pipeline, make_queries


def test_threads_of_any_timing_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last image of each pair is decoded first, and a shard is written while the next one is answered."""
    queries = make_queries(tmp_path)
    (tmp_path / "2.png").write_text("not an image")
    predict(make_pipeline()[0], queries, tmp_path / "plain", shard_size=4)
    decoded = {tmp_path / f"{number}.png": threading.Event() for number in range(6)}
    next_answered, load, write = threading.Event(), image_files.load_image, Job.write_shard

    def load_in_reverse(path: Path):  # type: ignore[no-untyped-def]
        number = int(path.stem)
        if number % 2 == 0:
            assert decoded[tmp_path / f"{number + 1}.png"].wait(60)
        try:
            return load(path)
        finally:
            decoded[path].set()

    def write_later(job: Job, index: int, *arguments):  # type: ignore[no-untyped-def]
        if index == 0:
            assert next_answered.wait(60)
        write(job, index, *arguments)

    pipeline, engine = make_pipeline()
    generate = engine.generate

    def answer_after(conversations, max_new_tokens):  # type: ignore[no-untyped-def]
        replies = generate(conversations, max_new_tokens)
        if len(engine.asked) > 6:
            next_answered.set()
        return replies

    engine.generate = answer_after
    monkeypatch.setattr(image_files, "load_image", load_in_reverse)
    monkeypatch.setattr(Job, "write_shard", write_later)
    assert predict(pipeline, queries, tmp_path / "threads", shard_size=4).error == 3
    files = sorted(path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.json*"))
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "threads" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), file


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_of_the_writer_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    write, written = Job.write_shard, []

    def fail_at_one(job: Job, index: int, *arguments):  # type: ignore[no-untyped-def]
        if index == bad:
            raise OSError(28, "No space left on device", "shard")
        write(job, index, *arguments)
        written.append(index)

    monkeypatch.setattr(Job, "write_shard", fail_at_one)
    with pytest.raises(OSError, match="No space left on device"):
        predict(make_pipeline()[0], make_queries(tmp_path), tmp_path / "out", shard_size=4)
    assert written == list(range(bad)) and not (tmp_path / "out/predictions.jsonl").exists()


def test_at_most_two_batches_of_images_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = image_files.load_image, []
    monkeypatch.setattr(image_files, "load_image", lambda path: loaded.append(path) or load(path))
    pipeline, _ = make_pipeline(image_batch=2)
    answer_queries, answered = pipeline.answer_queries, []

    def count(images, queries):  # type: ignore[no-untyped-def]
        assert len(loaded) <= len(answered) + 4
        answered.extend(images)
        return answer_queries(images, queries)

    pipeline.answer_queries = count
    predict(pipeline, make_queries(tmp_path, images=12, phrases=1), tmp_path / "out", shard_size=3)
    assert len(loaded) == len(answered) == 12


def test_a_process_takes_one_shard_ahead_whatever_the_batch_is(tmp_path: Path) -> None:
    """Shards of one image are left for other processes, though a batch of 16 images would hold all of them."""
    taken: list[int] = []

    class Processes(DistributedContext):
        def distribute(self, items):  # type: ignore[no-untyped-def]
            for item in items:
                taken.append(item)
                yield item

    pipeline, _ = make_pipeline(image_batch=16)
    answer_queries, taken_at = pipeline.answer_queries, []

    def count(images, queries):  # type: ignore[no-untyped-def]
        taken_at.append(len(taken))
        return answer_queries(images, queries)

    pipeline.answer_queries = count
    predict(pipeline, make_queries(tmp_path), tmp_path / "out", shard_size=1, processes=Processes())
    assert taken_at == [2, 3, 4, 5, 6, 6]


def test_temporary_files_of_a_killed_job_are_removed(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    predict(make_pipeline()[0], queries, tmp_path / "out", shard_size=4)
    left = [tmp_path / "out" / folder / ".00000.json.123456.tmp.json" for folder in ("shards", "images")]
    for file in left:
        file.write_text("half")
    predict(make_pipeline()[0], queries, tmp_path / "out", shard_size=4)
    assert not any(file.exists() for file in left)
