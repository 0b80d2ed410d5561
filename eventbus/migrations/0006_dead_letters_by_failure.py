from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("eventbus", "0005_dead_letter_tokens")]

    operations = [
        migrations.AlterField(
            model_name="deadlettergroup",
            name="message",
            field=models.TextField(
                help_text="of the first failure, quoted values and ids left out"
            ),
        ),
        migrations.AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["last_failed_at", "id"], name="dead_letters_by_failure"),
        ),
    ]
