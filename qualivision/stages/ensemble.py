"""Stage `ensemble`: the members' weights, fitted on val; with them their copies are a checkpoint like any other."""

from __future__ import annotations

import numpy as np

from qualivision import tracking
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, labels_path, read_labels
from qualivision.settings import ENSEMBLE, SettingsError, load_settings
from qualivision.stages import places
from qualivision.stages.member import said_of


def run() -> str:
    """Fit the weights and write the card.

    Raises:
        SettingsError: `params.yaml` lists no ensemble.
        MemberError, CheckpointError, LabelError
    """
    from qualivision.training.checkpoint import checkpoint_id, save_ensemble
    from qualivision.training.mixing import fit_weights

    settings = load_settings()
    if not settings.ensembles:
        raise SettingsError(f"no ensemble is built; params.yaml needs ensembles: [{ENSEMBLE}], and its members")
    names, folder = settings.ensemble.members, places.checkpoint_dir(ENSEMBLE)
    table = read_labels(labels_path(places.DATA, "val"))
    fitted = fit_weights(said_of(table, "val", names).mos, table[list(MOS_COLUMNS)].to_numpy(np.float64))
    weights: dict[str, dict[str, float]] = {
        name: {dimension: float(share) for dimension, share in zip(DIMENSIONS, shares, strict=True)}
        for name, shares in zip(names, fitted, strict=True)
    }
    save_ensemble(folder, weights)
    tracking.log_ensemble(ENSEMBLE, checkpoint_id(folder), weights)
    overall = ", ".join(f"{name} {weights[name]['Overall']:.2f}" for name in names)
    return f"ensemble: weights of {len(names)} members from {len(table)} clips of val; in Overall {overall}"
