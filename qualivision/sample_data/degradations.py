"""The kinds of faults: how each is done to a clip, how much of it can be seen, and what that takes from a MOS.

Owns `Look` (everything that makes a frame what it is) and the curves from visible effect to MOS loss. The
nominal severity only says how hard a fault tries: blur on a plain sky or a freeze of slow motion is hardly visible, so
the loss goes by what is measured on the clip's own frames. Compression is measured after encoding (`clips.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

from qualivision.labels import FAULTS
from qualivision.sample_data.content import COLOURS, DRAWN_SUBJECTS, PHOTO_SUBJECTS
from qualivision.sample_data.pictures import SPRITE_MARGIN, SPRITE_SIDE, subject_picture
from qualivision.sample_data.rendering import FRAMES, HEIGHT, WIDTH, Shot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]
    Integers = npt.NDArray[np.integer]

# One of them leaves nothing for another to do, or is done with the same means: a coder takes noise away, which would be
# measured as what it did to the picture, and be seen as next to nothing.
_ALIKE: Final = (
    {"blur", "low_resolution", "smooth"},
    {"noise", "blocking", "compression"},
    {"underexposure", "overexposure"},
    {"freeze", "judder", "shuffle", "jump"},
    {"melting", "morph"},
)
# Visible effect -> loss in MOS, as points of a curve. The unit of the effect is that of the kind's measure below. With
# these losses MOS spread wider than raters' do on videos of real generators, for more of the scale to be learned: by
# 1.03 (Traditional), 1.05 (Aesthetic) and .99 (Temporal) in the test split, by .67, .87 and .88 in TaobaoVD-GC's 4000.
_CURVES: Final[Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "blur": ((0.08, 0.3, 0.5, 0.7, 0.85), (0.0, 0.72, 1.52, 2.4, 3.04)),
    "low_resolution": ((0.08, 0.3, 0.5, 0.7, 0.85), (0.0, 0.72, 1.52, 2.4, 3.04)),
    "smooth": ((0.05, 0.2, 0.36, 0.52, 0.68), (0.0, 0.4, 0.96, 1.52, 2.08)),
    "noise": ((2.0, 8.0, 18.0, 32.0, 48.0), (0.0, 0.64, 1.52, 2.4, 3.04)),
    "blocking": ((0.005, 0.06, 0.18, 0.35, 0.55), (0.0, 0.64, 1.52, 2.32, 2.96)),
    "compression": ((0.04, 0.15, 0.3, 0.5, 0.7), (0.0, 0.72, 1.52, 2.4, 3.04)),
    "underexposure": ((0.02, 0.16, 0.36, 0.58, 0.8), (0.0, 0.64, 1.44, 2.24, 2.96)),
    "overexposure": ((0.05, 0.3, 0.6, 0.9, 1.2), (0.0, 0.72, 1.52, 2.32, 2.88)),
    "freeze": ((0.05, 0.25, 0.5, 0.75, 0.9), (0.0, 0.88, 1.68, 2.48, 3.04)),
    "judder": ((0.2, 0.8, 1.8, 3.0, 4.5), (0.0, 0.72, 1.6, 2.4, 2.96)),
    "jitter": ((0.3, 1.5, 3.5, 6.0, 9.0), (0.0, 0.72, 1.6, 2.48, 3.04)),
    "wobble": ((0.3, 1.5, 3.2, 5.5, 8.0), (0.0, 0.72, 1.6, 2.48, 2.96)),
    "flicker": ((1.0, 6.0, 14.0, 26.0, 40.0), (0.0, 0.72, 1.6, 2.48, 3.04)),
    "melting": ((1.5, 6.0, 13.0, 20.0, 28.0), (0.0, 0.56, 1.2, 1.84, 2.4)),
    "morph": ((0.5, 3.0, 7.0, 12.0, 18.0), (0.0, 0.4, 0.88, 1.36, 1.76)),
    "shuffle": ((0.2, 0.8, 1.8, 3.0, 4.5), (0.0, 0.8, 1.68, 2.48, 3.04)),
    "jump": ((0.3, 1.0, 2.2, 3.6, 5.5), (0.0, 0.72, 1.6, 2.4, 2.96)),
    "washed_out": ((0.05, 0.25, 0.45, 0.65, 0.8), (0.0, 0.72, 1.52, 2.4, 2.96)),
    "palette_clash": ((4.0, 18.0, 40.0, 62.0, 85.0), (0.0, 0.72, 1.52, 2.32, 2.88)),
    "clutter": ((0.01, 0.05, 0.12, 0.2, 0.3), (0.0, 0.72, 1.6, 2.4, 2.96)),
    "off_frame": ((0.03, 0.14, 0.26, 0.38, 0.5), (0.0, 0.64, 1.44, 2.24, 2.8)),
}
_SAMPLES: Final = (6, 31, 57)  # frames on which effects are measured
_ON_TOP: Final = 0.5  # of clips that shake or flicker: they do so while they stand still too
_PLAINLY_STILL: Final = 4  # the higher, the more of a clip must stand still to be seen without any motion
_BLOCK: Final = 8
_NOISE_ROOM: Final = 64  # by how much the noise picture is larger than a frame: each frame sees another part of it
_CLASHES: Final = (
    ((10, 70, 20), (255, 70, 220)),
    ((70, 0, 110), (190, 255, 40)),
    ((0, 60, 140), (255, 150, 0)),
    ((120, 0, 20), (40, 255, 220)),
)


@dataclass(frozen=True)
class Look:
    """Everything that makes a clip's frames: a shot, and what is done to it in time and on the screen.

    `order`: the shot's moment that each frame shows. `offsets` (FRAMES, 2): jitter in pixels. `gains` (FRAMES,):
    flicker. Both by moment, so that what freezes stands still in every way, or where `on_top`, by frame. `wobble` and
    `melt`: amplitude in frame and sprite pixels. `noise`: int16 picture, larger than a frame. `turns_into`: what the
    subject turns into and back, and `morph` (FRAMES,) how far it has.
    """

    shot: Shot
    shrink: float = 1.0
    blocking: float = 0.0
    noise: Integers | None = None
    crf: int = 23
    order: Integers = field(default_factory=lambda: np.arange(FRAMES))
    offsets: Floats = field(default_factory=lambda: np.zeros((FRAMES, 2)))
    gains: Floats = field(default_factory=lambda: np.ones(FRAMES))
    on_top: bool = False
    wobble: float = 0.0
    melt: float = 0.0
    turns_into: Image.Image | None = None
    morph: Floats = field(default_factory=lambda: np.zeros(FRAMES))

    def frame(self, place: int) -> Image.Image:
        """The frame at a place of the clip, RGB, WIDTH x HEIGHT."""
        moment = int(self.order[place])
        sprite = None
        if self.turns_into is not None:
            sprite = Image.blend(self.shot.sprite, self.turns_into, float(self.morph[moment]))
        elif self.melt:
            sprite = _melted(self.shot.sprite, self.melt, moment)
        done = place if self.on_top else moment
        offset = (float(self.offsets[done, 0]), float(self.offsets[done, 1]))
        frame = self.shot.frame(moment, shrink=self.shrink, offset=offset, sprite=sprite)
        if frame.width != WIDTH:
            frame = frame.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        if self.wobble:
            frame = _wobbled(frame, self.wobble, moment)
        if self.blocking:
            coarse = frame.reduce(_BLOCK).resize(frame.size, Image.Resampling.NEAREST)
            frame = Image.blend(frame, coarse, self.blocking)
        if self.noise is not None:
            frame = _noisy(frame, self.noise, moment)
        gain = float(self.gains[done])
        return frame if gain == 1 else frame.point([min(255, round(v * gain)) for v in range(256)] * 3)


@dataclass(frozen=True)
class Outcome:
    """What faults made of a look: the result, each kind's measured effect, the loss per dimension's faults."""

    look: Look
    effects: dict[str, float]
    losses: dict[str, list[float]]


def degrade(rng: np.random.Generator, shot: Shot, faults: Mapping[str, float]) -> Outcome:
    """Do faults to a shot and measure what can be seen of each.

    Args:
        rng: draws what a severity leaves open.
        shot: already made with its off-frame fault, if it has one.
        faults: kind -> nominal severity, 0 to 1.
    """
    outcome = Outcome(Look(shot), {}, {"Traditional": [], "Aesthetic": [], "Temporal": []})
    for kind in FAULTS:  # off-frame was done when the shot was made; compression is, when the clip is encoded
        if kind not in faults:
            continue
        before = outcome.look
        if kind in _ON_SCREEN:
            after = _ON_SCREEN[kind](rng, before, faults[kind])
            effect = _MEASURES[kind](_sampled(before), _sampled(after))
        elif kind in _MEASURED_AS_DONE:
            after, effect = _MEASURED_AS_DONE[kind](rng, before, faults[kind])
        elif kind == "compression":
            outcome = replace(outcome, look=replace(before, crf=round(30 + 21 * faults[kind])))
            continue
        else:
            after, effect = before, float(1 - shot.shown_share().mean())
        outcome.effects[kind] = effect
        outcome.losses[FAULTS[kind]].append(loss_of(kind, effect))
        outcome = replace(outcome, look=after)
    return outcome


def are_alike(kind: str, other: str) -> bool:
    """Whether no clip has both faults."""
    return kind == other or any({kind, other} <= group for group in _ALIKE)


def loss_of(kind: str, effect: float) -> float:
    """What a visible effect of a kind takes from its dimension, in MOS."""
    return float(np.interp(effect, *_CURVES[kind]))


def structural_loss(before: Floats, after: Floats) -> float:
    """1 - SSIM of two luma pictures (H, W), 0 to 255; Wang et al., IEEE TIP 2004, with a 7 x 7 box window."""
    blur = lambda picture: ndimage.uniform_filter(picture, 7)[::2, ::2]  # noqa: E731
    mean_a, mean_b = blur(before), blur(after)
    var_a, var_b = blur(before**2) - mean_a**2, blur(after**2) - mean_b**2
    covariance = blur(before * after) - mean_a * mean_b
    small, tiny = 6.5, 58.5
    similarity = ((2 * mean_a * mean_b + small) * (2 * covariance + tiny)) / (
        (mean_a**2 + mean_b**2 + small) * (var_a + var_b + tiny)
    )
    return float(1 - similarity.mean())


def luma(picture: Image.Image) -> Floats:
    """(H, W) float32, 0 to 255."""
    return np.asarray(picture.convert("L"), np.float32)


# --- on the screen ---------------------------------------------------------------------------------------------------


def _blur(rng: np.random.Generator, look: Look, severity: float) -> Look:
    radius = 0.6 + 4.6 * severity  # frame pixels
    zoom = float(look.shot.windows[0, 2]) / WIDTH
    grain = (SPRITE_SIDE - 2 * SPRITE_MARGIN) / float(look.shot.sizes.mean())
    canvas = look.shot.canvas.filter(ImageFilter.GaussianBlur(radius * zoom))
    sprite = look.shot.sprite.filter(ImageFilter.GaussianBlur(radius * grain))
    return replace(look, shot=look.shot.dressed(canvas, sprite))


def _low_resolution(rng: np.random.Generator, look: Look, severity: float) -> Look:
    return replace(look, shrink=1.3 + 5.2 * severity)


def _smooth(rng: np.random.Generator, look: Look, severity: float) -> Look:
    # Texture is gone and edges stay, as of a generator that paints skin like plastic.
    return _repainted(look, lambda picture: _edge_preserving(picture, (4 + 62 * severity) ** 2))


def _noise(rng: np.random.Generator, look: Look, severity: float) -> Look:
    # Grain of two pixels: finer grain would be gone when a model's frames are made smaller.
    shape = (HEIGHT + _NOISE_ROOM) // 2, (WIDTH + _NOISE_ROOM) // 2
    grey = rng.standard_normal((*shape, 1), dtype=np.float32)
    tint = rng.standard_normal((*shape, 3), dtype=np.float32)
    noise = ((3 + 46 * severity) * (0.85 * grey + 0.5 * tint)).repeat(2, axis=0).repeat(2, axis=1)
    return replace(look, noise=noise.astype(np.int16))


def _blocking(rng: np.random.Generator, look: Look, severity: float) -> Look:
    return replace(look, blocking=0.12 + 0.86 * severity)


def _underexposure(rng: np.random.Generator, look: Look, severity: float) -> Look:
    return _through_table(look, lambda v: v * (1 - 0.78 * severity))


def _overexposure(rng: np.random.Generator, look: Look, severity: float) -> Look:
    return _through_table(look, lambda v: v * (1 + severity) + 30 * severity)


def _through_table(look: Look, curve: Callable[[float], float]) -> Look:
    table = [min(255, max(0, round(curve(v)))) for v in range(256)]
    return _repainted(look, lambda picture: picture.point(table * 3))


def _repainted(look: Look, paint: Callable[[Image.Image], Image.Image]) -> Look:
    """Change the colours of canvas and sprite; the sprite's alpha stays."""
    alpha = look.shot.sprite.getchannel("A")
    sprite = paint(look.shot.sprite.convert("RGB"))
    sprite.putalpha(alpha)
    return replace(look, shot=look.shot.dressed(paint(look.shot.canvas), sprite))


def _washed_out(rng: np.random.Generator, look: Look, severity: float) -> Look:
    level, kept = 172, 1 - 0.78 * severity
    table = [round(level + (v - level) * kept) for v in range(256)] * 3

    def paint(picture: Image.Image) -> Image.Image:
        return Image.blend(picture, picture.convert("L").convert("RGB"), 0.7 * severity).point(table)

    return _repainted(look, paint)


def _palette_clash(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    # Only the scene: the subject keeps the colour that the prompt asks for.
    dark, light = _CLASHES[int(rng.integers(len(_CLASHES)))]
    garish = ImageOps.colorize(ImageOps.autocontrast(look.shot.canvas.convert("L"), cutoff=2), dark, light)
    share = 0.08 + 0.87 * severity
    canvas = Image.blend(look.shot.canvas, garish, share)
    # How garish it is, and not how far from what it was: nobody has seen that.
    return replace(look, shot=look.shot.dressed(canvas, look.shot.sprite)), share * _chroma(garish)


def _clutter(rng: np.random.Generator, look: Look, severity: float) -> Look:
    canvas = look.shot.canvas.copy()
    draw = ImageDraw.Draw(canvas)
    for _ in range(round(6 + 90 * severity)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        size = rng.uniform(14, 50)
        colour = tuple(int(v) for v in rng.integers(0, 2, 3) * 195 + rng.integers(0, 60, 3))
        form = int(rng.integers(3))
        if form == 0:
            draw.text((x, y), "".join(chr(int(v)) for v in rng.integers(65, 91, 4)), fill=colour, font_size=size)
        elif form == 1:
            zigzag = [(x + size * k / 2, y + size * (k % 2)) for k in range(5)]
            draw.line(zigzag, fill=colour, width=6)
        else:
            for k in range(3):
                draw.rectangle((x, y + size * k / 2, x + size, y + size * k / 2 + size / 4), fill=colour)
    return replace(look, shot=look.shot.dressed(canvas, look.shot.sprite))


def _edge_preserving(picture: Image.Image, variance: float) -> Image.Image:
    """Smooth what varies less than this (0 to 255, squared): the guided filter of He, Sun and Tang, ECCV 2010."""
    pixels = np.asarray(picture, np.float32)
    mean = lambda values: ndimage.uniform_filter(values, (9, 9, 1))  # noqa: E731
    level = mean(pixels)
    spread = mean(pixels**2) - level**2
    kept = spread / (spread + variance)
    smooth = mean(kept) * pixels + mean(level * (1 - kept))
    return Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8), "RGB")


def _noisy(frame: Image.Image, noise: Integers, moment: int) -> Image.Image:
    # Two steps that have no common period: no part of the noise comes back within a clip.
    top, left = (moment * 23) % _NOISE_ROOM, (moment * 37) % _NOISE_ROOM
    sum_ = noise[top : top + HEIGHT, left : left + WIDTH] + np.asarray(frame)
    return Image.fromarray(np.clip(sum_, 0, 255).astype(np.uint8))


# --- in time: the change, and its visible effect ---------------------------------------------------------------------


def _freeze(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    held = min(FRAMES, round(FRAMES * (0.12 + 1.1 * severity)))  # all of it too: a still picture is no video
    start = int(rng.integers(0, FRAMES - held + 1))
    order = np.arange(FRAMES)
    order[start : start + held] = start
    still = float((np.diff(order) == 0).mean())
    # That some of a clip stands still is seen by what moved before; that nearly all of it does, by anyone.
    seen = _motion_seen(look)
    return replace(look, order=order), still * (seen + (1 - seen) * still**_PLAINLY_STILL)


def _judder(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    order, longest = np.arange(FRAMES), 2 + 9 * severity
    place = 0
    while place < FRAMES:
        hold = max(1, round(rng.uniform(0.5, 1.0) * longest))
        order[place : place + hold] = place
        place += hold
    return replace(look, order=order), _displacement_in_time(order) * _motion_seen(look)


def _shuffle(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    order, window = np.arange(FRAMES), round(3 + 9 * severity)
    for start in range(0, FRAMES, window):
        if rng.random() < 0.35 + 0.65 * severity:
            order[start : start + window] = start + rng.permutation(len(order[start : start + window]))
    return replace(look, order=order), _displacement_in_time(order) * _motion_seen(look)


def _jitter(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    offsets = rng.normal(0, 0.35 + 4.4 * severity, (FRAMES, 2))
    on_top = bool(rng.random() < _ON_TOP)
    steps = np.hypot(*np.diff(offsets if on_top else offsets[look.order], axis=0).T)
    return replace(look, offsets=offsets, on_top=on_top), _mean_of_what_moves(steps) * _texture_seen(look)


def _wobble(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    amplitude = 0.5 + 7.0 * severity
    return replace(look, wobble=amplitude), amplitude * _texture_seen(look)


def _flicker(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    gains = np.exp(rng.normal(0, 0.015 + 0.24 * severity, FRAMES))
    level = np.mean([luma(look.frame(place)).mean() for place in _SAMPLES])
    # Of the change in mean brightness; the eye takes it relative to how bright the clip is.
    # Where it shakes too, as that is.
    on_top = bool(rng.random() < _ON_TOP) if not look.offsets.any() else look.on_top
    steps = np.abs(np.diff(gains if on_top else gains[look.order]))
    return replace(look, gains=gains, on_top=on_top), _mean_of_what_moves(steps) * float(0.5 * level + 50)


def _melting(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    amplitude = 6 + 40 * severity
    scale = float(look.shot.sizes.mean()) / (SPRITE_SIDE - 2 * SPRITE_MARGIN)
    return replace(look, melt=amplitude), amplitude * scale * float(look.shot.shown_share().mean())


def _morph(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    subjects: list[tuple[str, str | None]] = [(subject, None) for subject in PHOTO_SUBJECTS]
    subjects += [(subject, COLOURS[int(rng.integers(len(COLOURS)))]) for subject in DRAWN_SUBJECTS]
    other = subject_picture(*subjects[int(rng.integers(len(subjects)))])
    cycles = rng.uniform(1.0, 2.5)
    wave = 0.5 - 0.5 * np.cos(2 * math.pi * (cycles * np.arange(FRAMES) / FRAMES))
    far = 0.08 + 0.82 * severity
    scale = (float(look.shot.sizes.mean()) / (SPRITE_SIDE - 2 * SPRITE_MARGIN)) ** 2
    before, after = (np.asarray(sprite, np.float32) for sprite in (look.shot.sprite, other))
    differs = np.abs(after[..., :3] * after[..., 3:] - before[..., :3] * before[..., 3:]).mean() / 255
    effect = far * cycles * float(differs) * scale * float(look.shot.shown_share().mean())
    return replace(look, turns_into=other, morph=far * wave), effect


def _jump(rng: np.random.Generator, look: Look, severity: float) -> tuple[Look, float]:
    cuts = rng.choice(np.arange(6, FRAMES - 4), 1 + round(4 * severity), replace=False)
    steps = np.ones(FRAMES, int)
    for cut in cuts:
        far = int(rng.integers(4, 8 + round(20 * severity)))
        steps[cut] = far if rng.random() < 0.5 else -far
    # Reflected at both ends: whatever the jumps, the clip is as long as before.
    order = np.abs(np.cumsum(steps) - 1)
    order = np.abs((order + FRAMES - 1) % (2 * (FRAMES - 1)) - (FRAMES - 1))
    seen = np.minimum(np.abs(np.diff(order)) - 1, 10) / 10
    return replace(look, order=order), float(seen[seen > 0].sum()) * _motion_seen(look)


def _mean_of_what_moves(steps: Floats) -> float:
    """Of what changes from frame to frame: that a clip freezes for a while does not make the rest of it calmer."""
    return float(steps[steps > 0].mean()) if steps.any() else 0.0


def _displacement_in_time(order: Integers) -> float:
    """By how many frames the shown moments are off, on average."""
    return float(np.abs(order - np.arange(FRAMES)).mean())


def _motion_seen(look: Look) -> float:
    """How visible motion is: near 1 where frames differ well, towards 0 for a blurred or dark clip."""
    changes = [
        np.abs(luma(look.shot.frame(place + 2, shrink=2)) - luma(look.shot.frame(place, shrink=2))).mean()
        for place in _SAMPLES
    ]
    return _saturating(float(np.mean(changes)), 7.0)


def _texture_seen(look: Look) -> float:
    """How visible it is that picture parts move: near 1 on texture, towards 0 on plain areas."""
    return _saturating(float(np.mean([_edges(luma(look.shot.frame(place, shrink=2))) for place in _SAMPLES])), 3.0)


def _saturating(value: float, half: float) -> float:
    return 1.15 * value / (value + 0.4 * half)


def _melted(sprite: Image.Image, amplitude: float, moment: int) -> Image.Image:
    """The sprite sagging and bulging, more and more over the clip."""
    cells = 5
    step = SPRITE_SIDE / cells
    grow = amplitude * (0.25 + 0.75 * moment / FRAMES)

    def source(column: int, row: int) -> tuple[float, float]:
        x, y = column * step, row * step
        if column in (0, cells) or row in (0, cells):
            return x, y
        turn = 0.5 * moment
        return (
            x + grow * math.sin(turn + 1.9 * row + 0.7 * column),
            y + grow * math.cos(0.8 * turn + 1.3 * column + 2.1 * row),
        )

    return _meshed(sprite, cells, cells, source)


def _wobbled(frame: Image.Image, amplitude: float, moment: int) -> Image.Image:
    """The frame seen through moving water."""
    columns, rows = 10, 6

    def source(column: int, row: int) -> tuple[float, float]:
        x, y = column * WIDTH / columns, row * HEIGHT / rows
        x += amplitude * math.sin(0.75 * moment + 1.6 * row)
        y += 0.7 * amplitude * math.sin(0.6 * moment + 1.4 * column)
        return min(max(x, 0), WIDTH), min(max(y, 0), HEIGHT)

    return _meshed(frame, columns, rows, source)


def _meshed(
    picture: Image.Image, columns: int, rows: int, source: Callable[[int, int], tuple[float, float]]
) -> Image.Image:
    """Warp a picture: each point of a grid shows what lies at `source(column, row)`."""
    across = [round(picture.width * k / columns) for k in range(columns + 1)]
    down = [round(picture.height * k / rows) for k in range(rows + 1)]
    mesh = []
    for column in range(columns):
        for row in range(rows):
            target = (across[column], down[row], across[column + 1], down[row + 1])
            corners = ((column, row), (column, row + 1), (column + 1, row + 1), (column + 1, row))
            mesh.append((target, tuple(v for corner in corners for v in source(*corner))))
    return picture.transform(picture.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


# --- measures of what changed on the screen --------------------------------------------------------------------------


def _sampled(look: Look) -> list[Image.Image]:
    return [look.frame(place) for place in _SAMPLES]


def _edges(picture: Floats) -> float:
    return float(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())


def _sharpness_lost(before: list[Image.Image], after: list[Image.Image]) -> float:
    return 1 - sum(_edges(luma(p)) for p in after) / max(1e-6, sum(_edges(luma(p)) for p in before))


def _structure_lost(before: list[Image.Image], after: list[Image.Image]) -> float:
    return float(np.mean([structural_loss(luma(a), luma(b)) for a, b in zip(before, after, strict=True)]))


def _luma_added(before: list[Image.Image], after: list[Image.Image]) -> float:
    """Root mean square change of luma."""
    changes = [((luma(b) - luma(a)) ** 2).mean() for a, b in zip(before, after, strict=True)]
    return float(np.sqrt(np.mean(changes)))


def _light_lost(before: list[Image.Image], after: list[Image.Image]) -> float:
    """Share of the brightness that is gone, and worth more where little is left."""
    lit = float(np.mean([luma(p).mean() for p in before])), float(np.mean([luma(p).mean() for p in after]))
    return max(0.0, 1 - lit[1] / max(1e-6, lit[0])) * max(0.2, 1.2 - lit[1] / 140)


def _light_added(before: list[Image.Image], after: list[Image.Image]) -> float:
    """Share of pixels that are blown out and were not, and half the change of luma: a night scene only turns to day."""
    blown = [float(np.mean([(luma(p) > 238).mean() for p in each])) for each in (before, after)]
    return blown[1] - blown[0] + 0.5 * _luma_added(before, after) / 80


def _spread_lost(before: list[Image.Image], after: list[Image.Image]) -> float:
    """Share of the deviation over pixels and colours that is gone."""
    spread = [np.asarray(p, np.float32).std() for p in before], [np.asarray(p, np.float32).std() for p in after]
    return float(1 - np.mean(spread[1]) / max(1e-6, float(np.mean(spread[0]))))


def _chroma(picture: Image.Image) -> float:
    """Mean distance from grey: red against green and yellow against blue, of 0 to 255 each."""
    red, green, blue = np.moveaxis(np.asarray(picture, np.float32), -1, 0)
    return float(np.hypot(red - green, 0.5 * (red + green) - blue).mean())


def _area_changed(before: list[Image.Image], after: list[Image.Image]) -> float:
    """Share of pixels that clearly changed."""
    changed = [_difference(a, b).max(axis=2) > 30 for a, b in zip(before, after, strict=True)]
    return float(np.mean(changed))


def _difference(before: Image.Image, after: Image.Image) -> Integers:
    return np.abs(np.asarray(after, np.int16) - np.asarray(before, np.int16))


_ON_SCREEN: Final[Mapping[str, Callable[[np.random.Generator, Look, float], Look]]] = {
    "blur": _blur,
    "low_resolution": _low_resolution,
    "smooth": _smooth,
    "noise": _noise,
    "blocking": _blocking,
    "underexposure": _underexposure,
    "overexposure": _overexposure,
    "washed_out": _washed_out,
    "clutter": _clutter,
}
_MEASURED_AS_DONE: Final[Mapping[str, Callable[[np.random.Generator, Look, float], tuple[Look, float]]]] = {
    "palette_clash": _palette_clash,
    "freeze": _freeze,
    "judder": _judder,
    "jitter": _jitter,
    "wobble": _wobble,
    "flicker": _flicker,
    "melting": _melting,
    "morph": _morph,
    "shuffle": _shuffle,
    "jump": _jump,
}
_MEASURES: Final[Mapping[str, Callable[[list[Image.Image], list[Image.Image]], float]]] = {
    "blur": _sharpness_lost,
    "low_resolution": _sharpness_lost,
    "smooth": _sharpness_lost,
    "noise": _luma_added,
    "blocking": _structure_lost,
    "underexposure": _light_lost,
    "overexposure": _light_added,
    "washed_out": _spread_lost,
    "clutter": _area_changed,
}
