"""The application served by granian, in each of its worker processes."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

from eventbus import pool

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")

try:
    handler = get_wsgi_application()
    pool.require("api")
except ImproperlyConfigured as error:
    sys.exit(f"error: {error}")

from django.conf import settings

from eventbus import tracing
from feedsite.front.application import Application
from feedsite.warm_up import warm_up

tracing.start("feed-api")
warm_up()
application = Application(handler, is_hot=settings.API_FRONT)
