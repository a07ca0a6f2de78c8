"""The one shape of every model: judges (video encoder + fusion and match with the prompt + MOS head), and their union.

Contracts (B clips, T frames, N tokens, D channels, Dt text channels):
- an encoder has `stem(frames) -> Activations` (frozen: what training never changes, cached by the `encode` stage) and
  `see(Activations) -> Seen` (trained). The activations of an encoder without a cached stem are the frames themselves,
  as the frame cache holds them;
- a fusion takes tokens (B, N, D) and text (B, Dt) to `Fused`;
- `QualityModel.forward(frames, text)` equals `from_stem(stem(frames), text)`.

Several judges differ by their seed alone and share the frozen stem. Training teaches each of them by itself; what mixes
and calibrates them is measured afterwards (`training/measuring.py`), and until then they count alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from qualivision.labels import DIMENSIONS, FAULTS, MOS_MAX, MOS_MIN
from qualivision.models.bridge import Bridge
from qualivision.models.familiarity import Familiarity
from qualivision.models.forest import Forest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from qualivision.models.fusion import Match

    Activations = dict[str, Tensor]
    """The output of a frozen stem; the first axis of every tensor is the clip."""

ASPECTS = DIMENSIONS[:4]
"""What the fusion asks of a video. Overall is made of them."""
ALIGNMENT = ASPECTS.index("Alignment")
READ_ASPECTS = tuple(place for place in range(len(ASPECTS)) if place != ALIGNMENT)
"""What is read from a video alone; each has a forest of its own."""
DOUBTED = (1.1, 1.2)
"""Distances, of a clip or a prompt, from which on the match is doubted, and not believed at all; 1 is familiar."""
STRANGE = (0.9, 1.3)
"""Distances of a clip from which on judges count less, and not at all, in what is measured well enough without them."""
MEASURED_WELL = ("Traditional",)
"""What of a strange clip is read from measured faults and forests alone. Of time too little is measured for that."""
BRIDGE_ALONE = 0.8
"""Logits of a deviation of the bridge for a clip so unlike the training clips that the match knows nothing of it."""


def faults_to_learn(taken: Collection[str]) -> tuple[tuple[int, ...], ...]:
    """For each of `READ_ASPECTS` the places among `FAULTS` of the kinds that lower it, but for those that are taken."""
    kinds = [(place, lowers) for place, (kind, lowers) in enumerate(FAULTS.items()) if kind not in taken]
    return tuple(tuple(place for place, lowers in kinds if lowers == ASPECTS[aspect]) for aspect in READ_ASPECTS)


def frames_to_input(frames: npt.NDArray[np.uint8]) -> Tensor:
    """One clip as the frame cache holds it, (T, H, W, 3) uint8, to a batch of one, (1, 3, T, H, W) float in [0, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 255


def packed(frames: Tensor) -> Activations:
    """Frames (B, 3, T, H, W) float in [0, 1] as the frame cache holds them: {"frames": (B, T, H, W, 3) uint8}."""
    return {"frames": (frames.permute(0, 2, 3, 4, 1) * 255).round().to(torch.uint8)}


def unpacked(activations: Activations, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `packed`: (B, 3, T, H, W) in [0, 1]."""
    return activations["frames"].permute(0, 4, 1, 2, 3).to(dtype) / 255


class Seen(NamedTuple):
    """What an encoder gives of a batch of clips."""

    tokens: Tensor
    """(B, N, D): space-time tokens, for the fusion."""
    content: Tensor
    """(B, C): what each clip shows, for `Match`; standardised."""
    auxiliary: dict[str, Tensor]
    """By dimension, (B,) MOS: what heads of the encoder's own say of it. Empty where it has none."""
    faults: Tensor | None = None
    """See `Encoder.faults`."""


class Fused(NamedTuple):
    """What a fusion gives: one vector for each aspect, and how much each matters for this prompt."""

    aspects: Tensor
    """(B, 4, D), in the order of `ASPECTS`."""
    weights: Tensor
    """(B, 4), each row sums to 1."""


class Joined(NamedTuple):
    """How what was learned of clips and prompts is joined with what an image network knows without training."""

    trust: Tensor
    """(B,), counts the match: 1 where clip and prompt are of the training data's kind, 0 where one clearly is not."""
    known: Tensor
    """(B,) logits: what the bridge adds."""


class Drawn(NamedTuple):
    """Where what a judge learned of clips is drawn to, before what is measured is taken from it.

    What a network says of a clip unlike those of training follows anything, and gives back what a measured fault takes:
    the noisier a clip that lacks detail, the more of it the network sees. A forest stays in the range of what raters
    said, and is left as it is.
    """

    share: Tensor
    """(B, 4), of each aspect: how much of what was learned counts; 1 for clips of the training data's kind."""
    usual: Tensor
    """(4,) logits: what is usually left of a rating once what is measured has been taken from it."""

    def of(self, logits: Tensor) -> Tensor:
        """Logits (B, 4), drawn."""
        return self.usual + self.share * (logits - self.usual)


class Judged(NamedTuple):
    """What judges and forests say of a batch of clips, each for itself."""

    aspects: Tensor
    """(judges, B, 4) MOS."""
    weights: Tensor
    """(judges, B, 4), of the aspects in Overall."""
    forest: Tensor | None
    """(B, 4) MOS, NaN where they say nothing; None where there are none."""
    seen: Seen
    """By the first judge."""
    distance: Tensor
    """(B,), see `Prediction`."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch of clips."""

    mos: Tensor
    """(B, 5) float, MOS units, between 1 and 5, in the order of `DIMENSIONS`."""
    aspect_weights: Tensor
    """(B, 4), in the order of `ASPECTS`: what share each has in Overall, from the prompt; rows sum to 1."""
    auxiliary: dict[str, Tensor]
    """By dimension, (B,) MOS: what the encoder's own heads say; see `Seen`."""
    distance: Tensor
    """(B,) from the training clips; up to 1 for clips of their kind, without an upper end. See `Familiarity`."""


class Encoder(nn.Module, ABC):
    """A video encoder: a frozen stem, and what is trained on top of it."""

    content_width: int
    """Channels C of `Seen.content`."""
    takes: tuple[str, ...] = ()
    """Of the kinds of fault that may be known of a clip (`labels.FAULTS`), those that `faults` takes from the aspects.

    They are not taught: what learned to see them would give back what was taken.
    """
    sees_classes = False
    """Whether the activations hold `classes`, what an image network takes the clip for; see `bridge.py`."""

    @property
    def content_parts(self) -> tuple[int, ...]:
        """Channels of each kind of feature in the content, in their order; C in all."""
        return (self.content_width,)

    @property
    def familiar_by(self) -> tuple[slice, ...]:
        """Which channels of the content say whether a clip is like those of training, one slice a kind of feature."""
        return (slice(0, self.content_width),)

    @property
    def architecture(self) -> dict[str, Any]:
        """What rebuilds it without its published weights, beside its settings; plain values."""
        return {}

    def layers(self) -> Iterable[nn.Module]:
        """The trained modules that sharded training gathers one at a time; what is in none of them, at once."""
        return ()

    @abstractmethod
    def stem(self, frames: Tensor) -> Activations:
        """The frozen part: (B, 3, T, H, W) float in [0, 1] to activations."""

    @abstractmethod
    def see(self, activations: Activations) -> Seen:
        """The trained part."""

    def faults(self, activations: Activations) -> Tensor | None:
        """What a fault that can be measured takes from each aspect, (B, 4) logits of its MOS, 0 or more; None: nothing.

        It is taken whatever the rest of a model learned, so that it counts on clips unlike those of training too.
        """
        return None

    def measured(self, activations: Activations) -> tuple[Tensor, ...] | None:
        """What is known of a clip before any training: (B, F) for the forest of each of `READ_ASPECTS`.

        None where there is nothing: an encoder that is trained as a whole.
        """
        return None

    def fit(self, clips: Iterable[Activations]) -> None:
        """Measure what depends on the training clips (each without a batch axis), before training."""


class Fusion(nn.Module, ABC):
    """What brings a video and a prompt together."""

    @abstractmethod
    def forward(self, tokens: Tensor, text: Tensor) -> Fused:
        """Tokens (B, N, D) and text (B, Dt), row by row."""


class MosHead(nn.Module):
    """Aspect vectors to five MOS, bounded to [1, 5] by a sigmoid.

    Overall is its own rating, but raters make it of the others: their mean by the prompt's weights, corrected by
    a small network on all of them, which sees when one of them is much worse than the others. (A reading of
    its own from the tokens learned the training clips by heart, and ranked new ones worse.)

    Alignment is read from how well clip and prompt match: learned from every clip with every prompt, where hardly
    anything fits, asked for a clip with its own, where most does; hence the scale and the offset. (A reading of its
    aspect learned the training prompts by heart and ranked clips of new ones by chance.)

    What each kind of fault takes is read too, for training alone: where it is known, it teaches the aspects what to
    look at. A rating says that something is wrong, and not what.

    Args:
        width: channels D of an aspect vector.
        dropout: share of channels dropped while training.
        taken: kinds of fault that are not read; see `Encoder.takes`.
    """

    def __init__(self, width: int, dropout: float, taken: Collection[str] = ()) -> None:
        super().__init__()
        self.readouts = nn.ModuleList(_readout(width, 1, dropout) for _ in READ_ASPECTS)
        each = faults_to_learn(taken)
        self.faults = [place for places in each for place in places]
        self.fault_readouts = nn.ModuleList(_readout(width, len(places), dropout) for places in each)
        self.correction = nn.Sequential(nn.Linear(len(ASPECTS), 16), nn.GELU(), nn.Linear(16, 1))
        self.own_scale = nn.Parameter(torch.ones(1))
        self.own_offset = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        fused: Fused,
        match: Tensor,
        joined: Joined | None = None,
        faults: Tensor | None = None,
        drawn: Drawn | None = None,
    ) -> Tensor:
        """(B, 4) MOS of the aspects.

        Args:
            fused: what a fusion gives.
            match: (B,) logits of the match.
            joined: what joins it.
            faults: see `Encoder.faults`.
            drawn: where the aspects' logits are drawn to.
        """
        read = zip(READ_ASPECTS, self.readouts, strict=True)
        each = {place: readout(fused.aspects[:, place])[:, 0] for place, readout in read}
        each[ALIGNMENT] = match * self.own_scale + self.own_offset
        if joined is not None:
            each[ALIGNMENT] = match * joined.trust * self.own_scale + self.own_offset + joined.known
        logits = torch.stack([each[place] for place in range(len(ASPECTS))], 1)
        if drawn is not None:
            logits = drawn.of(logits)
        return bounded(logits if faults is None else logits - faults)

    def fault_losses(self, fused: Fused) -> Tensor:
        """(B, K) MOS, 0 or more: what each kind takes whose place among `FAULTS` is in `self.faults`, in that order."""
        read = zip(READ_ASPECTS, self.fault_readouts, strict=True)
        return torch.cat([functional.softplus(readout(fused.aspects[:, place])) for place, readout in read], 1)

    def overall(self, parts: Tensor, weights: Tensor) -> Tensor:
        """(B,) MOS of the whole, from (B, 4) MOS of the aspects and (B, 4) weights of the prompt."""
        # Weighed on the scale itself: of logits, one that is sure of itself would outvote the others. Detached: what
        # raters say of the whole does not blur what each aspect learns from its own ratings.
        parts = parts.detach()
        share = ((weights * parts).sum(1) - MOS_MIN) / (MOS_MAX - MOS_MIN)
        return bounded(torch.logit(share, eps=1e-4) + self.correction(parts - MOS_MIN)[:, 0])


def _readout(width: int, values: int, dropout: float) -> nn.Module:
    """An aspect vector (B, D) to some values (B, values)."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Dropout(dropout),
        nn.Linear(width, width // 2),
        nn.GELU(),
        nn.Linear(width // 2, values),
    )


def bounded(logits: Tensor) -> Tensor:
    """Logits to the MOS scale, 1 to 5."""
    return MOS_MIN + (MOS_MAX - MOS_MIN) * torch.sigmoid(logits)


def logits_of(mos: Tensor) -> Tensor:
    """MOS to logits, the inverse of `bounded`, up to a twentieth of the scale from its ends: ratings reach them."""
    return torch.logit((mos - MOS_MIN) / (MOS_MAX - MOS_MIN), eps=0.05)


class Judge(nn.Module):
    """A video encoder, a fusion and the MOS head: what is trained.

    Args:
        encoder: an `Encoder`.
        fusion: a `Fusion` of the same width.
        match: a `fusion.Match` of the encoder's content and the text.
        head: the `MosHead`.
    """

    def __init__(self, encoder: Encoder, fusion: Fusion, match: Match, head: MosHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.fusion = fusion
        self.match = match
        self.head = head

    def see(self, activations: Activations) -> Seen:
        """The trained part of the encoder."""
        seen: Seen = self.encoder.see(activations)
        return seen

    def judge(
        self,
        seen: Seen,
        text: Tensor,
        *,
        joined: Joined | None = None,
        drawn: Drawn | None = None,
        taught: Tensor | None = None,
    ) -> tuple[Tensor, Fused]:
        """Score what was seen of clips against (B, Dt) prompt embeddings, row by row.

        Args:
            seen: of the clips.
            text: of their prompts.
            joined: how the match is joined with what is known without training; None, it stands alone.
            drawn: where what was learned is drawn to; None, nowhere.
            taught: (B,) bool, for training: rows whose match learns from what is known to fit, and not from ratings.
        Returns:
            (B, 4) MOS of the aspects, and what they were read from, with their weights in Overall.
        """
        fused: Fused = self.fusion(seen.tokens, text)
        match = self.match(seen.content, text)
        if taught is not None:
            match = torch.where(taught, match.detach(), match)
        return self.head(fused, match, joined, seen.faults, drawn), fused

    def alignment_of_all_pairs(self, seen: Seen, text: Tensor) -> Tensor:
        """How well every clip fits every prompt, B clips and text (P, Dt) to (B, P) MOS, without the own scale."""
        return bounded(self.match.all_pairs(seen.content, text))


class QualityModel(nn.Module):
    """Judges of one kind, what an image network knows anyway, and forests; mixed and calibrated.

    Args:
        judges: one or more, whose encoders share the frozen stem.
        text_width: channels Dt of a prompt embedding.
        text: the sentence encoder, if it is trained too (`text.TextTower`).
        forests: (trees, most nodes) of the forest of each of `READ_ASPECTS`, where these have been fitted.
    """

    mixture: Tensor
    bridge_gain: Tensor
    doubt: Tensor
    usual: Tensor

    def __init__(
        self,
        judges: Iterable[Judge],
        text_width: int,
        text: nn.Module | None = None,
        forests: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.text = text
        self.judges = cast("list[Judge]", nn.ModuleList(judges))
        self.bridge = Bridge(text_width) if self.encoder.sees_classes else None
        self.hold_forests(forests)
        # The judges' shares and the forests' in each aspect.
        mixture = torch.zeros(len(self.judges) + 1, len(ASPECTS))
        mixture[:-1] = 1 / len(self.judges)
        self.register_buffer("mixture", mixture)
        self.calibration = Calibration(len(DIMENSIONS))
        self.familiarity = Familiarity(self.encoder.familiar_by)
        self.prompts = Familiarity((slice(0, text_width),))
        # Nothing is known of distance and bridge before they are measured: until then the match stands alone.
        self.register_buffer("bridge_gain", torch.zeros(1))
        self.register_buffer("doubt", torch.zeros(1))
        self.register_buffer("usual", torch.zeros(len(ASPECTS)))

    def hold_forests(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Have empty forests of these sizes, (trees, most nodes) each, for tensors to fill."""
        self.forests = cast("list[Forest]", nn.ModuleList(Forest(*size) for size in sizes))

    @property
    def encoder(self) -> Encoder:
        """The first judge's."""
        return self.judges[0].encoder

    def forward(self, frames: Tensor, text: Tensor) -> Prediction:
        """Score clips.

        Args:
            frames: (B, 3, T, H, W) float in [0, 1], RGB.
            text: (B, Dt) prompt embeddings.
        """
        return self.from_stem(self.stem(frames), text)

    def stem(self, frames: Tensor) -> Activations:
        """The frozen part of the encoder, without a gradient."""
        with torch.no_grad():
            return self.encoder.stem(frames)

    def embed(self, prompts: list[str], cached: Tensor) -> Tensor:
        """(B, Dt) embeddings of prompts: the cached ones, or those of the sentence encoder, where it is trained."""
        if self.text is None:
            return cached
        embeddings: Tensor = self.text(prompts)
        return embeddings

    def joined(self, activations: Activations, text: Tensor, distance: Tensor) -> Joined | None:
        """How match and bridge are joined for clips at a distance (B,), each with its prompt (B, Dt)."""
        if self.bridge is None:
            return None
        trust = 1 - self.doubt * _come(torch.maximum(distance, self.prompts(text)), DOUBTED)
        known = self.bridge(activations["classes"], text).diagonal()
        return Joined(trust, known * (trust * self.bridge_gain + (1 - trust) * BRIDGE_ALONE))

    def drawn(self, distance: Tensor) -> Drawn:
        """Where what judges learned of clips at a distance (B,) is drawn to."""
        well = distance.new_tensor([aspect in MEASURED_WELL for aspect in ASPECTS])
        return Drawn(1 - (self.doubt * _come(distance, STRANGE)).unsqueeze(1) * well, self.usual)

    def judged(self, activations: Activations, text: Tensor) -> Judged:
        """What judges and forests say of clips, from their stem's activations and (B, Dt) prompt embeddings."""
        seen = [judge.see(activations) for judge in self.judges]
        distance = self.familiarity(seen[0].content)
        joined = self.joined(activations, text, distance)
        # Without what is measured, what was learned is all there is.
        drawn = None if seen[0].faults is None else self.drawn(distance)
        each = [
            judge.judge(one, text, joined=joined, drawn=drawn) for judge, one in zip(self.judges, seen, strict=True)
        ]
        aspects, weights = torch.stack([mos for mos, _ in each]), torch.stack([fused.weights for _, fused in each])
        return Judged(aspects, weights, self.forest(activations), seen[0], distance)

    def from_stem(self, activations: Activations, text: Tensor) -> Prediction:
        """Score clips from their stem's activations and (B, Dt) prompt embeddings."""
        judged = self.judged(activations, text)
        aspects = self.mixed(judged.aspects, judged.forest)
        overall = [
            judge.head.overall(aspects, weights) for judge, weights in zip(self.judges, judged.weights, strict=True)
        ]
        mos = torch.cat((aspects, torch.stack(overall).mean(0).unsqueeze(1)), 1)
        return Prediction(
            mos=self.calibration(mos.float()),
            aspect_weights=judged.weights.mean(0),
            auxiliary=judged.seen.auxiliary,
            distance=judged.distance,
        )

    def forest(self, activations: Activations) -> Tensor | None:
        """(B, 4) MOS by the forests, NaN where they say nothing; None where there are none."""
        features = self.encoder.measured(activations) if self.forests else None
        if features is None:
            return None
        found = features[0].new_full((len(features[0]), len(ASPECTS)), torch.nan)
        for forest, given, place in zip(self.forests, features, READ_ASPECTS, strict=True):
            found[:, place] = forest(given)
        faults = self.encoder.faults(activations)
        return bounded(found if faults is None else found - faults)

    def mixed(self, judged: Tensor, forest: Tensor | None) -> Tensor:
        """(judges, B, 4) and (B, 4) MOS of the aspects to one (B, 4)."""
        if forest is None:
            return (self.mixture[:-1].unsqueeze(1) * judged).sum(0)
        members = torch.cat((judged, forest.nan_to_num().unsqueeze(0)))
        return (self.mixture.unsqueeze(1) * members).sum(0)


def _come(distance: Tensor, edges: tuple[float, float]) -> Tensor:
    """How far distances (B,) have come from one to the other, 0 to 1; 1 where they are no number."""
    return ((distance - edges[0]) / (edges[1] - edges[0])).clamp(0, 1).nan_to_num(1.0)


class Calibration(nn.Module):
    """MOS to MOS, rising: an S-curve through the scale, per dimension; at first the identity.

    Rank correlations stay as they are. What it mends is the level and the spread, on clips that training has not seen.

    Args:
        dimensions: K.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(dimensions))
        self.register_buffer("offset", torch.zeros(dimensions))

    def reset(self) -> None:
        """Back to the identity."""
        self.slope.fill_(1.0)
        self.offset.zero_()

    def forward(self, mos: Tensor) -> Tensor:
        """(B, K) to (B, K), between 1 and 5."""
        share = (mos - MOS_MIN) / (MOS_MAX - MOS_MIN)
        return bounded(torch.logit(share, eps=1e-4) * self.slope + self.offset)
