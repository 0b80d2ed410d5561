"""Making what the first write needs before it comes."""

import structlog

from eventbus import node_lease, producer
from eventbus.exceptions import IdsUnavailable

log = structlog.get_logger(__name__)


def warm_up() -> None:
    """Connect to Kafka and lease a snowflake node, which would cost the first write half a second or more."""
    producer.get()
    try:
        node_lease.next_id()
    except IdsUnavailable as error:
        log.warning("no_snowflake_node_yet", error=str(error))
