import django.contrib.postgres.fields
import django.db.models.functions.datetime
from django.db import migrations, models

PARTS = """
    parts CONSTANT regclass[] := ARRAY(
        SELECT inhrelid::regclass FROM pg_inherits JOIN pg_class ON oid = inhrelid
        WHERE inhparent = 'feed_entries'::regclass ORDER BY substring(relname FROM '\\d+$')::int
    );
    oldest CONSTANT regclass := parts[1];
    newest CONSTANT regclass := parts[cardinality(parts)];
    oldest_end text := (SELECT substring(pg_get_expr(relpartbound, oid) FROM 'TO \\(''?([^'')]+)') FROM pg_class WHERE oid = oldest);
    newest_start text := (SELECT substring(pg_get_expr(relpartbound, oid) FROM 'FROM \\(''?([^'')]+)') FROM pg_class WHERE oid = newest);
"""

# `feed_entries_1` began with the first id and the newest partition had no end. From now on every partition has both,
# see `feeds.partitions`: the newest ends an hour from now, and three empty ones follow. Only the two partitions whose
# bounds change are looked through, nothing is copied, and everybody waits meanwhile: 0.1 s for each million rows of those two.
#
# A post with an id beyond that can only come from a clock that is hours ahead. It would keep its partition from ever
# ending, so it is left to be pulled by readers.
FINITE = f"""
DO $$
DECLARE
    hour CONSTANT bigint := 3600000::bigint << 22;
    ending bigint := (((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1704067200000) << 22) + hour;
    options CONSTANT text := 'autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05, '
        'autovacuum_analyze_scale_factor = 0.05';
    {PARTS}
    next_number int := substring(newest::text FROM '\\d+$')::int + 1;
    owner CONSTANT name := (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'feed_entries'::regclass);
BEGIN
    LOCK TABLE feed_entries IN ACCESS EXCLUSIVE MODE;
    IF newest_start <> 'MINVALUE' THEN
        ending := greatest(ending, newest_start::bigint + hour);
    END IF;
    IF EXISTS (SELECT FROM posts WHERE id >= ending) THEN
        WITH ahead AS (UPDATE posts SET fanout = 1 WHERE id >= ending AND fanout = 0 RETURNING author_id)
        UPDATE feeds SET pulled_since = now() WHERE pulled_since IS NULL AND user_id IN (SELECT author_id FROM ahead);
        EXECUTE format('DELETE FROM %s WHERE post_id >= %s', newest, ending);
    END IF;

    IF oldest <> newest THEN
        EXECUTE format('ALTER TABLE feed_entries DETACH PARTITION %s', oldest);
        EXECUTE format('ALTER TABLE feed_entries ATTACH PARTITION %s FOR VALUES FROM (0) TO (%s)', oldest, oldest_end);
    ELSE
        newest_start := '0';
    END IF;
    EXECUTE format('ALTER TABLE feed_entries DETACH PARTITION %s', newest);
    EXECUTE format('ALTER TABLE feed_entries ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', newest, newest_start, ending);

    FOR n IN 0..2 LOOP
        EXECUTE format('CREATE TABLE feed_entries_%s (LIKE feed_entries INCLUDING ALL) WITH (%s)', next_number + n, options);
        EXECUTE format('ALTER TABLE feed_entries_%s OWNER TO %I', next_number + n, owner);
        EXECUTE format(
            'ALTER TABLE feed_entries ATTACH PARTITION feed_entries_%s FOR VALUES FROM (%s) TO (%s)',
            next_number + n, ending + n * hour, ending + (n + 1) * hour
        );
    END LOOP;
END $$
"""  # noqa: S608 - composed of constants

# What was dropped at the horizon is not materialised, so no floor may be lower.
ENDLESS = f"""
DO $$
DECLARE {PARTS}
BEGIN
    LOCK TABLE feed_entries IN ACCESS EXCLUSIVE MODE;
    UPDATE feeds SET floor = post_id FROM feed_horizon WHERE floor < post_id;
    IF oldest <> newest THEN
        EXECUTE format('ALTER TABLE feed_entries DETACH PARTITION %s', oldest);
        EXECUTE format('ALTER TABLE feed_entries ATTACH PARTITION %s FOR VALUES FROM (MINVALUE) TO (%s)', oldest, oldest_end);
    ELSE
        newest_start := 'MINVALUE';
    END IF;
    EXECUTE format('ALTER TABLE feed_entries DETACH PARTITION %s', newest);
    EXECUTE format('ALTER TABLE feed_entries ATTACH PARTITION %s FOR VALUES FROM (%s) TO (MAXVALUE)', newest, newest_start);
END $$
"""  # noqa: S608 - composed of constants


class Migration(migrations.Migration):
    dependencies = [("feeds", "0004_partitioned_entries"), ("posts", "0002_strategies_and_rest")]
    operations = [
        migrations.CreateModel(
            name="Horizon",
            fields=[
                ("id", models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("post_id", models.BigIntegerField(db_default=0, default=0)),
                (
                    "starts",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(), db_default=[], default=list, size=None
                    ),
                ),
                (
                    "keeper_due_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        help_text="nobody changes the partitions before",
                    ),
                ),
                (
                    "dropping",
                    models.CharField(
                        blank=True,
                        db_default="",
                        default="",
                        help_text="a partition",
                        max_length=63,
                    ),
                ),
            ],
            options={
                "db_table": "feed_horizon",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="feed_horizon_single_row"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Withdrawal",
            fields=[
                ("post_id", models.BigIntegerField(primary_key=True, serialize=False)),
                ("author_id", models.BigIntegerField()),
                (
                    "resume_after",
                    models.BigIntegerField(
                        db_default=0, default=0, help_text="the last follower who is done"
                    ),
                ),
            ],
            options={
                "db_table": "withdrawals",
                "indexes": [models.Index(fields=["author_id"], name="withdrawals_by_author")],
            },
        ),
        migrations.RunSQL([FINITE], [ENDLESS]),
    ]
