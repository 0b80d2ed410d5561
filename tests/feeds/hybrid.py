"""A reader of both kinds of authors: one whose posts are pushed, and a star, whose posts are
pulled.
"""

from pytest_django import Settings

from tests.factories import PostCreatedFactory, follow_all
from tests.feeds.worker import Worker

READER, AUTHOR, STAR = 2, 1, 3


def worker_of_both_kinds(settings: Settings) -> Worker:
    """Have the reader follow both, and return a worker."""
    settings.FEED_STRATEGY, settings.FEED_PUSH_MAX_FOLLOWERS = "hybrid", 3
    follow_all([READER], followee=AUTHOR)
    follow_all([READER, 10, 11], followee=STAR)
    return Worker()


def post(worker: Worker, count: int = 1, author: int = AUTHOR) -> list[int]:
    """Have the author post; return the ids, newest first."""
    facts = [PostCreatedFactory(author_id=author) for _ in range(count)]
    worker.process(*facts)
    return [fact.post_id for fact in reversed(facts)]
