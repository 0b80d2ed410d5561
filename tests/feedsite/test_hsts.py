"""How far the promise to browsers reaches that this site has https is a choice."""

import os
import subprocess
import sys

import pytest

SCRIPT = (
    "from django.conf import settings as s;"
    "print(s.SECURE_HSTS_SECONDS > 0, s.SECURE_HSTS_INCLUDE_SUBDOMAINS, s.SECURE_HSTS_PRELOAD)"
)


@pytest.mark.parametrize(
    ("choice", "reach"),
    [
        ("", "True False False"),
        ("subdomains", "True True False"),
        ("preload", "True True True"),
    ],
)
def test_hsts_is_for_this_host_alone_unless_told(choice: str, reach: str) -> None:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "feedsite.settings",
        "DJANGO_HTTPS": "true",
        **({"DJANGO_HSTS": choice} if choice else {}),
    }
    command = [sys.executable, "-c", SCRIPT]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == reach
