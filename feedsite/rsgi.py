"""The application served by granian, in each of its worker processes."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")

handler = get_wsgi_application()

from django.conf import settings  # noqa: E402 - needs the variable above

from eventbus import tracing  # noqa: E402 - needs the apps
from feedsite.front.application import Application  # noqa: E402 - needs the apps
from feedsite.warm_up import warm_up  # noqa: E402 - needs the apps

tracing.start("feed-api")
warm_up()
application = Application(handler, is_hot=settings.API_FRONT)
