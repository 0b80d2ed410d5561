"""What the log says while a server is away: once that it went, once that it is back, and each
minute how much was said.

All who use a server notice its absence, each several times a second. The lines below say so in
other words and again and again; of those about one server one passes each minute, with the number
of those left out since the last one.
"""

import logging
import time
from dataclasses import dataclass

MINUTE = 60.0  # seconds
LEFT_OUT = "lines_left_out"

# What each line is about, by its name. Lines that are not here always pass, and those with a
# traceback too.
SUBJECTS = {
    "kafka_consumer_error": "kafka",
    "kafka_producer_error": "kafka",
    "kafka_producer_given_up": "kafka",
    "kafka_producer_replaced": "kafka",
    "lag_unknown": "kafka",
    "offsets_not_committed": "kafka",
    "positions_not_checked": "kafka",
    "start_not_found": "kafka",
    "cache_state_unreadable": "postgresql",
    "database_unavailable": "postgresql",
    "partitions_not_kept": "postgresql",
    "pipeline_page_without_answer": "postgresql",
    "read_not_noted": "postgresql",
    # Which may have reasons of its own, see the runbook.
    "snowflake_lease_not_renewed": "ids",
    "waiting_for_dependency": "postgresql",
    "cache_unreachable": "redis",
    "write_not_accepted": "writes",
    # Of background work (eventbus.background).
    "heartbeat_failed": "postgresql",
    "housekeeping_failed": "postgresql",
    "dlq_size_failed": "postgresql",
    "partitions_failed": "postgresql",
}
# And those of libraries, by their logger.
SUBJECTS_OF_LOGGERS = {
    "librdkafka": "kafka",
    "psycopg.pool": "postgresql",
    # Requests answered with 503; those with 500 have a traceback.
    "django.request": "requests",
}

AWAY, BACK = "server_is_away", "server_is_back"


@dataclass(slots=True)
class _Said:
    is_away: bool = False
    passed_at: float = float("-inf")
    left_out: int = 0


class OutageLines(logging.Filter):
    """Lets lines pass as described above. Without a lock: a race costs a line too many."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, _Said] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line is written; it may get the number of those that were not."""
        fields = record.msg if isinstance(record.msg, dict) else {}
        name = fields.get("event")
        if name in (AWAY, BACK):
            said = self._about(str(fields.get("server")))
            passes = said.is_away != (name == AWAY)
            said.is_away = name == AWAY
            # The next outage is told at once.
            ends_silence = name == BACK
        else:
            subject = SUBJECTS.get(str(name)) or SUBJECTS_OF_LOGGERS.get(record.name)
            if subject is None or record.exc_info:
                return True
            said = self._about(subject)
            passes = time.monotonic() - said.passed_at >= MINUTE
            ends_silence = False
        if not passes:
            said.left_out += 1
            return False
        _add_count(record, said.left_out)
        said.left_out = 0
        said.passed_at = float("-inf") if ends_silence else time.monotonic()
        return True

    def _about(self, subject: str) -> _Said:
        return self._said.setdefault(subject, _Said())


def _add_count(record: logging.LogRecord, count: int) -> None:
    if not count:
        return
    if isinstance(record.msg, dict):
        record.msg[LEFT_OUT] = count
    else:
        record.msg, record.args = f"{record.getMessage()} ({LEFT_OUT}={count})", None
