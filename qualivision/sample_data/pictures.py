"""Scene pictures and subject cut-outs: drawn here, or photos that installed packages ship.

Owns every source of pixels. Photos come from the wheels of scikit-image, scikit-learn and matplotlib, which say beside
them under which licence; nothing is downloaded. A picture never depends on a data set's seed, so each is made once per
process. Every scene is textured: a fault on a plain area could not be seen.
"""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

from qualivision.sample_data import SampleDataError
from qualivision.sample_data.content import DRAWN_SUBJECTS

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]

SCENE_SIZE: Final = (640, 384)  # twice a frame, so that the camera has room to drift
SPRITE_SIDE: Final = 192
SPRITE_MARGIN: Final = 20  # clear pixels around a subject: room for its shadow, blur and deformation

_RGB: Final = {
    "red": (214, 38, 34),
    "orange": (246, 136, 22),
    "yellow": (246, 218, 40),
    "green": (46, 168, 62),
    "blue": (38, 86, 220),
    "purple": (146, 56, 190),
}
_PHOTO_SCENES: Final = {
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "garden": ("sklearn", "datasets/images/flower.jpg"),
    "launchpad": ("skimage", "data/rocket.jpg"),
    "space": ("skimage", "data/hubble_deep_field.jpg"),
    "garage": ("skimage", "data/motorcycle_left.png"),
}
# Grey textures and the dark, middle and light colour that they are tinted with.
_TINTED_SCENES: Final = {
    "moon": ("data/moon.png", (26, 26, 30), (122, 120, 118), (226, 224, 216)),
    "lawn": ("data/grass.png", (14, 42, 10), (72, 132, 38), (186, 220, 110)),
    "brick": ("data/brick.png", (70, 26, 18), (158, 76, 54), (228, 190, 166)),
}
# Outlines in pixels of the photo: ellipses (cx, cy, rx, ry), or the corners x,y of a polygon.
_CUT_OUTS: Final = {
    "cat": ("skimage", "data/chelsea.png", [(200, 150, 178, 168)], ""),
    "coffee": ("skimage", "data/coffee.png", [(279, 222, 202, 165), (291, 112, 118, 98)], ""),
    "astronaut": (
        "skimage",
        "data/astronaut.png",
        [],
        "154,90 158,50 185,22 225,12 265,20 294,48 302,90 290,122 268,140 262,160 296,190 "
        "305,230 340,252 352,300 356,345 420,350 470,390 495,440 505,511 22,511 26,440 40,350 "
        "62,285 100,232 116,190 118,165 150,152 184,150 184,136 164,120",
    ),
    "officer": (
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        [],
        "176,72 205,42 254,22 305,34 350,72 368,105 370,160 374,190 370,245 352,285 332,308 "
        "340,326 420,352 486,388 505,440 510,599 14,599 24,490 44,400 78,372 190,322 186,296 "
        "162,262 156,200 166,150 166,110",
    ),
}


@lru_cache(maxsize=32)
def scene_picture(scene: str) -> Image.Image:
    """The picture of a scene, RGB, of `SCENE_SIZE`."""
    if scene in _PHOTO_SCENES:
        picture = ImageOps.fit(_photo(*_PHOTO_SCENES[scene]), SCENE_SIZE, Image.Resampling.BICUBIC)
        # Nearly black as it is: faults would be hard to see.
        return picture.point([min(255, round(14 + 1.7 * v)) for v in range(256)] * 3) if scene == "space" else picture
    if scene in _TINTED_SCENES:
        return _tinted(*_TINTED_SCENES[scene])
    drawing = {"sea": _sea, "mountains": _mountains, "desert": _desert, "city": _city}[scene]
    rng = np.random.default_rng([7, len(scene), ord(scene[0])])
    return _to_image(drawing(rng) + rng.normal(0, 5, (SCENE_SIZE[1], SCENE_SIZE[0], 1)))


@lru_cache(maxsize=64)
def subject_picture(subject: str, colour: str | None) -> Image.Image:
    """A subject as RGBA, `SPRITE_SIDE` square with a clear margin and a soft shadow; colour only where it is drawn.

    Clear pixels carry the subject's mean colour, so that blurring the picture gives no dark rim.
    """
    if subject in DRAWN_SUBJECTS:
        if colour is None:
            raise ValueError(f"a {subject} needs a colour")
        pixels, alpha = _drawn(subject, _RGB[colour])
    else:
        pixels, alpha = _cut_out(subject)
    inside = alpha > 0.5
    mean = pixels[inside].mean(axis=0)
    pixels = np.where(alpha[..., None] > 0.02, pixels, mean)
    shadow = 0.45 * ndimage.shift(ndimage.gaussian_filter(alpha, 5), (7, 5), order=1)
    cover = alpha + shadow * (1 - alpha)
    shade = np.where(cover > 1e-3, alpha / np.maximum(cover, 1e-3), 1.0)[..., None]
    rgba = np.concatenate([pixels * shade, 255 * cover[..., None]], axis=2)
    return Image.fromarray(np.clip(rgba, 0, 255).astype(np.uint8), "RGBA")


def _photo(package: str, name: str) -> Image.Image:
    # The package is found, not imported: scikit-learn alone takes a second.
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            with Image.open(path) as picture:
                return picture.convert("RGB")
    raise SampleDataError(f"{package} ships no {name} here; reinstall {package}")


def _tinted(
    name: str, dark: tuple[int, int, int], middle: tuple[int, int, int], light: tuple[int, int, int]
) -> Image.Image:
    grey = ImageOps.fit(_photo("skimage", name), SCENE_SIZE, Image.Resampling.BICUBIC).convert("L")
    if "moon" in name:  # too smooth by itself
        gravel = ImageOps.fit(_photo("skimage", "data/gravel.png"), SCENE_SIZE).convert("L")
        grey = Image.blend(ImageOps.autocontrast(grey, cutoff=1), gravel, 0.22)
    return ImageOps.colorize(ImageOps.autocontrast(grey, cutoff=1), dark, light, middle)


def _to_image(pixels: Floats) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _fractal(rng: np.random.Generator, rows: int, columns: int, cells: int, octaves: int = 5) -> Floats:
    """Cloud-like noise, (rows, columns), mean 0, most of it within -1 to 1."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        count = cells * 2**octave
        grid = rng.normal(0, 1, (max(2, count * rows // columns + 1), count + 1)).astype(np.float32)
        layer = Image.fromarray(grid).resize((columns, rows), Image.Resampling.BICUBIC)
        total += np.asarray(layer) * np.float32(0.6**octave)
    return total / np.float32(1.6)


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], amount: Floats) -> Floats:
    """From one colour to the other by (rows, columns) amounts, 0 to 1: (rows, columns, 3)."""
    share = np.clip(amount, 0, 1)[..., None]
    return np.asarray(low, np.float32) * (1 - share) + np.asarray(high, np.float32) * share


def _grid() -> tuple[Floats, Floats]:
    """Row and column of each pixel, 0 to 1."""
    width, height = SCENE_SIZE
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    return np.broadcast_to(rows, (height, width)), np.broadcast_to(columns, (height, width))


def _sky(rng: np.random.Generator, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Floats:
    width, height = SCENE_SIZE
    rows, _ = _grid()
    clouds = _fractal(rng, height, width, 4)
    sky = _mix(top, bottom, rows * 1.6)
    return sky + (255 - sky) * np.clip(clouds - 0.1, 0, 0.8)[..., None]


def _sea(rng: np.random.Generator) -> Floats:
    width, height = SCENE_SIZE
    rows, _ = _grid()
    sky = _sky(rng, (96, 156, 220), (206, 226, 240))
    depth = np.clip((rows - 0.3) / 0.7, 0, 1)
    swell = np.sin(26 / (depth + 0.16) + 5 * _fractal(rng, height, width, 6))
    ripple = _fractal(rng, height, width, 40, 3)
    water = _mix((10, 48, 96), (60, 150, 186), 0.45 + 0.3 * swell + 0.2 * ripple)
    foam = np.clip(swell * 0.7 + ripple * 0.7 - 0.8, 0, 0.8)[..., None]
    return np.where(rows[..., None] < 0.3, sky, water * (1 - foam) + 245 * foam)


def _ridge(rng: np.random.Generator, base: float, height: float, cells: int) -> Floats:
    """The row, 0 to 1, at which a range of hills begins, for each column: (1, columns)."""
    line = _fractal(rng, 2, SCENE_SIZE[0], cells, 6)[:1]
    return base - height * line


def _mountains(rng: np.random.Generator) -> Floats:
    width, height = SCENE_SIZE
    rows, _ = _grid()
    picture = _sky(rng, (70, 124, 200), (190, 214, 236))
    for base, rise, snow, low, high in (
        (0.36, 0.16, 0.2, (96, 110, 138), (150, 160, 182)),
        (0.54, 0.17, 0.12, (58, 66, 82), (118, 118, 122)),
        (0.82, 0.08, -1.0, (20, 46, 30), (60, 96, 54)),
    ):
        ridge = _ridge(rng, base, rise, 5)
        rock = _fractal(rng, height, width, 14)
        layer = _mix(low, high, 0.5 + 0.5 * rock)
        white = np.clip((snow - (rows - ridge) + 0.09 * rock) * 14, 0, 0.92)[..., None]
        layer = layer * (1 - white) + np.asarray((240, 244, 250), np.float32) * white
        picture = np.where((rows > ridge)[..., None], layer, picture)
    return picture


def _desert(rng: np.random.Generator) -> Floats:
    width, height = SCENE_SIZE
    rows, columns = _grid()
    picture = _sky(rng, (120, 170, 214), (250, 224, 182))
    for base, low, high in (
        (0.36, (176, 116, 62), (232, 178, 110)),
        (0.54, (190, 122, 58), (244, 190, 116)),
        (0.76, (170, 102, 44), (238, 176, 98)),
    ):
        ridge = _ridge(rng, base, 0.07, 2)
        bend = _fractal(rng, height, width, 5)
        ripples = np.sin((rows - ridge) * 170 + columns * 40 + 5 * bend)
        light = 0.55 + 0.3 * bend + 0.2 * ripples
        picture = np.where((rows > ridge)[..., None], _mix(low, high, light), picture)
    return picture


def _city(rng: np.random.Generator) -> Floats:
    width, height = SCENE_SIZE
    rows, _ = _grid()
    sky = _mix((12, 16, 44), (72, 50, 96), rows * 1.3) + 14 * _fractal(rng, height, width, 5)[..., None]
    picture = _to_image(sky)
    draw = ImageDraw.Draw(picture)
    for layer, shade in ((0, 46), (1, 26)):
        left = -10
        while left < width:
            wide = int(rng.integers(44, 84))
            top = int(rng.integers(60, 190)) + 70 * layer
            draw.rectangle((left, top, left + wide, height), fill=(shade, shade + 4, shade + 18))
            _windows(rng, draw, left, top, wide, height - 40)
            left += wide + int(rng.integers(2, 16))
    draw.rectangle((0, height - 40, width, height), fill=(34, 32, 40))
    for _ in range(60):
        x, y = int(rng.integers(width)), int(rng.integers(height - 38, height - 4))
        draw.ellipse((x, y, x + 9, y + 4), fill=((255, 200, 90), (255, 80, 60), (240, 240, 220))[x % 3])
    return np.asarray(picture, np.float32)


def _windows(rng: np.random.Generator, draw: ImageDraw.ImageDraw, left: int, top: int, wide: int, bottom: int) -> None:
    for y in range(top + 8, bottom, 13):
        for x in range(left + 6, left + wide - 7, 11):
            lit = rng.random()
            if lit < 0.6:
                glow = int(120 + 190 * lit)
                draw.rectangle((x, y, x + 5, y + 7), fill=(glow, int(glow * 0.86), int(glow * 0.5)))


def _drawn(shape: str, rgb: tuple[int, int, int]) -> tuple[Floats, Floats]:
    """A drawn subject: pixels (side, side, 3) from 0 to 255, alpha (side, side) from 0 to 1."""
    alpha, light = _cube() if shape == "cube" else _bevelled(shape)
    rng = np.random.default_rng([11, len(shape)])
    grain = 1 + 0.09 * _fractal(rng, SPRITE_SIDE, SPRITE_SIDE, 18, 3)
    pixels = np.asarray(rgb, np.float32) * (light * grain)[..., None]
    gloss = np.clip((light - 1.02) * 3.2, 0, 0.85)[..., None]
    return pixels * (1 - gloss) + 255 * gloss, alpha


def _outline(shape: str) -> Image.Image:
    """A shape, white on black, at four times the sprite's size."""
    side, margin = 4 * SPRITE_SIDE, 4 * SPRITE_MARGIN
    mask = Image.new("L", (side, side), 0)
    box = (margin, margin, side - margin, side - margin)
    if shape == "horse":
        horse = ImageOps.invert(_photo("skimage", "data/horse.png").convert("L"))
        horse = horse.crop(horse.getbbox())
        horse = ImageOps.contain(horse, (side - 2 * margin, side - 2 * margin))
        mask.paste(horse, ((side - horse.width) // 2, (side - horse.height) // 2))
        return mask
    draw = ImageDraw.Draw(mask)
    centre, radius = side / 2, side / 2 - margin
    if shape == "star":
        draw.polygon(_star(centre, radius), fill=255)
    elif shape == "heart":
        draw.polygon(_heart(centre, radius), fill=255)
    else:
        draw.ellipse(box, fill=255)
    if shape == "ring":
        hole = 0.48 * radius
        draw.ellipse((centre - hole, centre - hole, centre + hole, centre + hole), fill=0)
    return mask


def _star(centre: float, radius: float) -> list[tuple[float, float]]:
    points = []
    for tip in range(10):
        reach = radius if tip % 2 == 0 else 0.45 * radius
        angle = math.pi * tip / 5 - math.pi / 2
        points.append((centre + reach * math.cos(angle), centre + reach * math.sin(angle)))
    return points


def _heart(centre: float, radius: float) -> list[tuple[float, float]]:
    points = []
    for step in range(200):
        turn = 2 * math.pi * step / 200
        x = 16 * math.sin(turn) ** 3
        y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
        points.append((centre + radius * x / 16.5, centre - radius * (y + 2.5) / 16.5))
    return points


def _bevelled(shape: str) -> tuple[Floats, Floats]:
    """Alpha and light of a shape that is round towards its edge, lit from the top left."""
    mask = _outline(shape).resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.BOX)
    alpha = np.asarray(mask, np.float32) / 255
    depth = ndimage.distance_transform_edt(alpha > 0.5)
    reach = depth.max() if shape == "ball" else min(depth.max(), 24)
    height = reach * np.sqrt(np.clip(1 - (1 - np.minimum(depth / reach, 1)) ** 2, 0, 1))
    down, across = np.gradient(ndimage.gaussian_filter(height, 1.6))
    length = np.sqrt(1 + down**2 + across**2)
    facing = (1 + 0.75 * down + 0.6 * across) / (length * 1.39)
    return alpha, 0.34 + 0.78 * np.clip(facing, 0, 1)


def _cube() -> tuple[Floats, Floats]:
    """Alpha and light of a cube seen from a corner."""
    side = 4 * SPRITE_SIDE
    light = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(light)
    centre, radius = side / 2, side / 2 - 4 * SPRITE_MARGIN
    corners = [
        (centre + radius * math.sin(math.pi * k / 3), centre - radius * math.cos(math.pi * k / 3)) for k in range(6)
    ]
    middle = (centre, centre)
    for face, level in (((0, 1, 5), 230), ((5, 4, 3), 165), ((3, 2, 1), 105)):
        if level == 230:
            draw.polygon([corners[0], corners[1], middle, corners[5]], fill=level)
        else:
            draw.polygon([corners[face[0]], corners[face[1]], corners[face[2]], middle], fill=level)
    small = light.resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.BOX)
    shown = light.point([0] + [255] * 255).resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.BOX)
    alpha = np.asarray(shown, np.float32) / 255
    level_of = np.asarray(small, np.float32) / np.maximum(alpha, 1e-3) / 220
    return alpha, np.clip(level_of, 0, 1.1)


def _cut_out(subject: str) -> tuple[Floats, Floats]:
    package, name, ellipses, polygon = _CUT_OUTS[subject]
    photo = _photo(package, name)
    mask = Image.new("L", photo.size, 0)
    draw = ImageDraw.Draw(mask)
    for cx, cy, rx, ry in ellipses:
        draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=255)
    if polygon:
        draw.polygon([int(v) for corner in polygon.split() for v in corner.split(",")], fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(2))
    box = mask.getbbox()
    side = SPRITE_SIDE - 2 * SPRITE_MARGIN
    cut, cover = ImageOps.contain(photo.crop(box), (side, side)), ImageOps.contain(mask.crop(box), (side, side))
    place = ((SPRITE_SIDE - cut.width) // 2, (SPRITE_SIDE - cut.height) // 2)
    pixels, alpha = Image.new("RGB", (SPRITE_SIDE,) * 2), Image.new("L", (SPRITE_SIDE,) * 2)
    pixels.paste(cut, place)
    alpha.paste(cover, place)
    return np.asarray(pixels, np.float32), np.asarray(alpha, np.float32) / 255
