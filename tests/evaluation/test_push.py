"""`push`: the files and the model card of a run; uploads to a stand-in of the Hub, and pipelines loaded from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm import load_recipe
from sam4mllm.cli.main import main
from sam4mllm.errors import ModelError
from sam4mllm.evaluation.push import plan_upload
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.recipe.yaml_text import read_yaml
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.utils.atomic_io import file_sha256
from tests.runs.hub_server import HubServer, hub_server

RECIPE = """
output: {folder}/run
model: {{base: shapes}}
segmenter: {{checkpoint: shapes}}
data:
  train: [{{dataset: shapes, root: {folder}/data, split: train}}, {{dataset: refcoco, root: data, split: train}}]
lora: {{r: 2}}
generation: {{max_new_tokens: 8}}
"""
SCORES = {"dataset": "refcoco", "split": "val", "protocol": "refcoco", "n": 6, "malformed": 1}
SCORES |= {"ciou": 0.5237, "giou": 0.5, "n_acc": None, "acc_50": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded model, with an evaluation, checkpoints and predictions."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    recipe = load_recipe(folder / "recipe.yaml")
    mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, seed=0)
    RunFolder.create(recipe).finish(mllm.model, mllm.processor)
    results = folder / "run/evaluate/refcoco-val/results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"commit": "0123456789abcdef", "splits": [{"scores": SCORES}]}))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder / "run"


def test_a_dry_run_lists_the_files_and_the_card(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/run", "--dry-run", "--json", "-"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    wanted = {"adapter_config.json", "adapter_model.safetensors", "method.json", "recipe.yaml", "README.md"}
    assert wanted < record["files"].keys() and not any("/" in name for name in record["files"])
    assert record["files"]["recipe.yaml"] == (run / "recipe.yaml").stat().st_size
    assert f"note: recipe.yaml names folders of this machine: {run.parent}/data" in printed.err
    assert main(["push", str(run), "me/run", "--dry-run"]) == 0
    assert "adapter_config.json  " in (text := capsys.readouterr().out) and "\n# me/run\n" in text


def test_the_card_has_data_figures_protocol_and_licenses(run: Path) -> None:
    card = plan_upload(run, "me/run").card
    assert card is not None
    _, head, body = card.split("---\n", 2)
    metadata = read_yaml(head)
    assert metadata["library_name"] == "peft" and metadata["pipeline_tag"] == "image-segmentation"
    assert metadata["license"] == "apache-2.0" and "base_model" not in metadata
    assert 'Pipeline.from_pretrained("me/run", segmenter="shapes")' in body
    assert "- refcoco train\n" in body and "license of the base shapes: Apache-2.0" in body
    assert "| refcoco | val | refcoco | 6 | 52.4 | 50.0 |  | 100.0 | 1 | 0123456789ab |" in body


def test_a_card_of_the_user_is_kept(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    (own / "README.md").write_text("mine")
    upload = plan_upload(own, "me/run")
    assert upload.card is None and own / "README.md" in upload.files
    (own / "README.md").unlink()
    (own / "evaluate/refcoco-val/results.json").write_text("{}")
    with pytest.raises(ModelError, match="not the results of an evaluation"):
        plan_upload(own, "me/run")
    shutil.rmtree(own / "evaluate")
    assert "This run was not evaluated." in (plan_upload(own, "me/run").card or "")


def test_an_adapter_of_a_local_base_is_refused(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    text = (own / "recipe.yaml").read_text()
    (own / "recipe.yaml").write_text(text.replace("base: shapes", f"base: {tmp_path}"))
    with pytest.raises(ModelError, match=r"is a folder of this machine, which no other has; merge the run"):
        plan_upload(own, "me/run")
    with pytest.raises(ModelError, match="a repository of the Hub is USER/NAME"):
        plan_upload(run, "run")


PROGRAM = """
import sys
from sam4mllm import Pipeline
from sam4mllm.cli.main import main
from sam4mllm.runs.hub_runs import download_run
run, image = sys.argv[1:]
assert main(["push", run, "me/run", "--private"]) == 0
assert download_run("me/base") is None and download_run("me/none") is None
remote = Pipeline.from_pretrained("me/run", device="cpu")
print(remote.identity["engine"], remote(image, "the red ring").status)
"""


def run_program(hub: HubServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the stand-in as the Hub; Xet, the Hub's newer protocol for large files, is not part of it."""
    variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    variables |= {"HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | variables, capture_output=True, text=True, timeout=300
    )


def test_a_pushed_run_is_loaded_by_its_name(run: Path, tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.repositories["me/base"] = {"config.json": b"{}"}
        done = run_program(hub, tmp_path, "-c", PROGRAM, str(run), str(run.parent / "a.png"))
        assert done.returncode == 0, done.stderr
        assert file_sha256(run / "adapter_model.safetensors") in done.stdout
        assert hub.private["me/run"]
        files = hub.repositories["me/run"]
        assert files["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
        assert files["README.md"].decode() == plan_upload(run, "me/run").card


def test_a_refused_upload_gets_one_line(run: Path, tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.refuses = True
        done = run_program(hub, tmp_path, "-m", "sam4mllm", "push", str(run), "me/run")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("sam4mllm: error: ")
    assert f"{hub.address}: the upload to me/run failed" in done.stderr
