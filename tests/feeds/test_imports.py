"""Loading graphs in bulk."""

import gzip
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from feeds import verification
from feeds.models import Feed, Follow
from tests.factories import PostCreatedFactory, apply
from tests.feeds.model import feed

pytestmark = pytest.mark.django_db(transaction=True)


def load(directory: Path, text: str, *options: str, name: str = "graph.csv") -> str:
    file = directory / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    out = StringIO()
    call_command("import_follows", str(file), *options, stdout=out)
    return out.getvalue().strip()


def pairs() -> set[tuple[int, int]]:
    return set(Follow.objects.filter(active=True).values_list("follower_id", "followee_id"))


@pytest.mark.parametrize("name", ["graph.csv", "graph.csv.gz"])
def test_an_import_makes_each_pair_active_once(tmp_path: Path, name: str) -> None:
    text = "follower,followee\n2,1\n3,1\n2,1\n"
    assert load(tmp_path, text, name=name) == "3 follows read, 2 new"
    assert load(tmp_path, text, name=name) == "3 follows read, 0 new"
    assert pairs() == {(2, 1), (3, 1)}
    assert Feed.objects.get(user_id=1).follower_count == 2


def test_mutual_pairs_and_ids_from_zero(tmp_path: Path) -> None:
    load(tmp_path, "user_a,user_b\n0,1\n", "--mutual", "--id-offset", "1")
    assert pairs() == {(1, 2), (2, 1)}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("follower,followee\n2,1\n3,x\n", "line 3: '3,x' is not a pair of whole numbers"),
        ("follower,followee\n2,1\n3\n", "line 3: expected 2 columns, found 1"),
        ("follower,followee\n0,1\n", "line 2: a user id must be"),
        ("follower,followee\n9223372036854775808,1\n", "line 2: a user id must be"),
        ("follower,followee\n5,5\n", "line 2: user 5 cannot follow themselves"),
        ("a,b\n2,1\n", "line 1: the header must be follower,followee"),
        ("", "line 1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(CommandError) as failure:
        load(tmp_path, text)
    assert complaint in str(failure.value)
    assert "Nothing was imported." in str(failure.value)
    assert pairs() == set()


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"Cannot read .*: No such file"):
        call_command("import_follows", str(tmp_path / "none.csv"))


def test_feeds_are_right_at_once_after_an_import_over_existing_posts(tmp_path: Path) -> None:
    posts = [PostCreatedFactory(author_id=1) for _ in range(3)]
    apply(*posts)
    load(tmp_path, "follower,followee\n2,1\n")
    assert feed(2) == [post.post_id for post in reversed(posts)]
    apply(later := PostCreatedFactory(author_id=1))
    assert feed(2)[0] == later.post_id
    assert len(feed(2)) == 4
    assert verification.verify().equal
