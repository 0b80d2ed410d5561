from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("posts", "0004_waiting_edits")]
    operations = [
        migrations.CreateModel(
            name="Block",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "blocker_id",
                        "blocked_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("blocker_id", models.BigIntegerField()),
                ("blocked_id", models.BigIntegerField()),
                ("blocked_event_id", models.BigIntegerField(db_default=0, default=0)),
                ("unblocked_event_id", models.BigIntegerField(db_default=0, default=0)),
            ],
            options={
                "db_table": "blocks",
                "indexes": [
                    models.Index(fields=["blocked_id", "blocker_id"], name="blocks_by_blocked"),
                ],
            },
        ),
    ]
