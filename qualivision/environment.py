"""The process around our code: where state is kept, that nothing calls home, and how memory is given back.

Only entry points (`cli.main`, the flows, the tests' conftest) call `prepare`, before they import the heavy packages,
which read these variables when they are imported. A variable that is set already is left alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

STATE = Path("state")
"""Everything that is neither data nor a DVC output: MLflow's store, Prefect's home, download and font caches."""


def prepare(state: Path = STATE) -> None:
    """Keep all state under a folder, by default `state/` of the working folder, and switch telemetry off."""
    state = state.absolute()
    defaults = {
        "DO_NOT_TRACK": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HOME": f"{state}/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute until a server counts as away; by default it is four
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # no model of ours is one
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Threads that wait shall spin for some 20 microseconds only, as the next step of a network is there by then:
        # longer, and they take the cores from processes that decode; not at all, and each step waits to be woken up
        # (lite's stem: 217 ms without, 164 ms with this).
        "GOMP_SPINCOUNT": "20000",
        "OMP_WAIT_POLICY": "PASSIVE",  # for those who don't know GOMP_SPINCOUNT
        "MPLCONFIGDIR": f"{state}/matplotlib",
        "PREFECT_HOME": f"{state}/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of handing them back to the kernel after every use.

    The arrays of a clip are some megabytes each; asking for them anew, page by page, costs a tenth
    (statistics of one clip on one thread: 76 to 80 ms without, 68 to 70 ms with this). Without glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # from malloc.h
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 2047 << 20)
        libc.mallopt(arena_max, 1)
