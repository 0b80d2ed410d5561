"""The whole system on a real graph: what was accepted is in the feeds, exactly once, though a
worker is killed.
"""

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from django.core.management import call_command

from eventbus import kafka
from eventbus.models import Erasure
from tests.e2e import real_data
from tests.e2e.system import System, read_feed, running, settled, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

POSTS, SEED, READERS = 2_500, 20_261, 300


class Model:
    """What the feeds must be, kept in plain Python from the requests that were accepted."""

    def __init__(self, follows: set[real_data.Pair]) -> None:
        self.follows = set(follows)
        self.mutes: set[real_data.Pair] = set()
        self.posts: dict[int, int] = {}  # author by post
        self.edited: dict[int, str] = {}  # content by post
        self.events: set[int] = set()

    def feed(self, user: int) -> list[int]:
        followed = {followee for follower, followee in self.follows if follower == user}
        muted = {other for muting, other in self.mutes if muting == user}
        authors = (followed - muted) | {user}
        return sorted(
            (post for post, author in self.posts.items() if author in authors), reverse=True
        )


def write(system: System, model: Model, drafts: list[real_data.Draft]) -> None:
    """Post everything through the API with several clients, each author's posts through one of
    them.
    """
    by_author = defaultdict(list)
    for author, text in drafts:
        by_author[author].append(text)

    def post_all(author: int) -> list[tuple[int, int]]:
        with system.client(author) as client:
            answers = [
                client.post("/posts", json={"content": text}).raise_for_status()
                for text in by_author[author]
            ]
        assert {answer.status_code for answer in answers} == {202}
        return [(int(answer.json()["id"]), int(answer.json()["event_id"])) for answer in answers]

    with ThreadPoolExecutor(8) as pool:
        for author, accepted in zip(by_author, pool.map(post_all, by_author), strict=True):
            for post_id, event_id in accepted:
                model.posts[post_id] = author
                model.events.add(event_id)


def change_follows(system: System, model: Model, chance: random.Random, count: int) -> None:
    authors = sorted(set(model.posts.values()))
    readers = sorted({follower for follower, _ in model.follows})
    for _ in range(count):
        follower, followee = chance.choice(readers), chance.choice(authors)
        if follower == followee:
            continue
        with system.client(follower) as client:
            if (follower, followee) in model.follows:
                answer = client.delete(f"/follows/{followee}")
                model.follows.discard((follower, followee))
            else:
                answer = client.put(f"/follows/{followee}")
                model.follows.add((follower, followee))
        assert answer.status_code == 202
        model.events.add(int(answer.json()["event_id"]))


def mute_and_block(system: System, model: Model, chance: random.Random, count: int) -> None:
    """Have readers mute some whom they follow, and some of these block their readers or lift it."""
    authors = set(model.posts.values())
    pairs = sorted(pair for pair in model.follows if pair[1] in authors)
    for follower, followee in chance.sample(pairs, count):
        act = chance.choice(["mute", "mute and back", "block", "block and back"])
        user, path = (
            (follower, f"/mutes/{followee}") if "mute" in act else (followee, f"/blocks/{follower}")
        )
        with system.client(user) as client:
            answers = [client.put(path)]
            if "back" in act:
                answers.append(client.delete(path))
        model.events |= {int(answer.raise_for_status().json()["event_id"]) for answer in answers}
        if act == "mute":
            model.mutes.add((follower, followee))
        if "block" in act:  # also one that is lifted again has ended the follows
            model.follows -= {(follower, followee), (followee, follower)}


def delete_posts(system: System, model: Model, chance: random.Random, count: int) -> None:
    for post_id in chance.sample(sorted(model.posts), count):
        with system.client(model.posts.pop(post_id)) as client:
            answer = client.delete(f"/posts/{post_id}")
        assert answer.status_code == 202
        model.events.add(int(answer.json()["event_id"]))


def edit_posts(system: System, model: Model, chance: random.Random, count: int) -> None:
    """Edit posts, some of them twice; the later edit counts."""
    for number, post_id in enumerate(chance.choices(sorted(model.posts)[:count], k=count)):
        with system.client(model.posts[post_id]) as client:
            edit = {"content": f"edited {number}", "data": {"number": number}}
            answer = client.patch(f"/posts/{post_id}", json=edit)
        assert answer.status_code == 202
        model.edited[post_id] = f"edited {number}"
        model.events.add(int(answer.json()["event_id"]))


def erase_authors(system: System, model: Model, chance: random.Random, count: int) -> None:
    """Erase some authors, who post again at once: that post stays."""
    for author in chance.sample(sorted(set(model.posts.values())), count):
        with system.client(author) as client:
            answers = [client.delete(f"/users/{author}")]
            answers.append(client.post("/posts", json={"content": "and again"}))
        assert [answer.status_code for answer in answers] == [202, 202]
        model.events |= {int(answer.json()["event_id"]) for answer in answers}
        model.posts = {post: by for post, by in model.posts.items() if by != author}
        model.posts[int(answers[1].json()["id"])] = author
        model.follows = {pair for pair in model.follows if author not in pair}
        model.mutes = {pair for pair in model.mutes if author not in pair}


def is_all_erased() -> bool:
    return not Erasure.objects.filter(finished_at=None).exists()


def assert_edits_are_shown(client: httpx.Client, model: Model) -> None:
    for post_id, content in model.edited.items():
        if post_id in model.posts:
            post = client.get(f"/posts/{post_id}").raise_for_status().json()
            assert (post["content"], post["data"]) == (content, {"number": int(content[7:])})
            assert post["edited_at"] is not None


def test_every_feed_equals_the_join_after_real_traffic_and_a_killed_worker(tmp_path: Path) -> None:
    kafka.create_topics()
    file, follows = real_data.follow_graph(tmp_path)
    chance = random.Random(SEED)
    drafts = real_data.posts(POSTS, follows, SEED)
    call_command("import_follows", file)
    model = Model(follows)
    with running(tmp_path) as system:
        first, _second = system.worker(), system.worker()
        system.api()
        write(system, model, drafts[: POSTS // 2])
        first.kill()
        write(system, model, drafts[POSTS // 2 :])
        third = system.worker()
        change_follows(system, model, chance, 100)
        wait_until(lambda: settled(model.events))
        mute_and_block(system, model, chance, 60)
        wait_until(lambda: settled(model.events))
        edit_posts(system, model, chance, 60)
        delete_posts(system, model, chance, 50)
        wait_until(lambda: settled(model.events))
        erase_authors(system, model, chance, 5)
        third.kill()
        fourth = system.worker()
        wait_until(lambda: settled(model.events))
        wait_until(is_all_erased)

        readers = chance.sample(sorted({user for pair in model.follows for user in pair}), READERS)
        with system.client(1, scope="feeds:read") as client:
            assert_edits_are_shown(client, model)
            for reader in readers:
                assert read_feed(client, reader) == model.feed(reader)
        call_command("verify_feeds")
        assert fourth.stop() == 0
