"""What is seen of the pipeline: heartbeats, lag, health, and what the pages show of them."""
