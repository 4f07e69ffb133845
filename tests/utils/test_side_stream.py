"""Work on a second CUDA stream: which stream waits for which, on a fake of torch.cuda, and the same results."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from sam4mllm.pipeline.batch import predict
from sam4mllm.utils.side_stream import SideStream
from tests.pipeline.test_batch import make_pipeline, make_queries


class FakeTensor:
    """A tensor that logs which stream uses it."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def record_stream(self, stream: FakeStream) -> None:
        self._log.append(f"tensor used by {stream.name}")


class FakeStream:
    """A stream that logs for which one it waits."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def wait_stream(self, other: FakeStream) -> None:
        self._log.append(f"{self.name} waits for {other.name}")


class FakeCuda:
    """The functions of torch.cuda that SideStream calls."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = FakeStream("default", self.log)

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream("side", self.log)

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.current

    @contextmanager
    def stream(self, stream: FakeStream):  # type: ignore[no-untyped-def]
        before, self.current = self.current, stream
        yield
        self.current = before


def test_each_stream_waits_for_what_it_needs() -> None:
    cuda = FakeCuda()
    side = SideStream(torch.device("cuda"), cuda)
    assert side.enqueue(lambda: cuda.log.append(f"computes on {cuda.current.name}") or 7) == 7
    cuda.log.append(f"generates on {cuda.current.name}")
    side.join([FakeTensor(cuda.log)])  # type: ignore[list-item]
    assert cuda.log == [
        "side waits for default",
        "computes on side",
        "generates on default",
        "default waits for side",
        "tensor used by default",
    ]


def test_images_are_embedded_on_the_side_stream_with_the_same_results(tmp_path: Path, monkeypatch) -> None:
    queries = make_queries(tmp_path)
    plain, _ = make_pipeline()
    predict(plain, queries, tmp_path / "plain", shard_size=4)
    pipeline, engine = make_pipeline()
    cuda = FakeCuda()
    pipeline._side_stream = SideStream(torch.device("cuda"), cuda)  # type: ignore[misc]
    embed, generate, decode = pipeline.segmenter.embed, engine.generate, pipeline.segmenter.decode

    def logged(name, function):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            cuda.log.append(f"{name} on {cuda.current.name}")
            return function(*arguments)

        return call

    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: cuda.log.append("recorded"))
    pipeline.segmenter.embed = logged("embed", embed)  # type: ignore[method-assign]
    pipeline.segmenter.decode = logged("decode", decode)  # type: ignore[method-assign]
    engine.generate = logged("generate", generate)  # type: ignore[method-assign]
    predict(pipeline, queries, tmp_path / "aside", shard_size=4)
    one_batch = ["side waits for default", "embed on side", "generate on default"]
    one_batch += ["default waits for side", "recorded", "decode on default"]
    assert cuda.log == one_batch * 3
    assert (tmp_path / "aside/predictions.jsonl").read_bytes() == (tmp_path / "plain/predictions.jsonl").read_bytes()


def test_a_cpu_has_no_side_stream_and_embeds_only_images_with_prompts() -> None:
    pipeline, _ = make_pipeline()
    embed, embedded = pipeline.segmenter.embed, []
    pipeline.segmenter.embed = lambda images: embedded.extend(images) or embed(images)  # type: ignore[method-assign]
    images = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (1, 2)]
    first, second = pipeline.answer(images, [(0, "a dragon"), (1, "thing 5")])
    assert (first.status, second.status) == ("no_object", "ok")
    assert [int(image[0, 0, 0]) for image in embedded] == [2]
