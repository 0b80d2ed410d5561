"""`manage.py rebuild_feeds --user ID … | --all`"""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from eventbus import arguments, cells, identity
from eventbus.terminal import count_of
from feeds.models import Feed, FeedQuerySet
from feeds.rebuild import rebuild

FEEDS_A_STEP = 50


class Command(BaseCommand):
    help = "Materialise feeds anew from posts and follows, while everything goes on running."

    def add_arguments(self, parser: ArgumentParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument(
            "--user",
            type=arguments.an_id,
            nargs="+",
            metavar="ID",
            help="these users' feeds, also ones that rest",
        )
        whose.add_argument("--all", action="store_true", help="every feed that does not rest")

    def handle(self, *_args: Any, user: list[int] | None, **_options: Any) -> None:
        identity.require()
        if user:
            strangers = set(cells.outside(identity.held(), user))
            user = [user_id for user_id in user if user_id not in strangers]
            if not user:
                self.stdout.write("Another cell holds these feeds.")
                return
        feeds = Feed.objects.filter(user_id__in=user) if user else Feed.objects.filter(idle=False)
        done = 0
        with tqdm(total=feeds.count(), unit=" feeds", disable=None) as progress:
            for users in _steps(feeds):
                rebuild(users)
                done += len(users)
                progress.update(len(users))
        if user and done < len(set(user)):
            missing = set(user) - set(feeds.values_list("user_id", flat=True))
            raise CommandError(
                f"There is no feed of {', '.join(map(str, sorted(missing)))}; {count_of(done, 'feed')} rebuilt."
            )
        self.stdout.write(f"{count_of(done, 'feed')} rebuilt")


def _steps(feeds: FeedQuerySet) -> Iterator[list[int]]:
    last = 0
    while users := list(
        feeds.filter(user_id__gt=last)
        .order_by("user_id")
        .values_list("user_id", flat=True)[:FEEDS_A_STEP]
    ):
        yield users
        last = users[-1]
