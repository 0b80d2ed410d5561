"""What ties together the log lines and the spans of one event."""
