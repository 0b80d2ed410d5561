"""What one can do with posts: each act is one event in Kafka and touches no table."""

from eventbus import node_lease, producer
from eventbus.producer import Headers
from eventbus.snowflake import time_of
from posts.events import PostCreated, PostDeleted


def create_post(*, author_id: int, content: str, headers: Headers = ()) -> PostCreated:
    """Publish a new post and return it once Kafka has it. Raises `PublishFailed` or `IdsUnavailable`."""
    post = new_post(author_id=author_id, content=content)
    producer.publish(post.to_event(), headers)
    return post


def new_post(*, author_id: int, content: str) -> PostCreated:
    """Return a post with fresh ids, not published yet; its time is that of its id. Raises `IdsUnavailable`."""
    post_id = node_lease.next_id()
    return PostCreated(
        event_id=node_lease.next_id(),
        post_id=post_id,
        author_id=author_id,
        content=content,
        created_at=time_of(post_id),
    )


def delete_post(*, author_id: int, post_id: int, headers: Headers = ()) -> PostDeleted:
    """Publish the deletion of the author's own post. Raises `PublishFailed` or `IdsUnavailable`."""
    deletion = PostDeleted(event_id=node_lease.next_id(), post_id=post_id, author_id=author_id)
    producer.publish(deletion.to_event(), headers)
    return deletion
