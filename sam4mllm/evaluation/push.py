"""Upload a run to the Hugging Face Hub: the adapter or the merged model, what inference needs, and a model card.

Checkpoints, predictions and evaluations are not uploaded. `Pipeline.from_pretrained("user/name")` loads the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.errors import ModelError, ServerError
from sam4mllm.evaluation.model_card import model_card
from sam4mllm.mllm.loading import EMBEDDED_BASES, is_hub_id
from sam4mllm.runs.hub_runs import MODEL_CARD, RUN_PATTERNS
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.utils.messages import first_line

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Upload:
    """What is uploaded.

    run: the run folder.
    repo_id: the repository, "user/name".
    files: the files of the run folder.
    card: the model card; None if the run folder has one, which is among the files.
    notes: what the user should know before the upload, such as folders of this machine that the recipe names.
    """

    run: Path
    repo_id: str
    files: tuple[Path, ...]
    card: str | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the names and sizes of the files in bytes, as plain JSON."""
        sizes = {file.name: file.stat().st_size for file in self.files}
        if self.card is not None:
            sizes[MODEL_CARD] = len(self.card.encode())
        return {"repo_id": self.repo_id, "files": dict(sorted(sizes.items())), "notes": list(self.notes)}


def plan_upload(run: str | Path, repo_id: str) -> Upload:
    """Return what `push` uploads; nothing is sent.

    Raises:
        ModelError: Not a finished run folder, not a repository's id, or an adapter whose base is a folder of this
            machine, so that no other machine could load it.
    """
    folder = RunFolder.open(run)
    if not _REPO_ID.fullmatch(repo_id):
        raise ModelError(f"{repo_id!r}: a repository of the Hub is USER/NAME, with letters, digits, '.', '_' and '-'")
    recipe = folder.recipe
    base = recipe.model.base
    is_local = not is_hub_id(base) or base.count("/") != 1
    if not folder.is_merged and base not in EMBEDDED_BASES and is_local:
        raise ModelError(
            f"{folder.path}: the base of this adapter, {base}, is a folder of this machine, which no other has; merge "
            f"the run (`sam4mllm merge {folder.path} -o merged`), and push the merged model"
        )
    files = tuple(sorted({file for pattern in RUN_PATTERNS for file in folder.path.glob(pattern) if file.is_file()}))
    has_card = any(file.name == MODEL_CARD for file in files)
    data = [*recipe.data.train, *([recipe.data.validation] if recipe.data.validation is not None else [])]
    local = sorted({str(path) for entry in data for path in (entry.root, entry.path) if path and path.is_absolute()})
    notes = [f"recipe.yaml names folders of this machine: {', '.join(local)}"] if local else []
    notes += [f"{MODEL_CARD} of the run folder is uploaded as it is"] if has_card else []
    return Upload(folder.path, repo_id, files, None if has_card else model_card(folder, repo_id), tuple(notes))


def push(run: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a run in one commit, and return the address of its page; the repository is created if it does not exist.

    The token is the Hub client's: the environment variable HF_TOKEN, or that of `hf auth login`.

    Args:
        run: The run folder of a finished training, or a merged one.
        repo_id: The repository, "user/name".
        private: Whether a new repository is private.

    Raises:
        ModelError: As `plan_upload`.
        ServerError: The Hub refuses the upload, or does not respond.
    """
    return send(plan_upload(run, repo_id), private=private)


def send(upload: Upload, *, private: bool = False) -> str:
    """Send a planned upload as `push` does, and return the address of its page.

    Raises:
        ServerError: The Hub refuses the upload, or does not respond.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(file.name, file) for file in upload.files]
    if upload.card is not None:
        operations.append(CommitOperationAdd(MODEL_CARD, upload.card.encode()))
    api = HfApi()
    try:
        address = api.create_repo(upload.repo_id, private=private, exist_ok=True)
        api.create_commit(upload.repo_id, operations, commit_message=f"Upload {upload.run.name} with sam4mllm")
    # The exceptions' classes depend on the version of the client: those of requests, httpx or httpx2.
    except Exception as error:
        raise ServerError(f"{api.endpoint}: the upload to {upload.repo_id} failed: {first_line(error)}") from error
    return str(address)
