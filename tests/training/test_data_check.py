"""All damaged images and all texts with control tokens are named before anything is computed or a folder is created."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.reading import read_dialogues, read_samples
from sam4mllm.errors import DataError
from sam4mllm.mllm.loading import load_processor
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.training.data_check import check_images, check_texts, long_chat_notes
from sam4mllm.training.dry_run import dry_run
from sam4mllm.training.prepare import prepare_targets
from sam4mllm.training.template_check import check_template
from sam4mllm.training.trainer import train
from tests.data.tiny_datasets import write_image

RECIPE = """
output: {folder}/run
model: {{base: shapes}}
segmenter: {{checkpoint: shapes}}
data:
  train: [{{dataset: jsonl, path: {folder}/t.jsonl}}]
  validation: {{dataset: jsonl, path: {folder}/v.jsonl}}
method: {method}
targets: {{store: {folder}/targets}}
training: {{max_steps: 1}}
"""


def write_records(folder: Path, count: int = 6, *, name: str = "t.jsonl", phrase: str = "it {}") -> Path:
    records = []
    for number in range(count):
        image = write_image(folder / f"{number}.jpg", 64, 48)
        record = {"image": image.name, "phrase": phrase.format(number), "boxes": [[2, 2, 20, 20]]}
        records.append(record | {"masks": [[2, 2, 20, 2, 20, 20, 2, 20]]})
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def truncate(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-40])


def samples_of(file: Path):
    return read_samples(DataEntry(dataset="jsonl", path=file))


def test_every_bad_image_is_named_with_its_first_record(tmp_path: Path) -> None:
    file = write_records(tmp_path)
    samples = samples_of(file)
    check_images([*samples, *samples])
    truncate(tmp_path / "1.jpg")
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "4.jpg").write_text("no image")
    Image.new("RGB", (48, 64)).save(tmp_path / "5.jpg")
    with pytest.raises(DataError) as caught:
        check_images([*samples, samples[3]])
    message = str(caught.value)
    assert message.startswith("4 image(s) cannot be used: ") and message.endswith("take their records out")
    assert f"{file}, line 2: {tmp_path / '1.jpg'}: the image is damaged" in message
    assert f"{file}, line 4 and 1 more: {tmp_path / '3.jpg'}: no such file" in message
    assert f"{file}, line 5: {tmp_path / '4.jpg'}: not an image" in message
    assert f"{file}, line 6: {tmp_path / '5.jpg'} is (48, 64) (W, H), but its annotation is for (64, 48)" in message


def test_of_many_bad_images_ten_are_listed(tmp_path: Path) -> None:
    samples = samples_of(write_records(tmp_path, 13))
    for image in tmp_path.glob("*.jpg"):
        truncate(image)
    with pytest.raises(DataError, match=r"^13 image\(s\) .*; and 3 more; correct them") as caught:
        check_images(samples)
    assert str(caught.value).count("the image is damaged") == 10


@pytest.mark.parametrize(
    ("stage", "damaged", "record"),
    [
        (prepare_targets, "7.jpg", "t.jsonl, line 8"),
        (train, "7.jpg", "t.jsonl, line 8"),
        (train, "v0.jpg", "v.jsonl, line 1"),
    ],
)
def test_damaged_images_are_named_before_the_run_folder_exists(
    tmp_path: Path, stage, damaged: str, record: str
) -> None:
    write_records(tmp_path, 8)
    image = write_image(tmp_path / "v0.jpg", 64, 48)
    held_out = {"image": image.name, "phrase": "that", "masks": [[2, 2, 20, 2, 20, 20, 2, 20]]}
    (tmp_path / "v.jsonl").write_text(json.dumps(held_out))
    # The bytes differ from those of the training images, which the leakage filter would remove otherwise.
    image.write_bytes(image.read_bytes() + b" ")
    truncate(tmp_path / damaged)
    (tmp_path / "r.yaml").write_text(RECIPE.format(folder=tmp_path, method="ppg"))
    recipe = load_recipe(tmp_path / "r.yaml")
    with pytest.raises(DataError, match=rf"1 image\(s\) cannot be used: .*{record}: .*{damaged}: the image is damaged"):
        stage(recipe, device="cpu")
    assert not recipe.output.exists() and not recipe.targets.store.exists()


@pytest.mark.parametrize("phrase", ["cup<|im_end|>\n<|im_start|>user\nWhere", "the <image> sign"])
def test_a_phrase_with_a_control_token_is_named_before_training(tmp_path: Path, phrase: str) -> None:
    file = write_records(tmp_path, 3)
    with file.open("a") as lines:
        record = {"image": "0.jpg", "phrase": phrase, "masks": [[2, 2, 20, 2, 20, 20, 2, 20]]}
        lines.write(json.dumps(record) + "\n" + json.dumps(record | {"phrase": f"also {phrase}"}) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE.format(folder=tmp_path, method="pqpp"))
    recipe = load_recipe(tmp_path / "r.yaml", ["data.validation=null"])
    mixture = read_mixture(recipe.data, recipe.seed)
    with pytest.raises(
        DataError,
        match=r"2 phrase or chat\(s\) cannot be trained on: .*t\.jsonl, line 4: the phrase .*"
        r" holds '<.*>', which .*; .*line 5: the phrase 'also",
    ):
        check_template(recipe, mixture)
    with pytest.raises(DataError, match=r"t\.jsonl, line 4: the phrase"):
        dry_run(recipe)


@pytest.mark.parametrize(("method", "is_refused"), [("pix2emb", True), ("pqpp", False)])
def test_a_phrase_with_the_location_token_is_refused_for_methods_that_add_it(
    tmp_path: Path, method: str, is_refused: bool
) -> None:
    file = write_records(tmp_path, 3)
    with file.open("a") as lines:
        record = {"image": "0.jpg", "phrase": "a <location>", "masks": [[2, 2, 20, 2, 20, 20, 2, 20]]}
        lines.write(json.dumps(record) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE.format(folder=tmp_path, method=method))
    recipe = load_recipe(tmp_path / "r.yaml", ["data.validation=null"])
    mixture = read_mixture(recipe.data, recipe.seed)
    if not is_refused:
        check_template(recipe, mixture)
        return
    with pytest.raises(DataError, match=r"line 4: the phrase 'a <location>' holds '<location>', which"):
        check_template(recipe, mixture)
    with pytest.raises(DataError, match=r"line 4: the phrase 'a <location>' holds '<location>', which"):
        dry_run(recipe)


def test_a_chat_with_a_control_token_is_named_by_its_entry(tmp_path: Path) -> None:
    processor, _ = load_processor("shapes")
    write_image(tmp_path / "a.jpg")
    chats = [{"image": "a.jpg", "question": "what?", "answer": answer} for answer in ("it", "yes<|im_end|>")]
    for text, unit in ((json.dumps(chats), "entry 2"), ("\n".join(map(json.dumps, chats)), "line 2")):
        (tmp_path / "chat.json").write_text(text)
        dialogues = read_dialogues(DataEntry(dataset="chat", path=tmp_path / "chat.json"))
        with pytest.raises(DataError, match=rf"1 phrase or chat\(s\) .*chat\.json, {unit}: the text 'yes<"):
            check_texts(processor, [], dialogues)
        check_texts(processor, [], dialogues[:1])


def chats_of(folder: Path, *answers: str) -> Path:
    write_image(folder / "chat.jpg")
    lines = [json.dumps({"image": "chat.jpg", "question": "what?", "answer": answer}) for answer in answers]
    (folder / "chat.jsonl").write_text("\n".join(lines))
    return folder / "chat.jsonl"


def test_chats_that_are_longer_than_the_longest_input_are_named(tmp_path: Path) -> None:
    processor, _ = load_processor("shapes")
    dialogues = read_dialogues(DataEntry(dataset="chat", path=chats_of(tmp_path, "it", "cross " * 100, "it " * 90)))
    (note,) = long_chat_notes(processor, 60, dialogues)
    named = re.fullmatch(
        r"2 chat\(s\) are longer than the model's longest input of 60 tokens: (.*), line 2 \((\d+) tokens\); "
        r"(.*), line 3 \(\d+ tokens\); shorten or split them, .*",
        note,
    )
    assert named is not None and named[1] == named[3] == str(tmp_path / "chat.jsonl")
    tokens = int(named[2])
    assert long_chat_notes(processor, tokens, dialogues) == long_chat_notes(processor, None, dialogues) == []
    assert len(long_chat_notes(processor, tokens - 1, dialogues)) == 1


def test_of_many_long_chats_ten_are_listed(tmp_path: Path) -> None:
    processor, _ = load_processor("shapes")
    dialogues = read_dialogues(DataEntry(dataset="chat", path=chats_of(tmp_path, *["cross " * 100] * 12)))
    (note,) = long_chat_notes(processor, 60, dialogues)
    assert note.startswith("12 chat(s)") and "; and 2 more; shorten" in note and note.count("tokens)") == 10


def test_a_long_chat_is_reported_by_the_dry_run_and_before_training(tmp_path: Path, caplog) -> None:
    write_records(tmp_path, 3)
    chats = chats_of(tmp_path, "it", "cross " * 2500)
    (tmp_path / "r.yaml").write_text(RECIPE.format(folder=tmp_path, method="ppg"))
    entries = f"[{{dataset: jsonl, path: {tmp_path}/t.jsonl}}, {{dataset: chat, path: {chats}}}]"
    recipe = load_recipe(tmp_path / "r.yaml", ["data.validation=null", "method.phrases=1", f"data.train={entries}"])
    note = "longest input of 2,048 tokens: .*chat.jsonl, line 2"
    assert any(re.search(note, each) for each in dry_run(recipe).notes)
    check_template(recipe, read_mixture(recipe.data, recipe.seed))
    assert any(re.search(note, message) for message in caplog.messages)
