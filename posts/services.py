"""What one can do with posts: each act is one event in Kafka and touches no table."""

from eventbus import producer
from eventbus.ids.idempotency import Ids
from eventbus.ids.snowflake import time_of
from eventbus.record import Headers
from posts.events import PostCreated, PostDeleted, PostEdited


def create_post(
    *, author_id: int, content: str, data: str | None = None, ids: Ids, headers: Headers = ()
) -> PostCreated:
    """Publish a new post and return it once Kafka has it. Raises `PublishFailed`."""
    post = new_post(author_id=author_id, content=content, data=data, ids=ids)
    producer.publish(post.to_event(), headers)
    return post


def new_post(*, author_id: int, content: str, data: str | None = None, ids: Ids) -> PostCreated:
    """Return a post, not published yet; its time is that of its id, its data compact JSON."""
    return PostCreated(
        event_id=ids.event_id,
        post_id=ids.object_id,
        author_id=author_id,
        content=content,
        created_at=time_of(ids.object_id),
        data=data,
    )


def edit_post(edit: PostEdited, headers: Headers = ()) -> None:
    """Publish an edit of the author's own post. Raises `PublishFailed`."""
    producer.publish(edit.to_event(), headers)


def delete_post(*, author_id: int, post_id: int, ids: Ids, headers: Headers = ()) -> PostDeleted:
    """Publish the deletion of the author's own post. Raises `PublishFailed`."""
    deletion = PostDeleted(event_id=ids.event_id, post_id=post_id, author_id=author_id)
    producer.publish(deletion.to_event(), headers)
    return deletion
