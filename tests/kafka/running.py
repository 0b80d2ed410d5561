"""The Apache Kafka that this process has started, if it has: some tests stop and start it."""

from tests.kafka.apache import ApacheKafka

apache_kafka: ApacheKafka | None = None
