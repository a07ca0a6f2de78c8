"""Stage `encode`: every clip's frames through a model's frozen stem, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qualivision.frames import fill_stems, frame_cache, stem_cache
from qualivision.progress import progress
from qualivision.settings import load_settings
from qualivision.stages import places

if TYPE_CHECKING:
    from collections.abc import Callable

    from qualivision.cache import Arrays


def run(model: str) -> str:
    """Fill the stem cache. Raises SettingsError, and CacheError when the frame cache is missing or damaged."""
    import torch

    from qualivision.models.factory import stem_fingerprint

    load_settings().model(model)  # refuses a name that is not there
    with progress(f"encode {model}: stem") as advance:
        done = fill_stems(
            stem_cache(places.stems_dir(model), model),
            frame_cache(places.frames_dir(model), model),
            stem_fingerprint(model),
            Stem(model),
            advance=advance,
            workers=1 if torch.cuda.is_available() else None,  # one process keeps a GPU busy
        )
    return f"encode {model}: {done}"


@dataclass(frozen=True)
class Stem:
    """Loads a model's stem as a function on one clip's cached arrays; on the GPU when there is one."""

    model: str

    def __call__(self) -> Callable[[Arrays], Arrays]:
        """Load it."""
        import torch

        from qualivision.models.factory import build_stem
        from qualivision.models.quality import frames_to_input

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stem = build_stem(self.model).to(device)

        @torch.inference_mode()
        def activations(entry: Arrays) -> Arrays:
            given = frames_to_input(entry["frames"]).to(device)
            return {name: value[0].cpu().numpy() for name, value in stem(given).items()}

        return activations
