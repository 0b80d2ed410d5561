from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # so that nobody waits for the index
    dependencies = [("feeds", "0009_seen"), ("eventbus", "0008_erasures")]

    operations = [
        migrations.AlterModelOptions(
            name="feed", options={"permissions": [("erase_user", "Can erase a user")]}
        ),
        AddIndexConcurrently(
            "follow",
            models.Index(
                condition=models.Q(("active", False)),
                fields=["followee_id", "follower_id"],
                name="follows_ended",
            ),
        ),
    ]
