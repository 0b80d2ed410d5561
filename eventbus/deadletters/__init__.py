"""Events that cannot be processed: written, stored, counted, shown and replayed."""
