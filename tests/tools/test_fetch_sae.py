"""saes add: only what was read and checked comes into a home, whole or not at all."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lamplighter.store.records import Refused
from lamplighter.tools import fetch_sae as module
from lamplighter.tools.fetch_sae import fetch_sae


def make(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(24, 32, generator=generator), "W_dec": torch.randn(32, 24, generator=generator),
        "b_enc": torch.zeros(32), "b_dec": torch.zeros(24),
    }  # fmt: skip
    known = {"architecture": "standard", "d_in": 24, "d_sae": 32, "hook_name": "blocks.1.hook_resid_post", **config}
    (folder / "cfg.json").write_text(json.dumps(known))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def test_a_folder_is_taken_in_and_nothing_else_of_it(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "evil.py").write_text("raise SystemExit")
    made = fetch_sae("mine", str(source), tmp_path / "saes")
    assert (made.name, made.site, made.width) == ("mine", "1-resid:mine", 32)
    assert sorted(p.name for p in (tmp_path / "saes" / "mine").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_a_name_is_taken_once_and_must_fit_a_site(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    fetch_sae("mine", str(source), tmp_path / "saes")
    with pytest.raises(Refused, match="is there already; choose another name"):
        fetch_sae("mine", str(source), tmp_path / "saes")
    for name in ("../out", "a/b", "", "a b"):
        with pytest.raises(Refused, match="is no name for an SAE"):
            fetch_sae(name, str(source), tmp_path / "saes")


def test_what_is_no_sae_leaves_nothing_behind(tmp_path: Path) -> None:
    damaged = make(tmp_path / "damaged")
    (damaged / "sae_weights.safetensors").write_bytes(b"no tensors")
    for source in (damaged, make(tmp_path / "odd", architecture="crosscoder"), tmp_path):
        with pytest.raises(Refused):
            fetch_sae("mine", str(source), tmp_path / "saes")
    assert not (tmp_path / "saes").exists()


@pytest.mark.parametrize("source", ["nothing", "./here", "/not/there"])
def test_what_names_nothing_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="is no folder, and no REPOSITORY/FOLDER of a hub"):
        fetch_sae("mine", source, tmp_path / "saes")


def test_a_hub_that_is_out_of_reach_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: str) -> str:
        raise OSError("offline mode is enabled\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"org/repo cannot be had \(offline mode is enabled\)"):
        fetch_sae("mine", "org/repo/layer_8", tmp_path / "saes")
    monkeypatch.undo()      # what the library itself says where it may not ask: a kind of "no such file"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"org/repo cannot be had .* name a folder of this machine"):
        fetch_sae("mine", "org/repo/layer_8", tmp_path / "saes")


def test_a_scaler_that_could_not_be_asked_for_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    source = make(tmp_path / "source")

    def download(repository: str, file: str) -> str:
        if not (source / Path(file).name).exists():
            raise LocalEntryNotFoundError("the connection broke")
        return str(source / Path(file).name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"org/repo cannot be had \(the connection broke\)"):
        fetch_sae("mine", "org/repo/layer_8", tmp_path / "saes")


def test_a_hub_s_folder_is_asked_for_its_files_and_may_lack_a_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    source, asked = make(tmp_path / "source"), []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if not (source / Path(file).name).exists():
            raise EntryNotFoundError("404")
        return str(source / Path(file).name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert fetch_sae("mine", "org/repo/layer_8", tmp_path / "saes").width == 32
    assert asked == [("org/repo", f"layer_8/{file}") for file in module.FILES]
    (source / "cfg.json").unlink()
    with pytest.raises(Refused, match="org/repo holds no cfg.json in layer_8"):
        fetch_sae("other", "org/repo/layer_8", tmp_path / "saes")


def test_a_release_is_had_from_sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library, whose own reader is compared in test_features."""
    source = make(tmp_path / "source")

    class SAE:
        @classmethod
        def from_pretrained(cls, release: str, sae_id: str) -> "SAE":
            if sae_id != "layer_1":
                raise ValueError(f"no {sae_id} in {release}")
            return cls()

        def save_model(self, place: Path) -> None:
            for file in source.iterdir():
                (Path(place) / file.name).write_bytes(file.read_bytes())

    lens, directory = ModuleType("sae_lens"), ModuleType("sae_lens.loading.pretrained_saes_directory")
    lens.SAE = SAE  # type: ignore[attr-defined]
    directory.get_pretrained_saes_directory = lambda: {"res-jb": {}}  # type: ignore[attr-defined]
    for found in (lens, ModuleType("sae_lens.loading"), directory):
        monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert fetch_sae("mine", "res-jb/layer_1", tmp_path / "saes").site == "1-resid:mine"
    with pytest.raises(Refused, match=r"sae-lens cannot give res-jb/layer_9 \(no layer_9 in res-jb\)"):
        fetch_sae("other", "res-jb/layer_9", tmp_path / "saes")
