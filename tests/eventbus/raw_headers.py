"""Records whose headers the Python client cannot write: Kafka, and so librdkafka, takes any bytes
for a name.
"""

import ctypes
from pathlib import Path

import confluent_kafka
from django.conf import settings

from tests.eventbus import broker

_CONF_OK, _PRODUCER = 0, 0
_END, _TOPIC, _VALUE, _KEY, _FLAGS, _HEADERS = 0, 1, 4, 5, 7, 10  # enum rd_kafka_vtype_t
_COPY = 2


def publish(topic: str, key: bytes, value: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Publish a record and return once the broker has it."""
    library, producer = _new_producer()
    record_headers = ctypes.c_void_p(library.rd_kafka_headers_new(len(headers)))
    for name, header_value in headers:
        library.rd_kafka_header_add(
            record_headers,
            name,
            ctypes.c_ssize_t(len(name)),
            header_value,
            ctypes.c_ssize_t(len(header_value)),
        )
    arguments = [
        *(_TOPIC, topic.encode()),
        *(_VALUE, value, ctypes.c_size_t(len(value))),
        *(_KEY, key, ctypes.c_size_t(len(key))),
        *(_FLAGS, _COPY),
        *(_HEADERS, record_headers),
        _END,
    ]
    assert library.rd_kafka_producev(producer, *arguments) == 0
    assert library.rd_kafka_flush(producer, int(broker.TIMEOUT * 1000)) == 0
    library.rd_kafka_destroy(producer)


def _new_producer() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    library = _librdkafka()
    configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
    error = ctypes.create_string_buffer(512)
    servers = settings.KAFKA_BOOTSTRAP_SERVERS.encode()
    assert (
        library.rd_kafka_conf_set(configuration, b"bootstrap.servers", servers, error, 512)
        == _CONF_OK
    )
    producer = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, configuration, error, 512))
    assert producer, error.value
    return library, producer


def _librdkafka() -> ctypes.CDLL:
    """Return the library that the Python client has loaded."""
    [file] = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob(
        "librdkafka*.so*"
    )
    library = ctypes.CDLL(str(file))
    for function in ("rd_kafka_headers_new", "rd_kafka_conf_new", "rd_kafka_new"):
        getattr(library, function).restype = ctypes.c_void_p
    return library
