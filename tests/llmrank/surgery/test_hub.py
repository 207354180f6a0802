"""Uploads to the Hugging Face hub, against a stub of its client."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalTokenNotFoundError

import llmrank
from llmrank.errors import CheckpointError, OptionError
from llmrank.surgery import hub
from tests.llmrank.commands import SHORT, refused, run
from tests.llmrank.tiny_models import tiny_llama, token_ids, tokenizer


class Hub:
    """What the stub was asked to do."""

    def __init__(self) -> None:
        self.repositories: dict[str, Any] = {}
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.asked = 0
        self.fails: BaseException | None = None


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    seen = Hub()

    class Address(str):
        repo_id = property(lambda self: self.removeprefix("https://hub/"))

    class Api:
        def whoami(self) -> dict[str, str]:
            seen.asked += 1
            return {"name": "me"}

        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Address:
            assert exist_ok
            seen.repositories[repo_id] = private
            return Address(f"https://hub/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            if seen.fails is not None:
                raise seen.fails
            seen.uploads[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}

    monkeypatch.setattr(hub, "HfApi", Api)
    return seen


def test_the_stub_has_the_signatures_of_the_client() -> None:
    api = huggingface_hub.HfApi
    assert {"repo_id", "private", "exist_ok"} <= inspect.signature(api.create_repo).parameters.keys()
    assert {"repo_id", "folder_path", "commit_message"} <= inspect.signature(api.upload_folder).parameters.keys()
    assert isinstance(huggingface_hub.RepoUrl("https://huggingface.co/me/small"), str)
    assert huggingface_hub.RepoUrl("https://huggingface.co/me/small").repo_id == "me/small"


def pruned() -> llmrank.PrunedModel:
    return llmrank.prune_model(tiny_llama(), tokenizer(), repair="none", calibration=token_ids())


@pytest.mark.parametrize("private", [None, True, False])
def test_a_complete_checkpoint_is_uploaded_with_its_card(stub: Hub, tmp_path: Path, private: bool | None) -> None:
    written = pruned().save(tmp_path / "out", push_to_hub="smaller", private=private)
    assert stub.repositories == {"me/smaller": private}
    assert stub.uploads == {"me/smaller": {path.name: path.read_bytes() for path in written.iterdir()}}
    card = (written / "README.md").read_text(encoding="utf-8")
    assert 'AutoModelForCausalLM.from_pretrained("me/smaller")' in card


def test_nothing_is_uploaded_without_a_name_or_if_saving_fails(
    stub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned().save(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        pruned().save(tmp_path / "full", push_to_hub="smaller")
    assert stub.asked == 0
    model = tiny_llama()
    model.config.intermediate_size = 3  # the configuration does not describe the tensors
    with pytest.raises(CheckpointError, match="could not be loaded again"):
        llmrank.save(tmp_path / "wrong", model, push_to_hub="smaller")
    assert (stub.repositories, stub.uploads) == ({}, {})
    assert not (tmp_path / "wrong").exists()


def test_a_name_or_a_user_that_the_hub_cannot_know_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        OptionError, match=r"'a/b/c' is no name of a repository on the hub: .*expected NAME or OWNER/NAME"
    ):
        hub.check_hub("a/b/c")

    def nobody() -> None:
        raise LocalTokenNotFoundError("Token is required\nfor more")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(whoami=nobody))
    message = r"nothing can be uploaded to smaller: Token is required; log in \(hf auth login, or set HF_TOKEN\)"
    with pytest.raises(OptionError, match=message):
        llmrank.save(tmp_path / "out", tiny_llama(), push_to_hub="smaller")
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_leaves_the_checkpoint_and_says_how_to_go_on(stub: Hub, tmp_path: Path) -> None:
    stub.fails = ConnectionError("the line is dead")
    out = tmp_path / "out"
    with pytest.raises(
        CheckpointError, match=f"{out} is complete, but .* the line is dead; try again with hf upload me/x {out}"
    ):
        pruned().save(out, push_to_hub="x")
    assert torch.equal(llmrank.load(out).model.lm_head.weight, pruned().model.lm_head.weight)


def test_the_command_for_another_try_keeps_the_repository_private(stub: Hub, tmp_path: Path) -> None:
    stub.fails = ConnectionError("the line is dead")
    out = tmp_path / "my model"
    with pytest.raises(CheckpointError) as caught:
        pruned().save(out, push_to_hub="x", private=True)
    command = str(caught.value).partition("try again with ")[2]
    assert shlex.split(command) == ["hf", "upload", "me/x", str(out), "--private"]
    assert hub.upload_command(Path("out"), "me/x") == "hf upload me/x out"
    assert hub.upload_command(Path("out"), "me/x", private=False) == "hf upload me/x out --no-private"


def test_the_command_uploads_what_it_saved(
    stub: Hub, checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, given = tmp_path / "out", ("--calibration", corpus, *SHORT)
    assert run("prune", checkpoint, "--output", out, *given, "--push-to-hub", "me/small") == 0
    assert "it was not uploaded to me/small, because it has collapsed" in " ".join(capsys.readouterr().out.split())
    assert stub.uploads == {}
    assert out.is_dir()

    monkeypatch.setattr("llmrank.evaluation.before_and_after.Evaluation.collapsed", False)
    out = tmp_path / "again"
    assert run("prune", checkpoint, "--output", out, *given, "--push-to-hub", "small", "--private") == 0
    assert "Uploaded it to me/small." in capsys.readouterr().out
    assert (stub.repositories, stub.uploads.keys()) == ({"me/small": True}, {"me/small"})
    masks = out / "masks.safetensors"
    assert run("apply", masks, checkpoint, "--output", tmp_path / "applied", "--push-to-hub", "us/other") == 0
    assert stub.repositories["us/other"] is None

    stub.fails = KeyboardInterrupt()
    out = tmp_path / "interrupted"
    assert run("prune", checkpoint, "--output", out, *given, "--push-to-hub", "small", "--private") == 130
    assert f"{out} is complete; hf upload me/small {out} --private uploads it." in " ".join(
        capsys.readouterr().out.split()
    )
    assert (out / "report.json").is_file()


def test_uploads_are_refused_before_any_work(stub: Hub, tmp_path: Path, capsys: Any) -> None:
    given = ("prune", "./nowhere", "--output", tmp_path / "out")
    assert "'a/b/c' is no name of a repository" in refused(capsys, *given, "--push-to-hub", "a/b/c")
    assert "--private is for the repository of --push-to-hub NAME" in refused(capsys, *given, "--private")
