"""The application served by granian, in each of its worker processes."""

import sys

from django.core.exceptions import ImproperlyConfigured

from feedsite.wsgi import application as handler  # first, for it sets Django up

# isort: split
from django.conf import settings

from eventbus.database import pool
from feedsite.front.application import Application

try:
    pool.require("api")
except ImproperlyConfigured as error:
    sys.exit(f"error: {error}")
application = Application(handler, is_hot=settings.API_FRONT)
