"""Stage `encode`: every clip's frames through a model's frozen stem, once.

A model whose stem is not cached has nothing to compute here; its stem cache then lists the frames that it reads, so
that what comes after depends on them all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qualivision.frames import fill_stems, frame_cache, stem_cache
from qualivision.progress import progress
from qualivision.settings import load_settings
from qualivision.stages import places

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from qualivision.cache import Arrays, Cache
    from qualivision.settings import NetworkSettings


def run(model: str) -> str:
    """Fill the stem cache. Raises SettingsError, and CacheError when the frame cache is missing or damaged."""
    import torch

    from qualivision.models.factory import caches_stem, stem_fingerprint

    network = load_settings().model(model).network  # refuses a name that is not there
    stems, frames = stem_cache(places.stems_dir(model), model), frame_cache(places.frames_dir(model), model)
    if not caches_stem(model, network):
        stems.refer(frames.index())
        return f"encode {model}: nothing to compute, it is trained on its frames"
    with progress(f"encode {model}: stem") as advance:
        done = fill_stems(
            stems,
            frames,
            stem_fingerprint(model, network),
            Stem(model, network),
            advance=advance,
            workers=1 if torch.cuda.is_available() else None,  # one process keeps a GPU busy
        )
    return f"encode {model}: {done}"


def activations_cache(model: str, network: NetworkSettings) -> Cache:
    """The cache that training and evaluation read: of the stem's activations, or of frames where no stem is cached."""
    from qualivision.models.factory import caches_stem

    if caches_stem(model, network):
        return stem_cache(places.stems_dir(model), model)
    return frame_cache(places.frames_dir(model), model)


@dataclass(frozen=True)
class Stem:
    """Loads a model's stem as a function on one clip's cached arrays; on the GPU when there is one."""

    model: str
    network: NetworkSettings

    def __call__(self) -> Callable[[Arrays], Arrays]:
        """Load it."""
        import torch

        from qualivision.models.factory import build_stem
        from qualivision.models.quality import frames_to_input

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stem = build_stem(self.model, self.network).to(device)

        @torch.inference_mode()
        def activations(entry: Arrays) -> Arrays:
            given = frames_to_input(entry["frames"]).to(device)
            return {name: _array(value[0].cpu()) for name, value in stem(given).items()}

        return activations


def _array(value: Tensor) -> Any:
    """As NumPy takes it; of bfloat16, which it does not know, the bits."""
    import torch

    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
