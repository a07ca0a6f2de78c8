"""The card of a registered model: what it was made from, what it reaches, and what it is not good for.

Owns the words, as Markdown (the version's description in MLflow) and as one HTML page (an artifact of the model).
Computes no figure: they come from the evaluation's `metrics.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qualivision import markdown, pages
from qualivision.evaluation.baselines import ceiling_srocc
from qualivision.evaluation.metrics import MEAN, shown
from qualivision.labels import DIMENSIONS, SPLITS, LabelError, generator_of, has_mos, labels_path, read_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from qualivision.training.checkpoint import Member, ModelCard

DESCRIPTION_CHARACTERS: Final = 5000
"""What MLflow's databases hold of a version's description."""

LIMITS: Final = (
    "It says how raters like those of its training data would judge a clip; of other raters, generators and kinds of "
    "video it knows nothing.",
    "It was evaluated on prompts that it had not seen, from the generators that it had.",
    "A clip whose pictures or motion are unlike those of its training data is said to be so (distance above 1); a kind "
    "of subject or wording that it never met is not.",
    "It sees uniform frames, squashed to one size: what happens between two of them, and finer detail, is lost.",
    "Scores are means over raters, from 1 to 5. A difference below the RMSE of its dimension says little of two clips.",
    "It hears nothing, and does not judge whether what is shown is true, safe or lawful.",
)


def data_facts(data: Path) -> list[list[str]]:
    """Of each split its clips, prompts and generators; empty where there is no data set at hand."""
    rows = []
    for split in SPLITS:
        try:
            table = read_labels(labels_path(data, split), require_mos=False)
        except LabelError:
            continue
        generators = sorted({generator_of(name) for name in table["video_name"]} - {""})
        rated = "yes" if has_mos(table) else "no"
        rows.append([split, str(len(table)), str(table["Prompt"].nunique()), ", ".join(generators) or "-", rated])
    return rows


DATA_HEAD: Final = ("Split", "Clips", "Prompts", "Generators", "Rated")


def metrics_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each dimension with its interval, its baseline and its ceiling."""
    confidence = f"{100 * metrics['intervals']['confidence']:g} %"
    head = ["Dimension", "SROCC", confidence, "PLCC", "KROCC", "RMSE", "VQualA", "No-video SROCC", "Ceiling SROCC"]
    rows = []
    for name in (*DIMENSIONS, MEAN):
        found, interval = metrics[name], metrics["intervals"][name]["SROCC"]
        rows.append(
            [
                name,
                shown(found["SROCC"]),
                f"{shown(interval[0])} to {shown(interval[1])}" if interval else "-",
                *(shown(found[metric]) for metric in ("PLCC", "KROCC", "RMSE", "VQualA")),
                shown(metrics["no_video"][name]["SROCC"]),
                shown(ceiling_srocc(metrics["ceiling"], name)),
            ]
        )
    return head, rows


_LINEAGE: Final = {"git_commit": "Git commit", "dvc_lock": "SHA-256 of dvc.lock", "data": "Data, as DVC names it"}


def facts_of(members: Sequence[Member], lineage: Mapping[str, str]) -> list[list[str]]:
    """What the model is, and where it comes from."""
    from qualivision.training.checkpoint import kind_of

    facts = [["Model", kind_of(members)]]
    if len(members) > 1:
        facts.append(["Made of", f"{', '.join(member.name for member in members)}: the weighted mean of their scores"])
    facts.append(["Says", f"{', '.join(DIMENSIONS)}: MOS from 1 to 5"])
    for member in members:
        card = member.card
        frames = f"{card.frames.count} frames of {card.frames.height} x {card.frames.width} pixels"
        of_it = [
            ["Reads", f"{frames}, and the prompt"],
            ["Published weights", f"{card.base} (SHA-256 {card.base_hash[:12]})"],
            *_start_of(card),
            ["Sentence encoder", card.text.encoder + (", trained along" if card.text.train else ", frozen")],
        ]
        if len(members) > 1:
            shares = ", ".join(f"{100 * share:.0f} % of {dimension}" for dimension, share in member.weights.items())
            of_it = [[f"{member.name}: {name.lower()}", value] for name, value in [["Share", shares], *of_it]]
        facts += of_it
    return facts + [[_LINEAGE[name], value] for name, value in lineage.items()]


def _start_of(card: ModelCard) -> list[list[str]]:
    start = card.training.get("start")
    return [["Trained from", f"{start['name']} ({start['id'][:12]})"]] if start else []


def as_markdown(
    members: Sequence[Member], metrics: Mapping[str, Any], data: Sequence[Sequence[str]], lineage: Mapping[str, str]
) -> str:
    """The card for a version's description."""
    from qualivision.training.checkpoint import kind_of

    head, rows = metrics_table(metrics)
    counts = metrics["counts"]
    overall = shown(metrics["Overall"]["VQualA"])
    return "\n".join(
        [
            # What a list of versions shows of it.
            f"{kind_of(members)}: Overall {overall} (VQualA), judges a video against its prompt",
            "",
            *(f"- {name}: {value}" for name, value in facts_of(members, lineage)),
            "",
            f"## On {counts['rows']} test clips of {counts['prompts']} prompts",
            "",
            markdown.table(head, rows),
            "",
            "## Data",
            "",
            markdown.table(DATA_HEAD, data) if data else "The data set was not at hand when this was registered.",
            "",
            "## Limits",
            "",
            *(f"- {limit}" for limit in LIMITS),
        ]
    )


def as_html(
    members: Sequence[Member],
    metrics: Mapping[str, Any],
    data: Sequence[Sequence[str]],
    lineage: Mapping[str, str],
    pictures: Mapping[str, bytes],
) -> str:
    """The card as a page, with the pictures of the evaluation: {what it shows: PNG}."""
    from qualivision.training.checkpoint import kind_of

    counts = metrics["counts"]
    note = (
        f"{counts['rows']} test clips of {counts['prompts']} prompts that no other split has. Intervals by a bootstrap "
        "over prompts. No-video is what the prompt alone predicts; the ceiling is what raters agree on."
    )
    drawn = "".join(pages.picture(png, alt) for alt, png in pictures.items())
    said = pages.table(DATA_HEAD, data) if data else ""
    return pages.page(
        f"{kind_of(members)}: judges a video against its prompt",
        [],
        [
            pages.section("What it is", "", pages.table(("", ""), facts_of(members, lineage))),
            pages.section("What it reaches", note, pages.table(*metrics_table(metrics)) + drawn),
            pages.section("Data", "" if data else "Not at hand when this was registered.", said),
            pages.section("Limits", "", "".join(f"<p>{limit}</p>\n" for limit in LIMITS)),
        ],
    )
