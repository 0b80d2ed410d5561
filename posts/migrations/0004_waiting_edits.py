from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("posts", "0003_data_and_edits"),
    ]

    operations = [
        migrations.CreateModel(
            name="WaitingEdit",
            fields=[
                ("event_id", models.BigIntegerField(primary_key=True, serialize=False)),
                ("post_id", models.BigIntegerField()),
                ("author_id", models.BigIntegerField()),
                ("content", models.TextField(null=True)),
                ("changes_data", models.BooleanField()),
                ("data", models.JSONField(null=True)),
            ],
            options={
                "db_table": "waiting_edits",
                "indexes": [
                    models.Index(fields=["post_id", "event_id"], name="waiting_edits_by_post"),
                    models.Index(fields=["author_id", "event_id"], name="waiting_edits_by_author"),
                ],
            },
        ),
    ]
