"""The application served by granian, in each of its worker processes."""

from feedsite.wsgi import application as handler  # first, for it sets Django up

# isort: split
from django.conf import settings

from feedsite.front.application import Application

application = Application(handler, is_hot=settings.API_FRONT)
