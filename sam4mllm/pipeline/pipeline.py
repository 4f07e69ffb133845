"""Pipeline: images and phrases in, masks out; the whole way from asking to segmenting in one process.

    images, phrases -> method asks the engine -> prompts -> segmenter -> masks on the device

It holds no training and no files: what comes from a run folder is gathered by `loading.py`, what goes to
predictions.jsonl is written by `batch.py`. It does not know how a method asks or what an answer looks like.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import torch

from sam4mllm.data.images import ImageInput, Rgb, as_rgb
from sam4mllm.data.predictions import Confidence, Query
from sam4mllm.methods.base import Answer, Method, Question
from sam4mllm.methods.parsing import require_scoring_engine
from sam4mllm.mllm.engine import Engine
from sam4mllm.pipeline.loading import load_pipeline_parts
from sam4mllm.pipeline.result import Result
from sam4mllm.recipe.schema import GenerationSection
from sam4mllm.runs.calibration import Calibration, scores_of
from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.segmenters.fallback import BoxFallback, segment_guarded

_EMBEDDED_AT_ONCE = 4
"""Images of one device batch of the segmenter's encoder; the largest SAM takes about a gigabyte for each."""


class Pipeline:
    """Answers (image, phrase) pairs with masks.

    Attributes:
        method: how the model is asked.
        engine: what generates the answers.
        segmenter: what turns prompts into masks; the results lie on its device.
        max_new_tokens: the longest answer; unless told, as long as a recipe's is by default.
        image_batch: how many images are held, and their phrases asked, at once.
        fallback: when the mask of the box alone is taken in place of that of box and points; by default never.
        calibration: what makes scores of evidence; None where nothing was fitted.
    """

    def __init__(
        self,
        method: Method,
        engine: Engine,
        segmenter: Segmenter,
        *,
        max_new_tokens: int | None = None,
        image_batch: int = 16,
        engine_identity: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        fallback: BoxFallback | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if max_new_tokens is None:
            max_new_tokens = GenerationSection().max_new_tokens
        if method.needs_probabilities:
            require_scoring_engine(engine)
        if image_batch < 1 or max_new_tokens < 1:
            raise ValueError(f"expected 1 or more; got {image_batch=}, {max_new_tokens=}")
        self.method = method
        self.engine = engine
        self.segmenter = segmenter
        self.max_new_tokens = max_new_tokens
        self.image_batch = image_batch
        self.fallback = fallback or BoxFallback()
        self.calibration = calibration
        self._engine_identity = engine_identity or {"class": type(engine).__name__}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        adapter: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        segmenter: str | Path | Segmenter | None = None,
        method: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        server: str | None = None,
        server_model: str | None = None,
        fallback: BoxFallback | None = None,
    ) -> Pipeline:
        """The pipeline of a run folder, or of a base model with or without an adapter.

        Args:
            model: a run folder, or a base model: a folder, a Hub id, or "shapes" for the one in the package.
            adapter: a LoRA adapter for a base model.
            device: "cpu", "cuda", ...; "auto" is cuda where there is one.
            dtype: of the MLLM: "auto" (the run's, or the checkpoint's), "float32", "bfloat16" or "float16".
            segmenter: a SAM checkpoint (.pth, or "shapes"), or a Segmenter; None takes the run's, and for the base
                "shapes" its companion.
            method: the settings of a method; None takes the run's, and for a base model asks for boxes alone, which is
                what models know untaught.
            batch_size: questions generated at once; None takes the run's.
            server: the address of an OpenAI-compatible server that answers in the MLLM's place, which is then not
                loaded; `model` is the run folder. The variable OPENAI_API_KEY holds its key, where it wants one.
            server_model: the name that the server has for the model; None for its only one.
            fallback: when the mask of the box alone is taken; None takes the run's, `BoxFallback()` is never.

        Raises:
            ModelError: model, adapter or segmenter cannot be loaded, or none is named.
            ServerError: the server does not answer.
        """
        parts = load_pipeline_parts(
            model,
            adapter,
            device=device,
            dtype=dtype,
            segmenter=segmenter,
            method=method,
            batch_size=batch_size,
            server=server,
            server_model=server_model,
            fallback=fallback,
        )
        return cls(**parts)

    def uncalibrated(self) -> Pipeline:
        """This pipeline, its models shared, with the scores that it has where nothing was fitted."""
        other = copy.copy(self)
        other.calibration = None
        return other

    @property
    def identity(self) -> dict[str, Any]:
        """The models and settings; two pipelines of equal identity give equal results.

        To name a model may take the reading of all its weights, so only who asks waits for it.
        """
        engine = self._engine_identity() if callable(self._engine_identity) else self._engine_identity
        named = {
            "method": self.method.settings(),
            "engine": dict(engine),
            "segmenter": self.segmenter.fingerprint,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.fallback.is_on:
            named["fallback"] = asdict(self.fallback)
        if self.calibration is not None:
            named["calibration"] = self.calibration.to_json()
        return named

    @property
    def device(self) -> torch.device:
        """Where the masks lie."""
        return self.segmenter.device

    @overload
    def __call__(self, image: ImageInput, phrase: str) -> Result: ...

    @overload
    def __call__(self, image: Iterable[tuple[ImageInput, str]]) -> list[Result]: ...

    def __call__(
        self, image: ImageInput | Iterable[tuple[ImageInput, str]], phrase: str | None = None
    ) -> Result | list[Result]:
        """The masks of one phrase, or of each (image, phrase) pair of a list, in its order.

        An image is a path, a PIL image or an array (H, W, 3) uint8 RGB; a file is turned as its EXIF says, the others
        are taken as they stand. Pairs that name the same path, or hold the same object, share one embedding of the
        image.

        Raises:
            DataError: an image cannot be read.
            TypeError: neither an image with a phrase nor pairs.
        """
        if phrase is not None:
            return self.answer([as_rgb(image)], [(0, phrase)])[0]  # type: ignore[arg-type]
        return self._answer_pairs(_pairs(image))

    def answer(self, images: Sequence[Rgb], asked: Sequence[tuple[int, str]]) -> list[Result]:
        """The results of (index of the image, phrase) pairs, in their order; all images are embedded at once."""
        sizes_wh = [(image.shape[1], image.shape[0]) for image in images]
        questions = [Question(images[index], phrase, sizes_wh[index]) for index, phrase in asked]
        with torch.no_grad():
            answers = self.method.ask(self.engine, questions, self.max_new_tokens)
            return self.segment(images, [index for index, _ in asked], answers, self.calibration)

    def respond(self, images: Sequence[Rgb], asked: Sequence[tuple[int, Query]]) -> list[Result]:
        """The results of (index of the image, query) pairs, in their order."""
        return self.answer(images, [(index, query.phrase) for index, query in asked])

    def segment(
        self,
        images: Sequence[Rgb],
        owners: Sequence[int],
        answers: Sequence[Answer],
        calibration: Calibration | None = None,
    ) -> list[Result]:
        """The results of `answers`, each about the image that `owners` names; no prompts, no embedding.

        `calibration` is given where they are answers of the kind that it was fitted to.
        """
        named = sorted({owner for owner, answer in zip(owners, answers, strict=True) if answer.prompts})
        place = {owner: index for index, owner in enumerate(named)}
        requests = [
            (place[owner], prompt) for owner, answer in zip(owners, answers, strict=True) for prompt in answer.prompts
        ]
        masks: list[torch.Tensor] = []
        ious: list[float] = []
        alone: tuple[bool, ...] = ()
        if requests:
            parts = [
                self.segmenter.embed([images[owner] for owner in some]) for some in batched(named, _EMBEDDED_AT_ONCE)
            ]
            embeddings = Embeddings.concat(parts)
            if self.fallback.is_on:
                masks, guessed, alone = segment_guarded(self.segmenter, embeddings, requests, self.fallback)
            else:
                decoded = self.segmenter.decode(embeddings, requests)
                masks, guessed = self.segmenter.masks(decoded), decoded.iou
            ious = guessed.tolist()
        results, start = [], 0
        for owner, answer in zip(owners, answers, strict=True):
            end = start + len(answer.prompts)
            height, width = images[owner].shape[:2]
            none = torch.zeros((0, height, width), dtype=torch.bool, device=self.device)
            confidence = _with_iou(answer, ious[start:end])
            scores, score = scores_of(answer.status, confidence, calibration)
            results.append(
                Result(
                    masks=torch.stack(masks[start:end]) if end > start else none,
                    prompts=list(answer.prompts),
                    scores=torch.tensor(scores, dtype=torch.float32, device=self.device),
                    status=answer.status,
                    answer=answer.text,
                    reason=answer.reason,
                    confidence=confidence,
                    score=score,
                    box_alone=alone[start:end],
                )
            )
            start = end
        return results

    def _answer_pairs(self, pairs: Sequence[tuple[ImageInput, str]]) -> list[Result]:
        by_image: dict[object, list[int]] = {}
        for index, (image, _) in enumerate(pairs):
            by_image.setdefault(image_key(image), []).append(index)
        results: dict[int, Result] = {}
        for group in batched(list(by_image.values()), self.image_batch):
            images = [as_rgb(pairs[indices[0]][0]) for indices in group]
            places = [(owner, index) for owner, indices in enumerate(group) for index in indices]
            answers = self.answer(images, [(owner, pairs[index][1]) for owner, index in places])
            results.update(zip((index for _, index in places), answers, strict=True))
        return [results[index] for index in range(len(pairs))]


def _with_iou(answer: Answer, ious: Sequence[float]) -> tuple[Confidence, ...]:
    """What the model says for its answer, and the segmenter for each mask."""
    if answer.status != "ok":
        return answer.confidence
    said = answer.confidence or (Confidence(),) * len(ious)
    return tuple(replace(each, iou=iou) for each, iou in zip(said, ious, strict=True))


def image_key(image: ImageInput) -> object:
    """What tells two images apart without opening them: the path of a file, the identity of an object in memory."""
    return str(image) if isinstance(image, str | Path) else id(image)


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Runs of `size` items; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pairs(given: Any) -> list[tuple[ImageInput, str]]:
    expected = "a pipeline takes (image, phrase), or a list of such pairs"
    if not isinstance(given, Iterable) or isinstance(given, str | bytes) or hasattr(given, "shape"):
        raise TypeError(f"{expected}; got one {type(given).__name__} and no phrase")
    pairs = list(given)
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str):
            raise TypeError(f"{expected}; item {index} is {pair!r:.80}")
    return [(image, phrase) for image, phrase in pairs]
