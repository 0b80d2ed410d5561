import django.contrib.postgres.functions
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("eventbus", "0004_consumer_offsets"),
    ]

    operations = [
        # The default is volatile, so PostgreSQL writes the table anew and each entry gets a token of its own.
        migrations.AddField(
            model_name="deadletter",
            name="token",
            field=models.UUIDField(
                db_default=django.contrib.postgres.functions.RandomUUID(),
                editable=False,
                help_text="by which a replay proves that it is one of this entry",
            ),
        ),
    ]
