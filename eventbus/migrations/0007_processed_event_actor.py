from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("eventbus", "0006_dead_letters_by_failure"),
    ]

    operations = [
        # Without a default, so PostgreSQL changes no row.
        migrations.AddField(
            model_name="processedevent",
            name="actor_id",
            field=models.BigIntegerField(
                help_text="whose event it was; null for those of before this was kept", null=True
            ),
        ),
    ]
