"""Chat files in their three forms, and ReasonSeg's explanations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import data_entry
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import read_dialogues
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image


def read_chat(path: Path, **options: Any) -> list[Dialogue]:
    return read_dialogues(data_entry("chat", path=path, **options))


def read_explanations(root: Path) -> list[Dialogue]:
    return read_dialogues(data_entry("reasonseg-explanations", root=root))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "photos" / "b.jpg")
    return tmp_path


def turns(*texts: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {"id": 1, "image": "a.jpg", "conversations": turns} | changes


def messages(*turns: Any, **changes: Any) -> dict[str, Any]:
    """An entry of `turns`, which are roles and contents by turns."""
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in pairs], "image": "a.jpg"} | changes


PARTS = [{"type": "image"}, {"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]


@pytest.mark.parametrize(
    "entry",
    [
        messages("user", "<image>\nWhat is it?", "assistant", "A cup."),
        messages("user", "What is it?", "assistant", "A cup.", image=None, images=["a.jpg"]),
        messages("user", PARTS, "assistant", [{"type": "text", "text": "A cup."}]),
        messages("user", [{"type": "image", "image": "a.jpg"}, *PARTS[1:]], "assistant", "A cup.", image=None),
        {"image": "a.jpg", "conversations": messages("user", "What is it?", "assistant", "A cup.")["messages"]},
        {"image": "a.jpg", "messages": turns("<image>What is it?", "A cup.")["conversations"]},
        turns(
            conversations=[{"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A cup."}],
        ),
    ],
    ids=["messages", "images", "parts", "image part", "roles in conversations", "LLaVA's turns", "roles as speakers"],
)
def test_roles_and_contents_of_chat_templates_are_read(folder: Path, entry: dict[str, Any]) -> None:
    (folder / "chat.json").write_text(json.dumps([entry]))
    assert read_chat(folder / "chat.json") == [Dialogue("chat/chat/1", folder / "a.jpg", (("What is it?", "A cup."),))]


def test_a_list_in_llavas_format_is_read(folder: Path) -> None:
    entries = [turns("<image>\nWhat is it?", "A cup.", "Is it red?", "No."), turns("Sure?\n<image>", "Yes")]
    (folder / "chat.json").write_text("\n " + json.dumps(entries))
    first, second = read_chat(folder / "chat.json")
    assert first == Dialogue("chat/chat/1", folder / "a.jpg", (("What is it?", "A cup."), ("Is it red?", "No.")))
    assert second.exchanges == (("Sure?", "Yes"),)
    assert read_chat(folder / "chat.json", limit=1) == [first]


def test_llavas_instruction_data_mix_images_of_subfolders_and_text(folder: Path) -> None:
    marked = ["<image>\nWhat is it?", "What is it?\n<image>", "What is <image> it?", "What is it?"]
    entries: list[dict[str, Any]] = [
        turns(text, "A cup.", "Sure?", "Yes.", id=f"00000{number}", image="photos/b.jpg")
        for number, text in enumerate(marked)
    ]
    entries.append({"id": "wgByO4Y_0", "model": "", "conversations": turns("Why?", "So.")["conversations"]})
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(entries))
    *about, text_only = read_chat(folder / "llava_v1_5_mix665k.json")
    assert {each.image for each in about} == {folder / "photos/b.jpg"}
    assert [each.exchanges[0][0].split() for each in about] == [["What", "is", "it?"]] * 4
    assert all(each.exchanges[1] == ("Sure?", "Yes.") for each in about)
    assert (text_only.image, text_only.exchanges) == (None, (("Why?", "So."),))


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "x", "conversations": turns("Why?", "So.")["conversations"]},
        turns("Why?", "So.", image=None),
        messages("user", "Why?", "assistant", "So.", image=None, images=[]),
        {"question": "Why?", "answer": "So.", "file": None},
    ],
    ids=["no field", "null", "no images", "question"],
)
def test_an_entry_that_names_no_image_is_chat_without_an_image(folder: Path, entry: dict[str, Any]) -> None:
    (folder / "chat.jsonl").write_text(json.dumps(entry))
    assert read_chat(folder / "chat.jsonl") == [Dialogue("chat/chat/1", None, (("Why?", "So."),))]


def test_json_lines_of_questions_and_answers_are_read(folder: Path) -> None:
    lines = [turns("What?", "That.", image="b.jpg"), {"image": "b.jpg", "question": "Red?", "answer": "no"}]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_chat(folder / "chat.jsonl", images=folder / "photos")
    assert [(each.id, each.exchanges) for each in found] == [
        ("chat/chat/1", (("What?", "That."),)),
        ("chat/chat/2", (("Red?", "no"),)),
    ]


@pytest.mark.parametrize("name", ["topic", "profile", "topicId", "specific_domain", "epic"])
def test_a_field_with_letters_of_a_media_word_is_no_media(folder: Path, name: str) -> None:
    (folder / "chat.json").write_text(json.dumps([{name: "physics", "question": "Why?", "answer": "Gravity."}]))
    (dialogue,) = read_chat(folder / "chat.json")
    assert dialogue.image is None and dialogue.exchanges == (("Why?", "Gravity."),)


@pytest.mark.parametrize(
    "name", ["pic", "cover_pics", "Pictures", "coverPic", "file", "file_name", "filePath", "imageFile"]
)
def test_a_field_that_may_name_media_is_refused_in_chat_without_an_image(folder: Path, name: str) -> None:
    (folder / "chat.json").write_text(json.dumps([{name: "a.jpg", "question": "Why?", "answer": "Gravity."}]))
    with pytest.raises(DataError, match=f"the field '{name}' is not supported, and no image is named"):
        read_chat(folder / "chat.json")


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "expected an object; found 3"),
        ({"image": "a.jpg"}, "a chat has conversations, messages, or question and answer; found image"),
        ({"image": "a.jpg", "question": "Red?"}, "the field 'answer' is missing"),
        (turns("What?", "That.", image="c.jpg"), "c.jpg: no such image"),
        (turns("What?", "That.", image="c" * 300), "no such image"),
        (turns("<image>What?", "That.", image=None), "<image> occurs in it, but no image is named; add the field"),
        (messages("user", PARTS, "assistant", "That.", image=None), "<image> occurs in it, but no image is named"),
        ({"img_path": "a.jpg", "question": "Red?", "answer": "no"}, "the field 'img_path' is not supported, and no"),
        (turns("What?"), r"between human \(or user\) and gpt \(or assistant\), which is last; found \['human'\]"),
        (turns(), "alternate between human"),
        (turns(conversations=[{"from": "human"}]), r"conversations\[0\]: the field 'value' is missing"),
        (
            messages("system", "Be brief.", "user", "What?", "assistant", "That."),
            "leave the system turn out: the model's",
        ),
        (messages("user", "What?", "assistant", 3), r"messages\[1\]: the field 'content' must be text; found 3"),
        (messages("user", "What?", "user", "That."), r"found \['user', 'user'\]"),
        (
            messages("user", [{"type": "video"}], "assistant", "That."),
            r"messages\[0\]: a part of the type 'video' is not",
        ),
        (
            messages("user", [{"text": "What?"}], "assistant", "That."),
            r"messages\[0\]\.content\[0\]: the field 'type' is missing",
        ),
        (messages("user", "What?", "assistant", "That.", images=["a.jpg", "b.jpg"]), "about one image; found"),
        (
            messages("user", [{"type": "image", "image": "b.jpg"}], "assistant", "That.", image="a.jpg"),
            r"about one image; found \['a.jpg', 'b.jpg'\]",
        ),
        (turns("What?", "That.", conversations=[{"from": "gpt", "value": "Hi."}]), r"found \['gpt'\]"),
        (turns("<image><image>What?", "That."), "<image> occurs again after"),
        (turns("<image>What?", "That.", "And <image>?", "This."), "<image> occurs again after"),
    ],
)
def test_a_bad_entry_is_reported_with_its_number(folder: Path, entry: Any, message: str, as_list: bool) -> None:
    entries = [turns("What?", "That."), entry]
    text = json.dumps(entries) if as_list else "\n".join(map(json.dumps, entries))
    (folder / "chat.json").write_text(text)
    unit = "entry" if as_list else "line"
    with pytest.raises(DataError, match=rf"chat.json: 1 bad {unit}: {unit} 2: .*{message}") as raised:
        read_chat(folder / "chat.json")
    assert "\n" not in str(raised.value)


def test_files_without_chat(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.json: no such file; a chat file was expected there"):
        read_chat(folder / "nowhere.json")
    for text in ("", "[]"):
        (folder / "empty.json").write_text(text)
        with pytest.raises(DataError, match=r"empty.json: no chat in it"):
            read_chat(folder / "empty.json")


def test_explanations_are_a_query_and_its_answer(tmp_path: Path) -> None:
    write_image(tmp_path / "ReasonSeg/train/x.jpg")
    file = tmp_path / "ReasonSeg/explanatory/train.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"image": "x.jpg", "query": "what warms?", "outputs": "The stove does."}]))
    assert read_explanations(tmp_path) == [
        Dialogue("reasonseg-explanations/0", tmp_path / "ReasonSeg/train/x.jpg", (("what warms?", "The stove does."),))
    ]
    for content, message in (
        ({}, "explanations are a list of"),
        ([{"image": "x.jpg", "query": "what?"}], "entry 0: the field 'outputs' is missing"),
        ([{"image": "y.jpg", "query": "what?", "outputs": "it"}], "entry 0: .*y.jpg: no such image"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"train.json.*{message}"):
            read_explanations(tmp_path)
