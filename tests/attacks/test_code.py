"""Nothing runs from data: pickles, weights, recipes, repositories with code, chat templates, data sets with scripts.

Each payload creates the folder `marker`. Pickles of refs are in tests/data/readers/test_refcoco_pickle.py.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError, ModelError, RecipeError
from sam4mllm.mllm.loading import load_mllm, load_processor
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.mllm.meta_loading import load_meta_mllm
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.testing import save_tiny_mllm, save_tiny_segmenter
from tests.training.helpers import StopAt, make_recipe, run_fit

PACKAGE = Path(__file__).parents[2] / "sam4mllm"


class Payload:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_mllm("fast_vlm", tmp_path_factory.mktemp("base"), seed=1))


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


def write_torch(path: Path, payload: Payload) -> None:
    torch.save({"model": payload}, path)


def write_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def write_slip(path: Path, payload: Payload) -> None:
    """A zip archive in the form of torch's, with an entry that leaves the folder that it is unpacked to."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../slipped.txt", "")
        archive.writestr("archive/data.pkl", pickle.dumps(payload))
        archive.writestr("archive/version", "3")


@pytest.mark.parametrize("write", [write_torch, write_pickle, write_slip])
def test_a_segmenter_checkpoint_runs_nothing_and_writes_no_file(
    tmp_path: Path, marker: Path, write: Callable[[Path, Payload], None]
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/sam.pth", Payload(marker))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=r"sam\.pth is not a checkpoint of weights") as raised:
        load_segmenter(tmp_path / "in/sam.pth")
    assert "weights_only" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_weights_of_a_base_model_in_a_pickle_run_nothing(copied: Path, marker: Path) -> None:
    (copied / "model.safetensors").unlink()
    write_torch(copied / "pytorch_model.bin", Payload(marker))
    with pytest.raises(ModelError, match=r"its weights are a pickle of other objects than weights, which is not read"):
        load_mllm(str(copied))
    assert not marker.exists()


def test_an_adapter_in_a_pickle_runs_nothing(base: Path, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "adapter"
    attach_lora(load_mllm(str(base)), {"r": 2}, 0).model.save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    write_torch(folder / "adapter_model.bin", Payload(marker))
    match = "does not load on 'fast_vlm': its weights are a pickle of other objects than weights, which is not read"
    with pytest.raises(ModelError, match=match):
        load_mllm(str(base), folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_to_resume_from_runs_nothing(tmp_path: Path, base: Path, marker: Path, name: str) -> None:
    recipe = make_recipe(tmp_path, str(base), "training.max_steps=3")
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(2 + 1))
    file = tmp_path / "run/checkpoints/checkpoint-2" / name
    assert file.is_file()
    write_torch(file, Payload(marker))
    if name == "training_args.bin":
        run_fit(recipe)
    else:
        with pytest.raises(ModelError, match=r"checkpoint-2: .* pickle of other objects .*; remove that folder"):
            run_fit(recipe)
    assert not marker.exists()


HEADERS = {
    "a header of 8 exabytes": struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10**8 - 1) + b"{}",
    "no tensors": struct.pack("<Q", 2) + b"{}",
    "no JSON": struct.pack("<Q", 5) + b"{{{{{",
    "nested": struct.pack("<Q", 99_000) + b"[" * 99_000,
}
for _name, _tensor in {
    "a tensor of a terabyte": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]},
    "a shape that overflows": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]},
    "offsets backwards": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
    "another size than its shape": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]},
}.items():
    _header = json.dumps({"weight": _tensor}).encode()
    HEADERS[_name] = struct.pack("<Q", len(_header)) + _header + bytes(16)


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_headers_of_safetensors_that_lie_are_one_error(copied: Path, content: bytes) -> None:
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"does not load as an image-text-to-text model|lacks .* weights") as raised:
        load_mllm(str(copied))
    assert "\n" not in str(raised.value)


def test_headers_of_a_segmenter_that_lie_are_one_error(tmp_path: Path) -> None:
    folder = save_tiny_segmenter("sam", tmp_path / "sam")
    for content in HEADERS.values():
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"does not load as a |missing weights"):
            load_segmenter(folder)


REMOTE_CODE = """
import os
os.mkdir({marker!r})
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
class Config(PreTrainedConfig): pass
class Model(PreTrainedModel): pass
class Tokenizer(PreTrainedTokenizerFast): pass
class Processor(ProcessorMixin): pass
"""
AUTO_MAP = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoModelForImageTextToText": "code.Model",
    "AutoProcessor": "code.Processor",
    "AutoImageProcessor": "code.Processor",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}


def add_code(folder: Path, file: str, marker: Path, **changed: str) -> None:
    (folder / "code.py").write_text(REMOTE_CODE.format(marker=str(marker)))
    settings = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**settings, "auto_map": AUTO_MAP, **changed}))


@pytest.mark.parametrize("load", [load_mllm, load_processor, load_meta_mllm])
@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {"model_type": "unknown_to_transformers"}),
        ("processor_config.json", {"processor_class": "Processor"}),
        ("tokenizer_config.json", {"tokenizer_class": "Tokenizer"}),
    ],
)
def test_code_of_a_repository_is_never_run_and_never_asked_for(
    copied: Path, marker: Path, load: Callable[[str], Any], file: str, changed: dict[str, str], monkeypatch: Any
) -> None:
    def answer(prompt: str = "") -> str:
        raise AssertionError(f"transformers asks: {prompt}")

    monkeypatch.setattr("builtins.input", answer)
    add_code(copied, file, marker, **changed)
    with pytest.raises(ModelError, match="it needs Python code of its own repository, which is never run"):
        load(str(copied))
    assert not marker.exists()


def test_code_is_not_run_where_transformers_has_the_classes(copied: Path, marker: Path, tmp_path: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        add_code(copied, file, marker)
    load_mllm(str(copied))
    segmenter = save_tiny_segmenter("sam", tmp_path / "sam")
    add_code(segmenter, "config.json", marker)
    load_segmenter(segmenter)
    assert not marker.exists()


def test_a_recipe_cannot_allow_code(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.trust_remote_code: unknown key"):
        make_recipe(tmp_path, "some/base", "model.trust_remote_code=true")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}",
        "{{ messages.append(messages) }}",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(copied: Path, marker: Path, template: str) -> None:
    (copied / "chat_template.jinja").write_text(template.replace("MARKER", str(marker)))
    with pytest.raises(ModelError, match="chat template"):
        load_mllm(str(copied))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: !!python/object/apply:os.mkdir [MARKER]", "tag 'tag:yaml.org,2002:python/object/apply:os.mkdir' is"),
        ("a: [" + "[" * 3000 + "]" * 3001, "nested too deeply"),
        ("{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("\n".join(f"{' ' * depth}a:" for depth in range(2000)), "nested too deeply"),
        # Each list refers nine times to the one before: 9 ** 12 values, which would take a terabyte.
        (
            "l0: &l0 [x]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 13)),
            "found more than 100000 values",
        ),
    ],
)
def test_a_recipe_constructs_plain_values_only(tmp_path: Path, marker: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text.replace("MARKER", str(marker)))
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "recipe.yaml")
    assert not marker.exists()


def test_a_data_set_with_a_script_runs_nothing(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    with pytest.raises(DataError, match="not a data set of `datasets`"):
        read_dataset("hub", path=folder)
    assert not marker.exists()


FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "yaml.load",
    *("numpy.load", "np.load", "joblib.load"),
}
# These read what a process of the same job has written into a folder of this user, or has sent through Ray, which
# itself unpickles all that its processes send.
OF_THE_JOB = {"utils/shared_result.py": {"pickle.load"}, "pipeline/cluster.py": {"pickle.loads"}}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_calls_nothing_that_runs_or_unpacks_data(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = FORBIDDEN - OF_THE_JOB.get(path.relative_to(PACKAGE).as_posix(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not {"zipfile", "tarfile", "marshal", "shelve", "dill"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert name not in forbidden, f"{path}:{node.lineno}: {name}"
            assert name != "torch.load" or keywords.get("weights_only") == "True", f"{path}:{node.lineno}: {name}"
            assert keywords.get("shell") is None and keywords.get("trust_remote_code", "False") == "False"
            # Classes that may be code of the repository: without the argument, transformers asks on the terminal.
            if name.startswith("Auto") and name.endswith(".from_pretrained") and "testing" not in path.parts:
                is_own = path.parent.name == "doctor"
                assert is_own or keywords.get("trust_remote_code") == "False", f"{path}:{node.lineno}: {name}"
