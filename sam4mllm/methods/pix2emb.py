"""pix2emb (NExT-Chat, arXiv 2311.04498, section 3): a location token per object, whose hidden state is the location.

The box decoder of `mllm.location_heads.LocationHeads` turns the state into a box, and its projection into prompt tokens
for SAM. Both are trained beside the text, on the annotated boxes and masks; SAM selects no training targets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from sam4mllm.data.predictions import CUT_OFF, Confidence
from sam4mllm.data.sample import Sample
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.base import Answer, PromptTarget, Question
from sam4mllm.methods.parsing import (
    check_packing,
    group_samples,
    objects_in_reading_order,
    packed_conversation,
    packing_setting,
    require_locating_engine,
)
from sam4mllm.mllm.engine import DecodedLocation, Engine, Reply
from sam4mllm.prompts.answer_form import MAX_COORDINATES, NO_OBJECT, LocationForm
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation, LocatedText, Location, inference_conversation
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_locations
from sam4mllm.recipe.schema import LocationPrompt, Packing

_NOT_PROSE = re.compile(r"[0-9\[\](){}<>+]")


@dataclass(frozen=True, slots=True)
class Pix2Emb:
    """pix2emb, with SAM prompted by the decoded box, by the embedding (`sam_tokens` tokens per location), or by both.

    `phrases` is the maximum number of phrases in one training conversation; at inference each phrase has a conversation
    of its own. `packing` is "turns" or "isolated": whether its later phrases see the earlier ones.

    Raises:
        ValueError: An unknown `prompt` or `packing`, `sam_tokens` or `phrases` below 1.
    """

    prompt: LocationPrompt
    sam_tokens: int
    phrases: int
    packing: Packing = "turns"

    name = "pix2emb"
    needs_targets = False
    needs_probabilities = False
    needs_locations = True

    def __post_init__(self) -> None:
        if self.prompt not in get_args(LocationPrompt):
            raise ValueError(f"prompt must be box, embedding or both; got {self.prompt!r}")
        if min(self.sam_tokens, self.phrases) < 1:
            raise ValueError(f"sam_tokens and phrases must be 1 or more; got {self.sam_tokens} and {self.phrases}")
        check_packing(self.packing)

    @property
    def needs_prompt_tokens(self) -> bool:
        return self.prompt != "box"

    @property
    def tokens_alone(self) -> bool:
        return self.prompt == "embedding"

    def settings(self) -> dict[str, Any]:
        fields = {key: value for key, value in asdict(self).items() if key != "packing"}
        return {"name": self.name, **fields, **packing_setting(self.packing, self.phrases)}

    @property
    def answer_form(self) -> LocationForm:
        return LocationForm()

    def training_conversations(
        self, samples: Sequence[Sample], targets: Mapping[str, PromptTarget]
    ) -> list[Conversation]:
        """Return a conversation for every `phrases` phrases of the image; `targets` is not used.

        An object that is annotated with a box only has a location without mask.

        Raises:
            ValueError: The samples are about several images.

        >>> from pathlib import Path
        >>> from sam4mllm.data.sample import MaskObject, Sample
        >>> from sam4mllm.geometry import Box
        >>> cup = MaskObject("cup", None, Box(10, 10, 30, 30))
        >>> sample = Sample("mine/1", Path("street.jpg"), (100, 50), "the left cup", (cup,))
        >>> pix2emb = Pix2Emb(prompt="both", sam_tokens=1, phrases=5)
        >>> (conversation,) = pix2emb.training_conversations([sample], {})
        >>> for turn in conversation.turns:
        ...     print(f"{turn.role}: {turn.text}", *(location.box for location in turn.locations))
        user: Where is "the left cup"? Mark each object.
        assistant: <location> Box(x1=0.1, y1=0.2, x2=0.3, y2=0.6)
        """
        return [
            packed_conversation(
                group[0].image, [[(ask_locations(each.phrase), self._answer(each))] for each in group], self.packing
            )
            for group in group_samples(samples, self.phrases, self.packing)
        ]

    def preview_prompts(self, sample: Sample, targets: Mapping[str, PromptTarget]) -> list[SamPrompt]:
        return [SamPrompt(item.box) for item in sample.objects]

    def ask(self, engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        """Return the decoded boxes, with prompt tokens for SAM unless it is prompted with the boxes alone.

        Raises:
            ModelError: The engine does not decode locations.
        """
        conversations = [inference_conversation(each.image, ask_locations(each.phrase)) for each in questions]
        replies = require_locating_engine(engine).generate_located(conversations, max_new_tokens)
        return [
            self._parse(reply, question.size_wh, max_new_tokens)
            for reply, question in zip(replies, questions, strict=True)
        ]

    def _answer(self, sample: Sample) -> str | LocatedText:
        """Return the answer to the question about a phrase: a location for each object, in reading order."""
        if not sample.objects:
            return NO_OBJECT
        locations = [
            Location(item.box.to_shares(sample.size_wh), index * len(LOCATION_TOKEN), item.rle)
            for index, item in enumerate(objects_in_reading_order(sample.objects))
        ]
        return LocatedText(LOCATION_TOKEN * len(locations), tuple(locations))

    def _parse(self, reply: Reply, size_wh: tuple[int, int], max_new_tokens: int) -> Answer:
        """Parse a reply of at most `max_new_tokens` tokens about an image of `size_wh` pixels.

        Words around the locations are tolerated. The confidence is the log-probability of each location token, or the
        mean one of the text of "no object".
        """
        if not reply.finished:
            return Answer("malformed", (), reply.text, f"{CUT_OFF}{max_new_tokens}")
        locations = reply.locations
        if not locations and AnswerGrammar().parse(reply.text, size_wh).status == "no_object":
            return Answer("no_object", (), reply.text, confidence=(Confidence(reply.mean_logprob()),))
        if reason := _problem(reply):
            return Answer("malformed", (), reply.text, reason)
        return Answer(
            "ok",
            tuple(SamPrompt(each.box.from_shares(size_wh)) for each in locations),
            reply.text,
            confidence=tuple(Confidence(reply.mean_logprob(*_span(each))) for each in locations),
            sam_tokens=tuple(each.sam_tokens for each in locations) if self.needs_prompt_tokens else (),
            tokens_alone=self.tokens_alone,
        )


def _problem(reply: Reply) -> str | None:
    """Return why a complete reply that is not "no object" has no locations that can be used; None if it has."""
    rest = reply.text
    for start, end in reversed([_span(each) for each in reply.locations]):
        rest = rest[:start] + " " + rest[end:]
    if not reply.locations:
        return f"neither {LOCATION_TOKEN} nor {NO_OBJECT!r}: {reply.text.strip()!r:.60}"
    if len(reply.locations) > MAX_COORDINATES:
        return f"more than {MAX_COORDINATES} locations"
    if NO_OBJECT.rstrip(".").lower() in rest.lower():
        return f"the answer has an object and {NO_OBJECT!r}"
    return f"unreadable beside the locations: {rest.strip()!r:.60}" if _NOT_PROSE.search(rest) else None


def _span(location: DecodedLocation) -> tuple[int, int]:
    """Return the positions (start, end) of a location's token in the text of its reply."""
    return location.end - len(LOCATION_TOKEN), location.end
