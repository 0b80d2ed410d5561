"""What the tests read from the pages of the admin, and who looks at them."""

import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

PIPELINE = "/admin/pipeline/"


def inspector_of(user_id: int) -> str:
    return f"/admin/feeds/feed/{user_id}/inspect/"


def operator(client: Client, *permissions: str) -> Client:
    """Log in someone who may do just this."""
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return client


def text_of(client: Client, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 200, answer.status_code
    return answer.content.decode()


def context_of(client: Client, url: str) -> Any:
    """Return what the page was made from."""
    answer = client.get(url)
    assert answer.status_code == 200, answer.status_code
    return answer.context_data


def rows_of(page: str, table: str) -> list[list[str]]:
    """Return the texts of the body cells of the table with this id."""
    [body] = re.findall(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
    cells = (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows)
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]
