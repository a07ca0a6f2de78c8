"""Stage `prompts`: every distinct prompt of the data set to an embedding."""

from __future__ import annotations

from qualivision.labels import SPLITS, labels_path, other_prompts_path, read_labels, read_other_prompts
from qualivision.prompts import PromptCache
from qualivision.settings import load_settings
from qualivision.stages import places


def run(model: str) -> str:
    """Fill the prompt cache. Raises LabelError, PromptError."""
    from qualivision.models.factory import phrases

    encoder = load_settings().model(model).text.encoder
    tables = [read_labels(labels_path(places.DATA, split), require_mos=False) for split in SPLITS]
    prompts = {prompt for table in tables for prompt in table["Prompt"]} | set(phrases(model))
    for split in SPLITS:
        prompts |= read_other_prompts(other_prompts_path(places.DATA, split)).keys()
    new = PromptCache(places.prompts_dir(model), encoder).fill(prompts)
    return f"prompts {model}: {new} embedded, {len(prompts) - new} were there, by {encoder}"
