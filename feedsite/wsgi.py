"""Django's WSGI application: behind the front (`feedsite.rsgi`), or alone on any WSGI server."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")

try:
    application = get_wsgi_application()

    from feedsite.cell_check import require_cells
    from feedsite.checks import require_keys

    require_keys()
    require_cells()
except ImproperlyConfigured as error:
    sys.exit(f"error: {error}")

from eventbus.telemetry import tracing
from feedsite.warm_up import warm_up

tracing.start("feed-api")
warm_up()
