from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("feeds", "0006_counted_redis")]
    operations = [
        migrations.CreateModel(
            name="Mute",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "user_id",
                        "muted_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("user_id", models.BigIntegerField()),
                ("muted_id", models.BigIntegerField()),
                ("active", models.BooleanField()),
                ("event_id", models.BigIntegerField()),
            ],
            options={
                "db_table": "mutes",
                "indexes": [
                    models.Index(fields=["muted_id", "user_id"], name="mutes_by_muted"),
                ],
            },
        ),
        # No row is rewritten: PostgreSQL keeps the default of a new column beside the table.
        migrations.AddField(
            "follow", "muted", models.BooleanField(db_default=False, default=False)
        ),
    ]
