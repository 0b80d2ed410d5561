"""The demo's way into the Django admin."""

import secrets
from pathlib import Path

from django.contrib.auth.models import User

from feedsite.embedded.state import write_private

NAME = "admin"


def ensure(password_file: Path) -> str | None:
    """Make sure there is a superuser `admin`; return the password, None if it is not the one in
    `password_file`.
    """
    user = User.objects.filter(username=NAME).first()
    if user is None:
        if not password_file.exists():
            write_private(password_file, secrets.token_urlsafe(12))
        User.objects.create_superuser(NAME, "", password_file.read_text())
        return password_file.read_text()
    kept = password_file.read_text() if password_file.exists() else ""
    return kept if user.check_password(kept) else None
