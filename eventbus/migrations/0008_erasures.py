import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("eventbus", "0007_processed_event_actor")]

    operations = [
        migrations.CreateModel(
            name="Erasure",
            fields=[
                ("user_id", models.BigIntegerField(primary_key=True, serialize=False)),
                ("event_id", models.BigIntegerField()),
                ("step", models.CharField(help_text="what is being erased", max_length=32)),
                (
                    "resume_after",
                    models.BigIntegerField(
                        db_default=0, default=0, help_text="the last key of the step that is done"
                    ),
                ),
                (
                    "due_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        help_text="nobody works on it before",
                    ),
                ),
                ("finished_at", models.DateTimeField(null=True)),
            ],
            options={
                "db_table": "erasures",
                "indexes": [
                    models.Index(fields=["event_id"], name="erasures_by_event"),
                    models.Index(
                        condition=models.Q(("finished_at__isnull", True)),
                        fields=["due_at"],
                        name="erasures_unfinished",
                    ),
                ],
            },
        ),
    ]
