"""What an id is, whose time it tells, and who may mint it."""
