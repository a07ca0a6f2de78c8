"""The gate: a registered version against the champion, on the same test clips, scored by both now.

Owns where a clip's activations come from: the caches of this checkout, if what they hold is what this very model would
see, else the videos. So a champion of last year, of another frame spec or another family, is judged on the same rows.
What a verdict follows from is `evaluation/verdict.py`'s; where it is kept, `registry.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qualivision import registry
from qualivision.cache import CacheError, file_hash, make_key
from qualivision.decoding import Decoders
from qualivision.frames import clip_name
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, LabelError, has_mos, labels_path, read_labels, videos_dir
from qualivision.prompts import embedded
from qualivision.video import READER_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from qualivision.evaluation.verdict import Verdict
    from qualivision.progress import Advance
    from qualivision.prompts import Embeddings
    from qualivision.settings import DecodeSettings, Settings
    from qualivision.training.checkpoint import Member, ModelCard

    Floats = NDArray[np.float64]

_BATCH = 32


def judge(version: int | None, settings: Settings, data: Path, *, advance: Callable[[str], Advance]) -> Verdict:
    """Hold a version against the champion and store the verdict on it, whether it passes or not.

    Args:
        version: which; by default the challenger.
        settings: all of `params.yaml`.
        data: the data folder; its test split is what both are judged on.
        advance: gives the progress of scoring a model of that name.
    Raises:
        RegistryError: no such version, or no challenger.
        ModelNotFoundError, CheckpointError: a model that can't be read.
        LabelError: there is no rated test split.
        VideoError: a test video can't be read.
    """
    from qualivision.evaluation.verdict import judge as verdict_on
    from qualivision.training.checkpoint import members_of

    registry_settings = settings.registry
    version = version or registry.challenger(registry_settings)
    champion = registry.version_of(registry.CHAMPION, registry_settings)
    if champion == version:
        raise registry.RegistryError(f"models:/{registry_settings.name}/{version}: is the champion; it needs no gate")
    rows = TestRows(data, settings.decode)
    checkpoint, uri = registry.fetch(f"models:/{registry_settings.name}/{version}")
    challengers = rows.scored_by(checkpoint, advance=advance(uri))
    champions, theirs = None, None
    if champion is not None:
        other, theirs = registry.fetch(f"models:/{registry_settings.name}/{champion}")
        champions = rows.scored_by(other, advance=advance(theirs))
    verdict = verdict_on(
        challengers,
        champions,
        rows.without_video(members_of(checkpoint)),
        rows.rated,
        rows.prompts,
        settings.promote,
        names=(uri, theirs),
        data=rows.identity,
    )
    registry.record_verdict(version, verdict, registry_settings)
    return verdict


class TestRows:
    """The rated clips that challengers and champions are judged on.

    Args:
        data: the data folder.
        limits: of decoding, where a model has to see the videos themselves.
    Raises:
        LabelError: no test table, one without MOS, or one that is too small to compare models on.
    """

    __test__ = False  # for pytest, which takes every Test... for a test

    def __init__(self, data: Path, limits: DecodeSettings) -> None:
        self.data = data
        self.limits = limits
        path = labels_path(data, "test")
        self.table: pd.DataFrame = read_labels(path, require_mos=False)
        if not has_mos(self.table):
            raise LabelError(f"{path}: has no MOS, so no model can be compared on it")
        if (found := self.table["Prompt"].nunique()) < 2 or len(self.table) < 3:
            raise LabelError(
                f"{path}: has {len(self.table)} clips and {found} prompts; models are compared on at least 3 "
                "clips of 2 prompts. Give the test split a larger share, or promote with --override REASON"
            )
        self.identity = file_hash(path)
        self.prompts: list[str] = self.table["Prompt"].tolist()
        self._vectors: dict[str, dict[str, Embeddings]] = {}
        self.rated: Floats = self.table[list(MOS_COLUMNS)].to_numpy(np.float64)

    def scored_by(self, checkpoint: Path, *, advance: Advance) -> Floats:
        """What a checkpoint says of each row now: (N, 5) MOS; of an ensemble each member by itself.

        Raises:
            CheckpointError: not a checkpoint, or one that does not fit this version.
            VideoError: a test video can't be read.
        """
        from qualivision.training.checkpoint import members_of, weights_of
        from qualivision.training.mixing import mixed

        members = members_of(checkpoint)
        said = []
        for member in members:
            found = self._by_caches(member.folder, member.card)
            said.append(self._by_videos(member.folder, advance) if found is None else found)
        return mixed(np.stack(said), weights_of(members))

    def without_video(self, members: Sequence[Member]) -> Floats:
        """What the prompt alone predicts, learned from the training split by the members' encoders: (N, 5) MOS."""
        from qualivision.evaluation.baselines import no_video_baseline

        train = read_labels(labels_path(self.data, "train"))
        prompts: list[str] = train["Prompt"].tolist()
        encoders = dict.fromkeys(member.card.text.encoder for member in members)
        vectors = [self._embedded(encoder, {*prompts, *self.prompts}) for encoder in encoders]
        return no_video_baseline(
            embedded(prompts, vectors),
            train[list(MOS_COLUMNS)].to_numpy(np.float64),
            prompts,
            embedded(self.prompts, vectors),
        )

    def _embedded(self, encoder: str, prompts: set[str]) -> dict[str, Embeddings]:
        """The vectors of prompts, at least; what two models share is embedded once."""
        from qualivision.prompts import PromptEncoder

        known = self._vectors.setdefault(encoder, {})
        if new := sorted(prompts - known.keys()):
            known.update(zip(new, PromptEncoder(encoder).encode(new), strict=True))
        return known

    def _videos(self) -> list[Path]:
        return [videos_dir(self.data, "test") / name for name in self.table["video_name"]]

    def _by_caches(self, checkpoint: Path, card: ModelCard) -> Floats | None:
        """By the cached activations; None if a clip's are missing, or are not what this model would compute."""
        from qualivision.models.factory import caches_stem, stem_fingerprint
        from qualivision.stages.encode import activations_cache
        from qualivision.training.checkpoint import load_checkpoint
        from qualivision.training.data import ClipSet
        from qualivision.training.loop import predict

        cache = activations_cache(card.name, card.network)
        contents = cache.seen.find(videos := self._videos(), lambda path: file_hash(path) if path.is_file() else None)
        keys = [make_key(contents[path], card.frames, READER_VERSION) for path in videos]
        if caches_stem(card.name, card.network):
            fingerprint = stem_fingerprint(card.name, card.network)
            keys = [make_key(key, fingerprint) for key in keys]
        try:
            index = cache.index()
        except CacheError:
            return None
        clips = [clip_name("test", name) for name in self.table["video_name"]]
        if any(index.get(clip) != key or not cache.path(key).exists() for clip, key in zip(clips, keys, strict=True)):
            return None
        rows = ClipSet(self.data, "test", cache, self._embedded(card.text.encoder, set(self.prompts)))
        model, _ = load_checkpoint(checkpoint, with_stem=False)
        return predict(model, rows, batch_size=_BATCH)

    def _by_videos(self, checkpoint: Path, advance: Advance) -> Floats:
        """By the videos, as `qualivision score` does it."""
        from qualivision.batch import Asked, decoding_processes, judged
        from qualivision.scoring import Scorer, Scores

        decoders = Decoders(self.limits, workers=decoding_processes(len(self.table)))
        found: dict[str, list[float]] = {}
        try:
            asked = zip(self._videos(), self.prompts, strict=True)
            rows = ((str(row), Asked(prompt, str(video))) for row, (video, prompt) in enumerate(asked))
            for row, scores in judged(Scorer(checkpoint), decoders, rows):
                if not isinstance(scores, Scores):
                    raise scores
                found[row] = [scores[dimension] for dimension in DIMENSIONS]
                advance(len(found), len(self.table))
        finally:
            decoders.close()
        return np.array([found[str(row)] for row in range(len(self.table))], dtype=np.float64)
