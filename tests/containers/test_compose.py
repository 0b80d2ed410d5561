"""`docker compose up` as an operator meets it: started, used, scaled, killed, restarted, and
nothing is lost.
"""

import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from tests.containers.stack import Stack, eventually, health, post, running, service
from tests.e2e.system import read_feed

APP = {"api", "fanout", "dlq"}
# Its start writes the configuration beside the programs.
WRITES_TO_ITS_ROOT = {"kafka"}


def test_every_container_is_healthy_and_confined(feed: Stack) -> None:
    containers = feed.containers()
    assert {service(container) for container in containers} == APP | {
        "postgres",
        "redis",
        "kafka",
        "prometheus",
    }
    for container in containers:
        host = container["HostConfig"]
        assert health(container) == "healthy"
        assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] > 0
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert container["Config"]["User"] not in ("", "root", "0")
        assert host["ReadonlyRootfs"] == (service(container) not in WRITES_TO_ITS_ROOT)
        assert host["PidsLimit"] > 0
    with pytest.raises(AssertionError, match="Read-only file system"):
        feed.compose("exec", "-T", "api", "touch", "/app/file")


def test_no_secret_is_in_the_arguments_of_a_process(feed: Stack) -> None:
    passwords = feed.secrets()
    for container in feed.containers():
        shown = subprocess.run(
            ["docker", "top", container["Id"], "-eo", "pid,args"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert not [password for password in passwords if password in shown.stdout]


def test_the_role_of_the_application_is_no_superuser_and_owns_only_its_schema(feed: Stack) -> None:
    role = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'feed'"
    databases = (
        "SELECT count(*) FROM pg_database JOIN pg_roles r ON r.oid = datdba AND rolname = 'feed'"
    )
    schemas = (
        "SELECT nspname FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner AND rolname = 'feed'"
    )
    assert [feed.sql(query) for query in (role, databases, schemas)] == ["f|f|f", "0", "public"]


def test_nothing_is_reachable_from_other_machines_unless_told(feed: Stack) -> None:
    published = {
        service(container): {
            binding["HostIp"] for bindings in ports.values() if bindings for binding in bindings
        }
        for container in feed.containers()
        if (ports := container["NetworkSettings"]["Ports"])
    }
    outside = {name for name, addresses in published.items() if addresses - {"127.0.0.1"}}
    assert outside == set()


def test_the_api_says_that_it_is_ready_whatever_name_it_is_asked_by(feed: Stack) -> None:
    with feed.client(1) as client:
        answer = client.get("/readyz", headers={"Host": "10.0.0.1:8000"})
    assert (answer.status_code, answer.text) == (200, "postgresql: ok\nkafka: ok\nredis: ok\n")


def test_a_post_reaches_its_followers_page_by_page(feed: Stack) -> None:
    author, follower = feed.client(101), feed.client(102)
    assert follower.put("/follows/101").status_code == 202
    posts = post(author, [f"post {number}" for number in range(25)])
    eventually(lambda: sees(follower, 102, posts))
    assert read_feed(follower, 102, limit=7) == posts[::-1]
    assert read_feed(author, 101) == posts[::-1]


def test_prometheus_finds_every_fanout_and_another_takes_over_from_one_killed(feed: Stack) -> None:
    author, follower = feed.client(201), feed.client(202)
    assert follower.put("/follows/201").status_code == 202
    feed.up("--scale", "fanout=3", "--no-recreate")
    eventually(lambda: len(feed.query('up{job="fanout"} == 1')) == 3)

    posts = post(author, [f"before {number}" for number in range(50)])
    subprocess.run(
        ["docker", "kill", feed.containers("fanout")[0]["Id"]], check=True, capture_output=True
    )
    posts += post(author, [f"after {number}" for number in range(50)])
    eventually(lambda: sees(follower, 202, posts))

    assert read_feed(follower, 202) == posts[::-1]
    feed.manage("verify_feeds")
    feed.up("--scale", "fanout=1", "--no-recreate")


def test_what_is_no_event_becomes_a_dead_letter_that_everybody_sees(feed: Stack) -> None:
    produce(feed, "this is no event")
    eventually(lambda: "undecodable" in feed.manage("dlq", "list"))
    eventually(lambda: dead_letters(feed) == 1)
    feed.manage("dlq", "discard", "--all", "--reason", "no event", "--yes")


def test_after_a_flood_of_dead_letters_the_worker_stays_down_until_someone_starts_it(
    feed: Stack,
) -> None:
    feed.configure(DLQ_FLOOD_COUNT=20)
    feed.up()
    produce(feed, *["no event"] * 50)
    eventually(
        lambda: [health(container) for container in feed.containers("fanout")] == ["unhealthy"]
    )
    (worker,) = feed.containers("fanout")
    assert worker["State"]["Running"]
    assert worker["RestartCount"] == 0

    feed.configure(DLQ_FLOOD_COUNT=1_000)
    feed.up()
    eventually(lambda: dead_letters(feed) == 50)
    feed.manage("dlq", "discard", "--all", "--reason", "no event", "--yes")


def test_prometheus_has_the_rules_and_grafana_the_files_it_is_given(feed: Stack) -> None:
    feed.compose(
        "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"
    )
    mounts = [
        Path(mount["source"])
        for mount in feed.configuration("grafana")["volumes"]
        if mount["type"] == "bind"
    ]
    assert mounts
    for mount in mounts:
        assert mount.exists(), mount
        for file in mount.rglob("*.yml"):
            assert yaml.safe_load(file.read_text())["apiVersion"] == 1


def test_restarting_everything_loses_nothing(feed: Stack) -> None:
    author, follower = feed.client(301), feed.client(302)
    assert follower.put("/follows/301").status_code == 202
    delivered = post(author, [f"delivered {number}" for number in range(30)])
    eventually(lambda: sees(follower, 302, delivered))
    redis_keeps(feed, "survives")
    feed.compose("stop", "fanout")
    only_in_kafka = post(author, [f"only in Kafka {number}" for number in range(30)])
    assert read_feed(follower, 302) == delivered[::-1]

    feed.compose("restart")
    feed.wait_until_healthy()
    eventually(lambda: sees(follower, 302, delivered + only_in_kafka))

    assert read_feed(follower, 302) == (delivered + only_in_kafka)[::-1]
    assert redis_kept(feed) == "survives"
    more = post(author, ["and on it goes"])
    eventually(lambda: sees(follower, 302, delivered + only_in_kafka + more))
    feed.manage("verify_feeds")


def test_the_profile_zookeeper_runs_on_kafka_3_and_valkey_does_for_redis(tmp_path: Path) -> None:
    choice = {
        "COMPOSE_PROFILES": "zookeeper",
        "KAFKA_BOOTSTRAP_SERVERS": "kafka-zk:9092",
        "KAFKA_KRAFT": "0",
    }
    with running(tmp_path, REDIS_IMAGE="valkey/valkey:9", **choice) as feed:
        present = {service(container) for container in feed.containers()}
        assert {"zookeeper", "kafka-zk"} <= present
        assert "kafka" not in present
        with feed.client(1) as client:
            posts = post(client, ["through ZooKeeper"])
            eventually(lambda: sees(client, 1, posts))


def test_the_profile_cells_divides_readers_over_two_postgresql(tmp_path: Path) -> None:
    choice = {"COMPOSE_PROFILES": "cells", "FEED_CELLS": "/etc/feed/cells.json"}
    in_a, in_b = 1, 4  # of slots 143 and 572
    with running(tmp_path, "fanout-b", "dlq-b", **choice) as feed:
        one, other = feed.client(in_a), feed.client(in_b)
        assert other.put(f"/follows/{in_a}").status_code == 202
        posts = post(one, ["in both cells"])
        eventually(lambda: sees(one, in_a, posts))
        eventually(lambda: sees(other, in_b, posts))
        feed.compose("stop", "postgres-b")
        more = post(one, ["while b is away"])
        eventually(lambda: sees(one, in_a, posts + more))
        assert other.get(f"/feeds/{in_b}?limit=7").status_code == 503
        feed.compose("start", "postgres-b")
        eventually(lambda: reached(other, in_b))
        eventually(lambda: sees(other, in_b, posts + more))
        assert feed.manage("verify_feeds").count("cell ") == 2
        assert feed.manage("cells", "status").count("0 events to come, 0 dead letters") == 2


def reached(client: httpx.Client, user: int) -> bool:
    return client.get(f"/feeds/{user}").status_code == 200


def sees(client: httpx.Client, user: int, posts: list[int]) -> bool:
    """Tell whether the newest posts of the feed are these."""
    return read_feed(client, user)[: len(posts)] == posts[::-1]


def produce(feed: Stack, *values: str) -> None:
    """Write records to feed-events past the API."""
    producer = ["/opt/kafka/bin/kafka-console-producer.sh", "--bootstrap-server", "localhost:9092"]
    lines = "".join(f"{value}\n" for value in values)
    feed.compose("exec", "-T", "kafka", *producer, "--topic", "feed-events", stdin=lines)


def dead_letters(feed: Stack) -> int | None:
    """Return the number of unresolved ones as Prometheus knows it, None while it knows none."""
    # Of a container that was made anew it knows the last value of the old one too, for a moment, or
    # has no value yet.
    found = feed.query("max(dlq_size)")
    return int(found[0]["value"][1]) if found else None


def redis_keeps(feed: Stack, value: str) -> None:
    feed.compose("exec", "-T", "redis", "redis-cli", "set", "kept", value)
    # The append-only file is written once a second.
    feed.compose("exec", "-T", "redis", "redis-cli", "waitaof", "1", "0", "5000")


def redis_kept(feed: Stack) -> str:
    return feed.compose("exec", "-T", "redis", "redis-cli", "get", "kept").strip()
