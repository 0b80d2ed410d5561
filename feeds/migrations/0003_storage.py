from django.db import migrations

# Figures in docs/adr/0014-one-table-of-entries.md.
STORAGE = """
ALTER TABLE feeds SET (fillfactor = 90);
ALTER TABLE feed_entries SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);
"""
DEFAULTS = """
ALTER TABLE feeds RESET (fillfactor);
ALTER TABLE feed_entries RESET (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor
);
"""


class Migration(migrations.Migration):
    dependencies = [("feeds", "0002_strategies_and_rest")]
    operations = [migrations.RunSQL(STORAGE, DEFAULTS)]
