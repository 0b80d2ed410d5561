from django.db import migrations, models


class Migration(migrations.Migration):
    # What holds a follow is in `blocks`.
    dependencies = [("feeds", "0010_erasure"), ("posts", "0005_blocks")]
    operations = [
        # No row is rewritten: PostgreSQL keeps the default of a new column beside the table.
        migrations.AddField("follow", "held", models.BooleanField(db_default=False, default=False)),
    ]
