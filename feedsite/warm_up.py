"""Making what the first requests need before they come."""

import gc
import os
from pathlib import Path

import structlog
from django.conf import settings
from django.urls import get_resolver

from feedsite import checks, keys

log = structlog.get_logger(__name__)


def warm_up() -> None:
    """Load all views, which the first request would wait for, and begin to fetch the keys; waits
    for no server.
    """
    get_resolver().url_patterns  # noqa: B018 - loads all views
    if settings.JWT_JWKS_URL:
        keys.key_set(settings.JWT_JWKS_URL)
    if not checks.tokens_have_an_audience():
        log.warning(
            "no_audience", detail="JWT_AUDIENCE is not set: tokens issued for others are taken."
        )
    drop_gauges_of_the_dead()
    # What is loaded stays. Without this, each full collection would walk all of Django while every
    # request waits.
    gc.collect()
    gc.freeze()


def drop_gauges_of_the_dead() -> None:
    """Have `/metrics` forget what processes that run no more have said of themselves, such as an
    open breaker.

    Prometheus's client takes a file for that of a running process until somebody removes it.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        return
    for file in Path(directory).glob("gauge_live*_*.db"):
        process = int(file.stem.rpartition("_")[2])
        if not _runs(process):
            file.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, and is somebody else's
        return True
    return True
