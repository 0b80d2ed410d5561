from django.db import migrations

# All there is becomes the first partition, of any post id, see `feeds.partitions`. No row is copied or looked at.
PARTITIONED = """
ALTER TABLE feed_entries RENAME TO feed_entries_1;
ALTER INDEX feed_entries_pkey RENAME TO feed_entries_1_pkey;
CREATE TABLE feed_entries (
    user_id bigint NOT NULL,
    post_id bigint NOT NULL,
    author_id bigint NOT NULL,
    CONSTRAINT feed_entries_pkey PRIMARY KEY (user_id, post_id)
) PARTITION BY RANGE (post_id);
ALTER TABLE feed_entries ATTACH PARTITION feed_entries_1 FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
"""
ONE_TABLE = """
ALTER TABLE feed_entries RENAME TO feed_entries_partitioned;
ALTER INDEX feed_entries_pkey RENAME TO feed_entries_partitioned_pkey;
CREATE TABLE feed_entries (
    user_id bigint NOT NULL,
    post_id bigint NOT NULL,
    author_id bigint NOT NULL,
    CONSTRAINT feed_entries_pkey PRIMARY KEY (user_id, post_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);
INSERT INTO feed_entries SELECT * FROM feed_entries_partitioned ORDER BY user_id, post_id;
DROP TABLE feed_entries_partitioned;
"""


class Migration(migrations.Migration):
    dependencies = [("feeds", "0003_storage")]
    operations = [migrations.RunSQL(PARTITIONED, ONE_TABLE)]
