"""Every code that an error of the API may have, with its status and meaning.

A code is for programs: it never changes its status or meaning. That each code of the source is
here, and none besides, is tested.
"""

from typing import NamedTuple


class Code(NamedTuple):
    """What a code says."""

    status: int
    meaning: str


CODES = {
    # What may be wrong with any request
    "bad_request": Code(400, "the request is not one that can be answered, such as for its `Host`"),
    "not_authenticated": Code(401, "there is no bearer token"),
    "invalid_token": Code(401, "the token was not issued for this API, or is damaged"),
    "token_expired": Code(401, "the token has expired"),
    "forbidden": Code(403, "this is not allowed here"),
    "not_found": Code(404, "no such path, or an id that is none"),
    "method_not_allowed": Code(
        405, "the path does not take this method; `Allow` has those it does"
    ),
    "internal_error": Code(500, "something failed that nobody foresaw"),
    "database_busy": Code(503, "PostgreSQL could not answer this time; try again"),
    "database_unavailable": Code(503, "PostgreSQL cannot be reached; try again"),
    "keys_unavailable": Code(
        503, "the keys that tokens are verified with cannot be had; try again"
    ),
    "overloaded": Code(503, "too many such requests are under way; try again"),
    # Bodies
    "incomplete_body": Code(400, "the body ended before its end"),
    "malformed_json": Code(400, "the body is not JSON"),
    "request_timeout": Code(408, "the body did not come to its end in time"),
    "payload_too_large": Code(413, "the body is larger than 128 KiB"),
    "unsupported_encoding": Code(415, "the body has a `Content-Encoding`"),
    "unsupported_media_type": Code(415, "the body's `Content-Type` is not `application/json`"),
    "not_an_object": Code(422, "the body must be a JSON object"),
    # Lists
    "invalid_cursor": Code(400, "the cursor is not one this API gave out"),
    "invalid_limit": Code(400, "`limit` is no whole number of 1 to 100"),
    # Writes
    "invalid_idempotency_key": Code(400, "the key is not 1 to 255 printable ASCII characters"),
    "idempotency_key_reused": Code(422, "the key was used for another request"),
    "exceeds_write_rate": Code(422, "one request with more writes than anyone may make"),
    "throttled": Code(429, "too many writes, or lookups of posts; try again after `Retry-After`"),
    "kafka_unavailable": Code(503, "Kafka did not acknowledge in time; try again, same key"),
    "topics_unchecked": Code(503, "Kafka's topics were not looked at yet; try again"),
    # Posts
    "not_the_author": Code(403, "only its author may do this to a post"),
    "post_not_found": Code(404, "there is no such post (yet)"),
    "gone": Code(410, "the post was deleted"),
    "content_required": Code(422, "`content` must be a string"),
    "content_empty": Code(422, "`content` is empty after trimming"),
    "content_too_long": Code(422, "`content` is longer than 5,000 characters"),
    "content_has_nul": Code(422, "`content` has a NUL character"),
    "data_not_an_object": Code(422, "`data` must be a JSON object"),
    "data_too_large": Code(422, "`data` is larger than 8 KiB of compact JSON"),
    "data_too_deep": Code(422, "`data` is nested deeper than 8 levels"),
    "data_has_nul": Code(422, "`data` has a NUL character"),
    "data_number": Code(422, "`data` has a number that not every client reads the same"),
    "duplicate_key": Code(422, "an object in a body with `data` has a key twice"),
    "nothing_to_edit": Code(422, "an edit must name `content` or `data`"),
    "ids_required": Code(400, "`ids` names no post"),
    "invalid_ids": Code(400, "`ids` must be post ids with commas between"),
    "too_many_ids": Code(400, "`ids` names more than 100 posts"),
    # Follows and feeds
    "cannot_follow_oneself": Code(422, "nobody can follow themselves"),
    "followee_ids_required": Code(422, "`followee_ids` must be a list"),
    "followee_ids_empty": Code(422, "`followee_ids` names nobody"),
    "invalid_followee_id": Code(422, "one of `followee_ids` is no user id"),
    "too_many_followee_ids": Code(422, "`followee_ids` names more than 100 users"),
    "cannot_block_oneself": Code(422, "nobody can block themselves"),
    "follow_blocked": Code(422, "a block is between the two users"),
    "cannot_mute_oneself": Code(422, "nobody can mute themselves"),
    "not_your_follows": Code(403, "someone else's follows need the scope `feeds:read`"),
    "not_your_feed": Code(403, "someone else's feed needs the scope `feeds:read`"),
    "invalid_since": Code(400, "`since` or `Last-Event-ID` is no post id"),
    "nothing_seen": Code(409, "the feed was never marked as seen, and `since` is not given"),
    "post_id_required": Code(422, "`post_id` must be there"),
    "invalid_post_id": Code(422, "`post_id` must be a decimal string"),
    "post_id_in_the_future": Code(422, "`post_id` is from the future"),
    "live_unavailable": Code(501, "live feeds need the API's event loop, and no spans"),
    "too_many_streams": Code(503, "this process has as many live feeds as it may"),
    # Users and events
    "not_your_user": Code(403, "someone else needs the scope `users:erase` or `users:export`"),
    "too_many_exports": Code(503, "this process is making two exports; try again"),
    "no_room": Code(503, "the API's disk has no room for the export; use the command"),
    "event_not_found": Code(404, "no event of this id is on record"),
    "not_your_event": Code(403, "someone else's event needs the scope `events:read`"),
}
