"""A shot and its frames: a subject that moves before a scene which a drifting camera looks at.

Owns geometry: camera, motion paths, where the subject is in a frame. A shot is what a clip would be without faults in
time and on the screen; faults of its pictures (blur, colour) are done to the shot's canvas and sprite, which is much
cheaper than to 64 frames and looks the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps

from qualivision.sample_data.pictures import SPRITE_MARGIN, SPRITE_SIDE, scene_picture, subject_picture

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]

WIDTH: Final = 320
HEIGHT: Final = 192
FRAMES: Final = 64
_PHASES: Final = 4  # subject positions per pixel: whole pixels would look like judder
_CAMERA_MARGIN: Final = 14.0  # canvas pixels kept free at the edge, for jitter


@dataclass(frozen=True)
class Shot:
    """A canvas, a sprite, and for each of `FRAMES` frames where the camera and the subject are.

    `windows` (FRAMES, 4): the camera's view as left, top, width, height in canvas pixels. `centres` (FRAMES, 2): the
    subject's centre x, y in frame pixels. `sizes` (FRAMES,): the subject's side in frame pixels. `angles` (FRAMES,):
    its rotation in radians.
    """

    canvas: Image.Image
    sprite: Image.Image
    windows: Floats
    centres: Floats
    sizes: Floats
    angles: Floats
    _placed: dict[tuple[int, int, int], Image.Image] = field(default_factory=dict, compare=False)

    def dressed(self, canvas: Image.Image, sprite: Image.Image) -> Shot:
        """The same shot with other pictures."""
        return replace(self, canvas=canvas, sprite=sprite, _placed={})

    def frame(
        self,
        moment: int,
        *,
        shrink: float = 1.0,
        offset: tuple[float, float] = (0.0, 0.0),
        sprite: Image.Image | None = None,
    ) -> Image.Image:
        """The frame at a moment, RGB.

        Args:
            moment: 0 to FRAMES - 1.
            shrink: how many times smaller than WIDTH x HEIGHT the frame is rendered, 1 or more.
            offset: by how many frame pixels the camera is off its path (jitter).
            sprite: shown in place of the shot's own.
        """
        size = (max(16, round(WIDTH / shrink)), max(10, round(HEIGHT / shrink)))
        left, top, width, height = self.windows[moment]
        left = min(max(left + offset[0] * width / WIDTH, 0), self.canvas.width - width)
        top = min(max(top + offset[1] * height / HEIGHT, 0), self.canvas.height - height)
        box = (left, top, left + width, top + height)
        frame = self.canvas.resize(size, Image.Resampling.BILINEAR, box=box)
        x, y = self.centres[moment]
        self._paste(
            frame,
            ((x - offset[0]) * size[0] / WIDTH, (y - offset[1]) * size[1] / HEIGHT),
            self.sizes[moment] * size[0] / WIDTH,
            float(self.angles[moment]),
            sprite,
        )
        return frame

    def _paste(
        self,
        frame: Image.Image,
        centre: tuple[float, float],
        size: float,
        angle: float,
        sprite: Image.Image | None,
    ) -> None:
        side = max(4, round(size * SPRITE_SIDE / (SPRITE_SIDE - 2 * SPRITE_MARGIN)))
        left, top = centre[0] - side / 2, centre[1] - side / 2
        x, y = math.floor(left), math.floor(top)
        phase = (int((left - x) * _PHASES), int((top - y) * _PHASES))
        if sprite is not None or angle:
            picture = _shifted(sprite or self.sprite, side, phase, angle)
        else:
            key = (side, *phase)
            if key not in self._placed:
                self._placed[key] = _shifted(self.sprite, side, phase, 0.0)
            picture = self._placed[key]
        frame.paste(picture, (x, y), picture)

    def shown_share(self) -> Floats:
        """For each frame which share of the subject's square lies inside the frame: (FRAMES,), 0 to 1."""
        low = self.centres - self.sizes[:, None] / 2
        high = self.centres + self.sizes[:, None] / 2
        inside = np.minimum(high, (WIDTH, HEIGHT)) - np.maximum(low, 0)
        return np.prod(np.clip(inside, 0, None), axis=1) / self.sizes**2


def make_shot(rng: np.random.Generator, shows: Mapping[str, str], off_frame: float = 0.0) -> Shot:
    """A shot that shows the given values by aspect.

    Args:
        rng: draws camera, light, place and size.
        shows: `subject`, `scene`, `motion`, and `colour` where the subject is drawn.
        off_frame: 0 to 1, how far the subject is moved over the edge; 1 leaves half of it in the picture.
    """
    canvas = scene_picture(shows["scene"])
    if rng.random() < 0.5:
        canvas = ImageOps.mirror(canvas)
    gain = rng.uniform(0.9, 1.08)
    canvas = canvas.point([min(255, round(v * gain)) for v in range(256)] * 3)
    windows = _camera(rng)
    centres, sizes, angles = _path(rng, shows["motion"])
    centres = _off_frame(rng, shows["motion"], centres, sizes, off_frame)
    sprite = subject_picture(shows["subject"], shows.get("colour"))
    return Shot(canvas, sprite, windows, centres, sizes, angles)


def _shifted(sprite: Image.Image, side: int, phase: tuple[int, int], angle: float) -> Image.Image:
    """A sprite at `side` pixels, turned, and moved by quarters of a pixel."""
    step = SPRITE_SIDE / side / _PHASES
    # The view slides by less than a pixel; the margin around the subject is clear, so nothing is lost.
    across, down = (_PHASES - phase[0]) * step, (_PHASES - phase[1]) * step
    reach = SPRITE_SIDE - SPRITE_SIDE / side
    if not angle:
        box = (across, down, min(across + reach, SPRITE_SIDE), min(down + reach, SPRITE_SIDE))
        return sprite.resize((side, side), Image.Resampling.BILINEAR, box=box)
    small = sprite.resize((side, side), Image.Resampling.BILINEAR)
    cos, sin, middle = math.cos(angle), math.sin(angle), side / 2
    x0, y0 = middle + phase[0] / _PHASES, middle + phase[1] / _PHASES
    turn = (cos, sin, middle - cos * x0 - sin * y0, -sin, cos, middle + sin * x0 - cos * y0)
    return small.transform((side, side), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)


def _camera(rng: np.random.Generator) -> Floats:
    """A slow pan with a slight zoom that stays on the canvas: (FRAMES, 4) left, top, width, height."""
    time = np.linspace(-0.5, 0.5, FRAMES)
    zoom = rng.uniform(1.1, 1.4) * (1 + rng.uniform(-0.07, 0.07) * time)
    width, height = WIDTH * zoom, HEIGHT * zoom
    speed = rng.uniform(0.7, 1.6) * FRAMES
    heading = rng.uniform(-0.45, 0.45) + (math.pi if rng.random() < 0.5 else 0.0)
    centre_x = speed * math.cos(heading) * time
    centre_y = speed * math.sin(heading) * time + rng.uniform(0, 3) * np.sin(2 * math.pi * time)
    left, top = centre_x - width / 2, centre_y - height / 2
    canvas_width, canvas_height = 2 * WIDTH, 2 * HEIGHT
    left += _room(rng, float(left.min()), float((left + width).max()), canvas_width)
    top += _room(rng, float(top.min()), float((top + height).max()), canvas_height)
    return np.stack([left, top, width, height], axis=1)


def _room(rng: np.random.Generator, low: float, high: float, limit: int) -> float:
    """A random shift that brings the span from low to high between the canvas's margins, towards its middle."""
    least, most = _CAMERA_MARGIN - low, limit - _CAMERA_MARGIN - high
    return least + (most - least) * float(rng.beta(2, 2))


def _path(rng: np.random.Generator, motion: str) -> tuple[Floats, Floats, Floats]:
    """Centres (FRAMES, 2), sizes (FRAMES,) and angles (FRAMES,) of a motion, in frame pixels and radians."""
    time = np.linspace(0, 1, FRAMES)
    size = rng.uniform(78, 108)
    x = np.full(FRAMES, WIDTH * rng.uniform(0.38, 0.62))
    y = np.full(FRAMES, HEIGHT * rng.uniform(0.44, 0.58))
    sizes, angles = np.full(FRAMES, size), np.zeros(FRAMES)
    sway = rng.uniform(1, 4) * np.sin(2 * math.pi * (time + rng.random()))
    if motion in ("right", "left"):
        x = WIDTH * (0.2 + 0.6 * time) if motion == "right" else WIDTH * (0.8 - 0.6 * time)
        y = y + sway
    elif motion == "rise":
        y = HEIGHT * (0.76 - 0.5 * time)
        x = x + sway
    elif motion == "bounce":
        y = HEIGHT * (0.68 - 0.38 * np.abs(np.sin(math.pi * (time * rng.uniform(2.4, 3.2) + rng.random()))))
        x = x + sway
    elif motion == "spin":
        angles = (time * rng.uniform(1.2, 1.8) + 0.001) * 2 * math.pi * (1 if rng.random() < 0.5 else -1)
    else:  # grow
        sizes = size * (0.45 + 0.85 * time)
    return np.stack([x, y], axis=1), sizes, angles


def _off_frame(rng: np.random.Generator, motion: str, centres: Floats, sizes: Floats, amount: float) -> Floats:
    """Centres moved over the edge that the motion does not lead to."""
    if not amount:
        return centres
    across = motion in ("rise", "bounce") or (motion in ("spin", "grow") and rng.random() < 0.5)
    axis, limit = (0, WIDTH) if across else (1, HEIGHT)
    hidden = (0.12 + 0.38 * amount) * sizes
    far = rng.random() < 0.5
    edge = limit - sizes / 2 + hidden if far else sizes / 2 - hidden
    moved = centres.copy()
    moved[:, axis] = edge
    return moved
