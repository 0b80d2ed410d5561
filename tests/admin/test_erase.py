"""Erasing a user in the admin: by a permission of its own, and only once one has typed whom."""

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from tests.admin.pages import inspector_of, operator, text_of
from tests.factories import PostCreatedFactory, UserErasedFactory, apply

pytestmark = pytest.mark.django_db(transaction=True)

USER = 77
PAGE = f"/admin/feeds/feed/{USER}/erase/"


def test_who_may_erase_is_asked_and_only_the_right_id_does_it(
    client: Client, feed_events: None
) -> None:
    operator(client, "view_feed", "erase_user")
    assert f'href="{PAGE}"' in text_of(client, inspector_of(USER))
    assert "cannot be undone" in text_of(client, PAGE)
    for wrong in ("", "78", "77 or 1=1", "7" * 30):
        answer = client.post(PAGE, {"user_id": wrong})
        assert "Nothing was done" in answer.content.decode()
    assert not LogEntry.objects.exists()
    answer = client.post(PAGE, {"user_id": f" {USER} "}, follow=True)
    assert "Erasure asked for, as event" in answer.content.decode()
    assert LogEntry.objects.get().object_id == str(USER)


@pytest.mark.parametrize("permission", ["view_feed", "change_feed", "delete_feed"])
def test_another_permission_does_not_do(client: Client, permission: str) -> None:
    operator(client, "view_feed", permission)
    assert PAGE not in text_of(client, inspector_of(USER))
    assert client.get(PAGE).status_code == 403
    assert client.post(PAGE, {"user_id": str(USER)}).status_code == 403


def test_the_inspector_tells_of_an_erasure(admin_client: Client) -> None:
    apply(PostCreatedFactory(author_id=USER), UserErasedFactory(user_id=USER))
    assert "under way: posts" in text_of(admin_client, inspector_of(USER))
