from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("feeds", "0005_horizon")]
    operations = [
        migrations.AddField(
            "cachestate",
            "run_id",
            models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="the Redis that counts; empty: the next that answers",
                max_length=64,
            ),
        ),
    ]
