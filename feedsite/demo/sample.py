"""A small network that is the same every time, and how it gets into the system: through the API
alone.
"""

import itertools
import random
import secrets
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from feedsite.demo.client import Client

READER = 1
USERS = range(1, 51)
FOLLOWS_A_USER = range(4, 16)
POSTS = 200
VISIBLE_SECONDS = 60.0
POLL_SECONDS = 0.05

_SUBJECTS = [
    "the espresso machine", "my rear wheel", "the sourdough starter", "PostgreSQL 18", "the night train",
    "our roof garden", "the old lighthouse", "chess", "the second-hand piano", "my telescope",
    "the neighbour's cat", "a pot of tomatoes", "the public library", "cold water swimming", "the marathon",
    "the film camera", "the bread knife", "a map from 1911", "the choir", "the weather station",
]  # fmt: skip
_REMARKS = [
    "Finally fixed {}.", "Nobody warned me about {}.", "Does anyone know a good book about {}?",
    "Day three with {}: no regrets.", "{} was better than I remembered.", "I could talk about {} all evening.",
    "Lost an hour to {} and would do it again.", "Three things I learned from {} this week:",
    "Photos of {} tomorrow.", "Unpopular opinion: {} is overrated.",
]  # fmt: skip

Draft = tuple[int, str]  # author, content


def follows() -> dict[int, list[int]]:
    """Return whom each user follows; low ids have more followers, as few have many in any
    network.
    """
    dice = random.Random(1)  # noqa: S311 - the same network every time
    popularity = {user: 1 / user for user in USERS}
    return {
        user: _choose(dice, {u: p for u, p in popularity.items() if u != user}) for user in USERS
    }


def posts() -> list[Draft]:
    """Return who writes what, in order."""
    dice = random.Random(2)  # noqa: S311 - the same posts every time
    texts = [remark.format(subject) for subject, remark in itertools.product(_SUBJECTS, _REMARKS)][
        :POSTS
    ]
    dice.shuffle(texts)
    return [(dice.choice(USERS), text[0].upper() + text[1:]) for text in texts]


def load(client: Client) -> list[Any]:
    """Put the network into the system: first who follows whom, then the posts in their order.

    Return the posts.
    """
    for user, followees in follows().items():
        for followee in followees:
            client.put(user, f"/follows/{followee}")
    run = secrets.token_hex(8)
    return [
        client.post(author, "/posts", {"content": content}, f"demo-{run}-{number}")
        for number, (author, content) in enumerate(posts())
    ]


def wait_until_visible(client: Client, accepted: list[Any], pause: Callable[[float], None]) -> None:
    """Return once the reader's feed holds each post that belongs there. Raises `CommandError`."""
    authors = {str(user) for user in [READER, *follows()[READER]]}
    expected = {post["id"] for post in accepted if post["author_id"] in authors}
    for _attempt in range(int(VISIBLE_SECONDS / POLL_SECONDS)):
        if expected <= {
            post["id"] for post in client.get(READER, f"/feeds/{READER}?limit=100")["results"]
        }:
            return
        pause(POLL_SECONDS)
    raise CommandError(
        f"The posts did not reach the feed of user {READER} within {VISIBLE_SECONDS:.0f} s."
    )


def _choose(dice: random.Random, weights: dict[int, float]) -> list[int]:
    """Draw different users, the heavier the likelier."""
    ranked = sorted(weights, key=lambda user: dice.random() ** (1 / weights[user]), reverse=True)
    return sorted(ranked[: dice.choice(FOLLOWS_A_USER)])
