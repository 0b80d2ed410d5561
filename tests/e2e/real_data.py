"""The real graph and posts that lie beside the repository, or generated ones of the same shape
where they do not.
"""

import csv
import gzip
import random
from collections import Counter
from itertools import islice
from pathlib import Path

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

Pair = tuple[int, int]  # follower, followee
Draft = tuple[int, str]  # author, text


def follow_graph(directory: Path) -> tuple[Path, set[Pair]]:
    """Return a CSV file of follows for `import_follows`, and the pairs in it."""
    file = DATA / "graph_wikivote.csv.gz"
    if not file.exists():
        print(f"{file.name} is not there: using a generated graph")  # noqa: T201 - pytest shows it on failure
        file = _generated_graph(directory)
    with gzip.open(file, "rt") as lines:
        return file, {
            (int(follower), int(followee))
            for follower, followee in islice(csv.reader(lines), 1, None)
        }


def posts(count: int, pairs: set[Pair], seed: int) -> list[Draft]:
    """Return `count` posts whose busy authors tend to be users with many followers."""
    texts = _real_posts(count)
    chance = random.Random(seed)
    followers = Counter(followee for _, followee in pairs)
    users = sorted(followers, key=lambda user: -followers[user] * chance.uniform(0.5, 1.5))
    ranked = [author for author, _ in Counter(author for author, _ in texts).most_common()]
    user_of = dict(zip(ranked, users, strict=False))
    return [(user_of[author], text) for author, text in texts]


def _real_posts(count: int) -> list[tuple[str, str]]:
    file = DATA / "posts_ubuntu_irc.csv.gz"
    if not file.exists():
        return [(f"author {n % 97}", f"post {n} 世界 🌍") for n in range(count)]
    with gzip.open(file, "rt") as lines:
        rows = ((row["author"], row["text"].strip()) for row in csv.DictReader(lines))
        return list(islice((row for row in rows if row[1]), count))


def _generated_graph(directory: Path) -> Path:
    chance = random.Random(1)
    file = directory / "graph.csv.gz"
    pairs = {
        (chance.randint(1, 2_000), min(2_000, int(chance.paretovariate(0.7))))
        for _ in range(30_000)
    }
    with gzip.open(file, "wt") as out:
        csv.writer(out).writerows(
            [("follower", "followee"), *sorted(pair for pair in pairs if pair[0] != pair[1])]
        )
    return file
