from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("posts", "0002_strategies_and_rest"),
    ]

    # Nullable, without a default: nothing is rewritten, and processes of the release before go on.
    operations = [
        migrations.AddField(
            model_name="post",
            name="data",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="post",
            name="content_event_id",
            field=models.BigIntegerField(
                help_text="the edit that last changed the content", null=True
            ),
        ),
        migrations.AddField(
            model_name="post",
            name="data_event_id",
            field=models.BigIntegerField(
                help_text="the edit that last changed the data", null=True
            ),
        ),
    ]
