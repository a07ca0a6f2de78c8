"""What a prompt can ask for, and the sentences that ask for it.

Owns the vocabulary: the values of each aspect in `labels.ASPECT_OF_PROMPT` and the words for them. Draws prompts;
does not know how any of it looks.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

PHOTO_SHARE: Final = 0.4  # of prompts whose subject is a photo cut-out
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple")
DRAWN_SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "ball": ("ball", "sphere", "rubber ball"),
    "cube": ("cube", "box", "toy cube"),
    "star": ("star", "five-pointed star"),
    "heart": ("heart", "heart-shaped balloon"),
    "ring": ("ring", "hoop", "rubber ring"),
    "horse": ("horse", "toy horse"),
}
PHOTO_SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "cat": ("tabby cat", "cat", "cat with big eyes"),
    "astronaut": ("astronaut", "smiling astronaut", "astronaut in a space suit"),
    "coffee": ("cup of coffee", "coffee cup on a saucer", "cup of espresso"),
    "officer": ("navy officer", "elderly woman in uniform", "woman with glasses and a navy hat"),
}
SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {**DRAWN_SUBJECTS, **PHOTO_SUBJECTS}
# Each motion as (it ..., ... -ing).
MOTIONS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "right": (("glides to the right", "gliding to the right"), ("moves from left to right", "moving rightwards")),
    "left": (("glides to the left", "gliding to the left"), ("moves from right to left", "moving leftwards")),
    "rise": (("rises into the air", "rising into the air"), ("floats upward", "floating upward")),
    "bounce": (("bounces up and down", "bouncing up and down"), ("hops up and down", "hopping up and down")),
    "spin": (("spins around", "spinning around"), ("rotates in place", "rotating in place")),
    "grow": (("comes closer and closer", "coming closer"), ("grows larger", "growing larger")),
}
SCENES: Final[Mapping[str, tuple[str, ...]]] = {
    "temple": ("in front of a Chinese temple", "beside an old pagoda"),
    "garden": ("in a garden with a dahlia in bloom", "in front of a large dahlia"),
    "launchpad": ("at a rocket launch pad at dusk", "in front of a rocket that is ready for launch"),
    "space": ("in outer space among galaxies", "in deep space between stars and galaxies"),
    "garage": ("in a garage with a motorcycle", "in a workshop where a motorbike is parked"),
    "moon": ("on the surface of the moon", "over the craters of the moon"),
    "lawn": ("on a grassy lawn", "over the grass of a meadow"),
    "brick": ("in front of a brick wall", "before an old wall of bricks"),
    "sea": ("above the waves of the sea", "over the ocean"),
    "mountains": ("in front of snowy mountains", "before a range of snow-covered peaks"),
    "desert": ("over the sand dunes of a desert", "in a sandy desert"),
    "city": ("in a city at night", "in front of skyscrapers at night"),
}
_TEMPLATES: Final = (
    "{A_subject} {does} {scene}.",
    "{A_subject} {doing} {scene}",
    "{Scene}, {a_subject} {does}.",
    "{A_subject} that {does} {scene}, 4k.",
    "A video of {a_subject} {doing} {scene}.",
    "Slow shot of {a_subject} {scene}; it {does}.",
    "The camera follows {a_subject} {doing} {scene}.",
    "{Scene} there is {a_subject}, {doing}.",
    "Cinematic footage: {a_subject} {does} {scene}.",
    "{A_subject} {scene}, {doing}, high quality.",
)


@dataclass(frozen=True)
class Prompt:
    """A sentence, what it asks for by aspect (no colour where the subject is a photo), and its clips' id."""

    identity: str
    text: str
    asks: Mapping[str, str]

    @property
    def is_photo(self) -> bool:
        """Whether the subject is a photo cut-out and not drawn."""
        return self.asks["subject"] in PHOTO_SUBJECTS


def draw_prompts(rng: np.random.Generator, count: int, taken: Iterable[Prompt] = ()) -> list[Prompt]:
    """Draw prompts whose texts are all distinct; each value of an aspect about equally often.

    Args:
        rng: draws all of it.
        count: how many.
        taken: prompts that ask for what none of the drawn ones may ask for.
    """
    photos = round(PHOTO_SHARE * count)
    subjects = _evenly(rng, tuple(PHOTO_SUBJECTS), photos) + _evenly(rng, tuple(DRAWN_SUBJECTS), count - photos)
    colours, motions, scenes = (_evenly(rng, values, count) for values in (COLOURS, tuple(MOTIONS), tuple(SCENES)))
    prompts: list[Prompt] = []
    texts: set[str] = set()
    taken_asks = {frozenset(prompt.asks.items()) for prompt in taken}
    for subject, colour, motion, scene in zip(subjects, colours, motions, scenes, strict=True):
        asks = {"subject": subject, "scene": scene, "motion": motion}
        if subject in DRAWN_SUBJECTS:
            asks["colour"] = colour
        while frozenset(asks.items()) in taken_asks:
            asks |= {"scene": pick(rng, tuple(SCENES)), "motion": pick(rng, tuple(MOTIONS))}
        text = _sentence(rng, asks)
        while text in texts:
            text = _sentence(rng, asks)
        texts.add(text)
        identity = str(uuid.UUID(bytes=rng.bytes(16), version=5))
        prompts.append(Prompt(identity, text, asks))
    return prompts


def draw_other(rng: np.random.Generator, values: Sequence[str], than: str) -> str:
    """One of the values that is not the given one."""
    return pick(rng, [value for value in values if value != than])


def pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    """One of the values, each as likely."""
    return values[int(rng.integers(len(values)))]


def _evenly(rng: np.random.Generator, values: Sequence[str], count: int) -> list[str]:
    """`count` of the values in random order, each as often as the others or once more."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += [values[place] for place in rng.permutation(len(values))]
    drawn = drawn[:count]
    return [drawn[place] for place in rng.permutation(count)]


def _sentence(rng: np.random.Generator, asks: Mapping[str, str]) -> str:
    noun = pick(rng, SUBJECTS[asks["subject"]])
    phrase = f"{asks['colour']} {noun}" if "colour" in asks else noun
    a_subject = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    scene = pick(rng, SCENES[asks["scene"]])
    forms = MOTIONS[asks["motion"]]
    does, doing = forms[int(rng.integers(len(forms)))]
    return pick(rng, _TEMPLATES).format(
        a_subject=a_subject,
        A_subject=a_subject[0].upper() + a_subject[1:],
        scene=scene,
        Scene=scene[0].upper() + scene[1:],
        does=does,
        doing=doing,
    )
