from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("feeds", "0008_follows_to_deliver")]
    operations = [
        migrations.AddField(
            "feed",
            "seen_post_id",
            models.BigIntegerField(
                help_text="the user has seen the feed up to this post id", null=True
            ),
        ),
    ]
