"""What a run says of itself: JSON, HTML and the adapter's card."""
