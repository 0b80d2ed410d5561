from django.db import migrations, models


def replaced(condition: str) -> tuple[str, ...]:
    """Return what replaces the index while workers and readers go on.

    What an interrupted run has left behind is made anew. Workers of the release before find their
    followers by `follows_by_followee` from then on, as rightly and more slowly.
    """
    return (
        "DROP INDEX CONCURRENTLY IF EXISTS follows_to_deliver_next",
        "CREATE INDEX CONCURRENTLY follows_to_deliver_next ON follows (followee_id, follower_id) "
        f"WHERE {condition}",
        "DROP INDEX CONCURRENTLY IF EXISTS follows_to_deliver",
        "ALTER INDEX follows_to_deliver_next RENAME TO follows_to_deliver",
    )


class Migration(migrations.Migration):
    atomic = False  # as CONCURRENTLY wants it

    dependencies = [("feeds", "0007_mutes")]
    operations = [
        migrations.RunSQL(
            replaced("active AND NOT idle AND NOT muted"),
            replaced("active AND NOT idle"),
            state_operations=[
                migrations.RemoveIndex("follow", "follows_to_deliver"),
                migrations.AddIndex(
                    "follow",
                    models.Index(
                        fields=["followee_id", "follower_id"],
                        condition=models.Q(active=True, idle=False, muted=False),
                        name="follows_to_deliver",
                    ),
                ),
            ],
        ),
    ]
