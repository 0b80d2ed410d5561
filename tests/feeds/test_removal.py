"""Taking many posts out of feeds at once, as a batch of unfollows does."""

import pytest

from eventbus.database.sql import execute
from feeds import fanout
from feeds.models import FeedEntry

pytestmark = pytest.mark.django_db

FILL = """
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT reader, reader * 10000 + n, reader
FROM generate_series(1, 40) AS reader, generate_series(1, 500) AS n
"""


def test_each_entry_is_one_look_up_in_a_partition_that_was_never_analysed() -> None:
    """It took over a minute, for all posts were looked through at each look-up."""
    execute(FILL)
    execute("SET LOCAL statement_timeout = '15s'")
    fanout.remove([(reader, reader * 10_000 + n) for reader in range(1, 40) for n in range(1, 501)])
    assert set(FeedEntry.objects.values_list("user_id", flat=True)) == {40}
