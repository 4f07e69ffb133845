"""Pipeline: images and phrases in, masks out.

images, phrases -> the method asks the engine -> prompts -> segmenter -> masks on the device
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from sam4mllm.data.images import ImageInput, Rgb, as_rgb
from sam4mllm.data.predictions import Query
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Answer, Method, Question
from sam4mllm.methods.parsing import require_scoring_engine
from sam4mllm.methods.text import ask_text
from sam4mllm.mllm.constrained_engine import constrained_engine
from sam4mllm.mllm.engine import Engine, Sampling
from sam4mllm.pipeline.ask import TextResult, answer_of_marks, question_about
from sam4mllm.pipeline.loading import load_parts
from sam4mllm.pipeline.mask_requests import MaskRequest, check_locations, decode_requests, requests_of
from sam4mllm.pipeline.pairs import answer_pairs, check_pairs
from sam4mllm.pipeline.plan import PipelineOptions, resolve
from sam4mllm.pipeline.result import Result, result_of
from sam4mllm.pipeline.votes import ask_votes, check_votes, segment_votes
from sam4mllm.recipe.schema import GenerationSection
from sam4mllm.runs.calibration import Calibration
from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.utils.memory import DeviceBatch
from sam4mllm.utils.side_stream import SideStream

_ENCODER_BATCH = 4
"""Images that the segmenter's encoder embeds at once; the largest SAM needs about a gigabyte for each."""


class Pipeline:
    """Referring expression segmentation of (image, phrase) pairs.

    Attributes:
        method, engine: The method that asks the model, and the engine that generates its answers.
        segmenter: The segmenter that turns prompts into masks; the results are on its device.
        max_new_tokens: The length limit of an answer; by default that of a recipe.
        image_batch: The number of images whose phrases are asked together.
        constrained: Whether answers are constrained to the method's form; only those cut off are malformed then.
        votes: How several answers to a phrase are drawn, which are merged by their majority (`votes.py`); None, also
            for a single vote, for one answer by greedy decoding.
        calibration: The calibration that computes scores from confidences; None for uncalibrated scores.
    """

    def __init__(
        self,
        method: Method,
        engine: Engine,
        segmenter: Segmenter,
        *,
        max_new_tokens: int | None = None,
        image_batch: int = 16,
        constrained: bool = False,
        votes: Sampling | None = None,
        engine_identity: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if max_new_tokens is None:
            max_new_tokens = GenerationSection().max_new_tokens
        if method.needs_probabilities:
            require_scoring_engine(engine)
        check_locations(method, engine, segmenter)
        if image_batch < 1 or max_new_tokens < 1:
            raise ValueError(f"expected 1 or more; got {image_batch=}, {max_new_tokens=}")
        self.method = method
        self.engine = engine
        self.segmenter = segmenter
        self.max_new_tokens = max_new_tokens
        self.image_batch = image_batch
        self.constrained = constrained
        self._answering = constrained_engine(engine, method.answer_form) if constrained else engine
        self.votes = votes if votes is not None and votes.samples > 1 else None
        if self.votes is not None:
            check_votes(method, self._answering)
        self.calibration = calibration
        self._embedded = DeviceBatch(_ENCODER_BATCH, "images", "free memory on the device, or use a smaller segmenter")
        self._engine_identity = engine_identity or {"class": type(engine).__name__}

    @classmethod
    def from_pretrained(
        cls, model: str | Path, adapter: str | Path | None = None, **options: Unpack[PipelineOptions]
    ) -> Pipeline:
        """Load the pipeline of a run folder, or of a base model with or without an adapter.

        `device` and `dtype` are "auto" by default, all other options None.

        Args:
            model: A run folder, or a base model: a folder, a Hub id, or "shapes" for the one in the package.
            adapter: A LoRA adapter for a base model.
            device: "cpu", "cuda", ...; "auto" is cuda if there is one.
            dtype: The dtype of the MLLM: "auto" (the run's, or the checkpoint's), "float32", "bfloat16" or "float16".
            segmenter: A SAM checkpoint (.pth, or "shapes"), or a Segmenter; None for the run's, or, for the base
                "shapes", the segmenter in the package.
            method: The settings of a method; None for the run's. A base model is asked for boxes alone, which
                models are pretrained to generate.
            batch_size: Answers generated at once; None for the run's.
            server: The address of an OpenAI-compatible server that answers in place of the MLLM, which is then not
                loaded; `model` is the run folder. The variable OPENAI_API_KEY holds its key, if it needs one.
            server_model: The server's name for the model; None for its only one.
            constrained: Whether only tokens that can become an answer are generated; None for the run's setting
                `generation.constrained`, but not where the server or tokenizer does not support it.
            votes: Answers to each phrase that are drawn at random and merged by their majority; None or 1 for one
                answer by greedy decoding.
            temperature: The temperature of the draws; None for the default of `Sampling`.
            merge_adapter: Whether the adapter is merged into the weights, which saves the time of its layers in every
                answer; None merges unless the weights are quantized. Ignored without an adapter.

        Raises:
            ModelError: Model, adapter or segmenter cannot be loaded, or none is named; the adapter cannot be merged.
            ServerError: The server does not answer.
        """
        return cls(**load_parts(resolve(model, adapter, **options)))

    def uncalibrated(self) -> Pipeline:
        """Return a copy of the pipeline without calibration; both share the models."""
        other = copy.copy(self)
        other.calibration = None
        return other

    @property
    def device(self) -> torch.device:
        """The device of the masks."""
        return self.segmenter.device

    @property
    def identity(self) -> dict[str, Any]:
        """The models and settings as plain JSON; two pipelines of equal identity give equal results up to rounding.

        Device, batch size and whether the adapter is merged are not in it, so a batch job may be resumed with others.
        It is computed on access, because the weights may have to be read completely.
        """
        engine = self._engine_identity() if callable(self._engine_identity) else self._engine_identity
        identity: dict[str, Any] = {
            "method": self.method.settings(),
            "engine": dict(engine),
            "segmenter": self.segmenter.fingerprint,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.constrained:
            # Jobs from before there was a constraint can be resumed without it.
            identity["constrained"] = True
        if self.votes is not None:
            identity["votes"] = asdict(self.votes)
        if self.calibration is not None:
            identity["calibration"] = self.calibration.to_json()
        return identity

    @overload
    def __call__(self, image: ImageInput, phrase: str) -> Result: ...

    @overload
    def __call__(self, image: Iterable[tuple[ImageInput, str]]) -> list[Result]: ...

    def __call__(
        self, image: ImageInput | Iterable[tuple[ImageInput, str]], phrase: str | None = None
    ) -> Result | list[Result]:
        """Segment one phrase in one image, or each (image, phrase) pair of a list, in its order.

        An image is a path, a PIL image or an array (H, W, 3) uint8 RGB. A file is rotated by its EXIF orientation, the
        others are used as they are. Pairs with the same path or the same object share one embedding of the image.

        Raises:
            DataError: An image cannot be read.
            TypeError: The arguments are neither an image with a phrase nor pairs.

        Examples:
            >>> import tempfile
            >>> from sam4mllm.synthetic.writer import write_dataset
            >>> root = Path(tempfile.mkdtemp(), "data")
            >>> write_dataset(root, scenes=1, held_out=2)
            >>> pipe = Pipeline.from_pretrained("shapes", device="cpu")
            >>> result = pipe(next(root.rglob("*.jpg")), "the red ring")
            >>> len(result.masks) == len(result.prompts) == len(result.scores)
            True
        """
        if phrase is not None:
            return self.answer([as_rgb(image)], [(0, phrase)])[0]  # type: ignore[arg-type]
        return answer_pairs(check_pairs(image), self.image_batch, self.answer)

    def answer(self, images: Sequence[Rgb], phrases: Sequence[tuple[int, str]]) -> list[Result]:
        """Return the results of (index of the image, phrase) pairs, in their order; all images are embedded at once."""
        sizes_wh = [(image.shape[1], image.shape[0]) for image in images]
        questions = [Question(images[index], phrase, sizes_wh[index]) for index, phrase in phrases]
        image_of = [index for index, _ in phrases]
        with torch.no_grad():
            embeddings = self._embed_aside(images)

            def segment(image_of: Sequence[int], answers: Sequence[Answer]) -> list[Result]:
                return self.segment(images, image_of, answers, self.calibration, embeddings)

            if self.votes is not None:
                drawn = ask_votes(self.method, self._answering, questions, self.max_new_tokens, self.votes)
                return segment_votes(segment, image_of, drawn)
            return segment(image_of, self.method.ask(self._answering, questions, self.max_new_tokens))

    def answer_queries(self, images: Sequence[Rgb], queries: Sequence[tuple[int, Query]]) -> list[Result]:
        """Return the results of (index of the image, query) pairs, in their order."""
        return self.answer(images, [(index, query.phrase) for index, query in queries])

    def ask(self, image: ImageInput, question: str, boxes: Sequence[Box] = ()) -> TextResult:
        """Answer a question about an image in text, with masks of what the answer marks.

        `<region>` in the question is replaced by a box, once for each of `boxes`, in pixels of the image, in the form
        that the method is trained on: by its embedding (pix2emb) or as text in the coordinates of its answers. The
        answer is not constrained to the form of answers about phrases, and there are no votes.

        Raises:
            DataError: The image cannot be read; the question is empty or has another number of regions than `boxes`; a
                box is not within the image.
        """
        rgb = as_rgb(image)
        asked = question_about(rgb, question, boxes)
        with torch.no_grad():
            (answer,) = ask_text(self.method, self.engine, [asked], self.max_new_tokens)
            masks, _ = self._decode([rgb], requests_of(0, answer_of_marks(self.method, answer)), None)
        empty = torch.zeros((0, *rgb.shape[:2]), dtype=torch.bool, device=self.device)
        return TextResult(answer.text, answer.marks, torch.stack(masks) if masks else empty, answer.finished)

    def segment(
        self,
        images: Sequence[Rgb],
        image_of: Sequence[int],
        answers: Sequence[Answer],
        calibration: Calibration | None = None,
        embeddings: Embeddings | None = None,
    ) -> list[Result]:
        """Segment parsed answers and return their results; `image_of` is the index of each answer's image.

        Images without prompts are not embedded, unless `embeddings` holds those of all images, as `_embed_aside`
        returned them. `calibration` is only for answers of the kind that it was fitted to.
        """
        # 1. Decode the prompts of all answers, in their order.
        requests = [
            request for index, answer in zip(image_of, answers, strict=True) for request in requests_of(index, answer)
        ]
        masks, ious = self._decode(images, requests, embeddings)

        # 2. Each answer gets its part of the masks.
        results, start = [], 0
        for index, answer in zip(image_of, answers, strict=True):
            end = start + len(answer.prompts)
            empty = torch.zeros((0, *images[index].shape[:2]), dtype=torch.bool, device=self.device)
            results.append(result_of(answer, masks[start:end], ious[start:end], empty, calibration))
            start = end
        return results

    @cached_property
    def _side_stream(self) -> SideStream | None:
        return SideStream(self.device) if self.device.type == "cuda" else None

    def _embed_aside(self, images: Sequence[Rgb]) -> Embeddings | None:
        """Begin to embed all images on a GPU, which it does while the language model generates; None on a CPU.

        On a CPU, both would compete for the same cores, and images without prompts would be embedded for nothing.
        """
        if self._side_stream is None or not images:
            return None
        return self._side_stream.enqueue(lambda: self._embed(images))

    def _embed(self, images: Sequence[Rgb]) -> Embeddings:
        return Embeddings.concat(list(self._embedded.map(images, self.segmenter.embed)))

    def _decode(
        self, images: Sequence[Rgb], requests: Sequence[MaskRequest], embeddings: Embeddings | None
    ) -> tuple[list[torch.Tensor], list[float]]:
        """Return masks and predicted IoUs for requests."""
        if not requests:
            return [], []
        position = list(range(len(images)))
        # 1. Embed the images that have prompts, unless all of them are embedded already.
        if embeddings is None:
            prompted = sorted({request.image for request in requests})
            embeddings = self._embed([images[index] for index in prompted])
            for number, index in enumerate(prompted):
                position[index] = number
        elif self._side_stream is not None:
            self._side_stream.join(embeddings.features)

        # 2. Decode all prompts together.
        decoded = decode_requests(self.segmenter, embeddings, [position[each.image] for each in requests], requests)
        return self.segmenter.masks(decoded), decoded.iou.tolist()
