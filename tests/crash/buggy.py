"""Runs a manage.py command whose fan-out has a bug: it cannot deliver a post that says BUG.

    python -m tests.crash.buggy run_fanout

Production code has no hooks for this: the function is wrapped here.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posts.events import PostCreated

BUG = "BUG"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "feedsite.settings")
    import_module("django").setup()
    fanout = import_module("feeds.fanout")
    deliver = fanout.deliver

    def buggy(posts: "Sequence[PostCreated]", *, careful: bool) -> None:
        deliver(posts, careful=careful)
        for post in posts:
            if BUG in post.content:
                raise RuntimeError(f"cannot deliver post {post.post_id}")

    fanout.deliver = buggy  # type: ignore[attr-defined]
    import_module("django.core.management").execute_from_command_line(["manage.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
