"""The workers' loop: from a poll over lanes and transactions to the offsets."""
