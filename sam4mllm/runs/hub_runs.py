"""Run folders on the Hugging Face Hub: downloaded to the Hub's cache, where they are run folders as any other."""

from __future__ import annotations

from pathlib import Path

from sam4mllm.errors import ModelError
from sam4mllm.runs.file_names import RECIPE
from sam4mllm.utils.hub import use_cache_if_unreachable
from sam4mllm.utils.messages import first_line

MODEL_CARD = "README.md"

RUN_PATTERNS = ("*.json", "*.jsonl", "*.yaml", "*.txt", "*.model", "*.jinja", "*.safetensors", MODEL_CARD)
"""The files of a run folder that inference needs, and its log and card; those in its subfolders are not needed."""


def download_run(repo_id: str) -> Path | None:
    """Download the run of a repository "user/name"; None if the repository holds none, or cannot be read.

    A repository that cannot be read may be a base model, whose loading reports why.

    Raises:
        ModelError: The download of a run failed.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    use_cache_if_unreachable()
    try:
        hf_hub_download(repo_id, RECIPE)
    # EntryNotFoundError also without a network, if the file is not in the cache.
    except (EntryNotFoundError, RepositoryNotFoundError, GatedRepoError, HfHubHTTPError, OSError):
        return None
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(RUN_PATTERNS)))
    # The exceptions' classes depend on the version of the client: those of requests, httpx or httpx2.
    except Exception as error:
        raise ModelError(f"{repo_id}: the run on the Hub cannot be downloaded: {first_line(error)}") from error
